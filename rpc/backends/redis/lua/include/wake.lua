-- include own
local function wake(wakeup)  -- of those that wait for several queues, one
  own('ZADD', wakeup, 0, '1')
  redis.call('PEXPIRE', wakeup, '60000')
end
