-- include now
-- include own
local function later(delayed, control, record, delay_ms)  -- and tell those who look when something is due
  own('ZADD', delayed, now + 1 + delay_ms, now .. ' ' .. record)  -- this millisecond is not over
  own('XADD', control, 'MAXLEN', '~', '10000', '*', 'due', '')
  redis.call('PEXPIRE', control, '3600000')
end
