-- include bell
local function enqueue(queue, queues, bell, id)
  redis.pcall('SADD', queues, queue)
  own('RPUSH', queue, id)
  ring(bell)
end
