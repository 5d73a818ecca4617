-- include now
local function schedule(scheduled, later, job, id, delay_ms)  -- and tell one of those who look what is due
  redis.call('HSET', job, 'status', 'scheduled')
  redis.call('ZADD', scheduled, string.format('%.3f', (now + 1 + delay_ms) / 1000), id)
  redis.call('LPUSH', later, 1)
  redis.call('LTRIM', later, 0, 0)
  redis.call('PEXPIRE', later, 60000)
end
