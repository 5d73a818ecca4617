local function wake(wakeup) redis.call('ZADD', wakeup, 0, '1') end  -- of those that wait for several queues, one
