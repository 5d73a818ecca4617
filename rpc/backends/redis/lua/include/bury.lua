-- include now
-- include own
local function bury(queue, dead, why, record)
  own('LPUSH', dead, now .. '\n' .. why .. '\n' .. record)
  redis.call('LTRIM', dead, 0, 9999)
  local id = string.match(record, '^%d+ %u%d*%+?\n([^\n]*)')
  if id then redis.call('PEXPIRE', queue .. ':b:' .. id, '604800000') end
end
