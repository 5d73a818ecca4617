-- include now
-- include own
local function schedule(scheduled, later, job, id, delay_ms)  -- and tell one of those who look what is due
  redis.call('HSET', job, 'status', 'scheduled')
  own('ZADD', scheduled, string.format('%.3f', (now + 1 + delay_ms) / 1000), id)
  own('LPUSH', later, 1)
  redis.call('LTRIM', later, 0, 0)
  redis.call('PEXPIRE', later, 60000)
end
