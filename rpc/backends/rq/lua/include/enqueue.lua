local function enqueue(queue, queues, bell, id)
  redis.call('SADD', queues, queue)
  redis.call('RPUSH', queue, id)
  redis.call('LPUSH', bell, 1)
  redis.call('PEXPIRE', bell, 60000)
end
