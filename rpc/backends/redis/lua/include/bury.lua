-- include now
-- include own
local function bury(queue, dead, why, record)
  own('LPUSH', dead, now .. '\n' .. why .. '\n' .. record)
  redis.call('LTRIM', dead, 0, 9999)
  local kind, id = string.match(record, '^%d+ (%a)%d*%+?\n([^\n]*)')
  if not id then return end
  redis.call('DEL', queue .. ':c:' .. id)
  if kind == string.upper(kind) then redis.call('PEXPIRE', queue .. ':b:' .. id, '604800000') end
end
