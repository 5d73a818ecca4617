-- include own
-- KEYS subscriptions   ARGV group [until_ms]   -> until when it is kept; '' if it is not
-- If that is still until_ms, it is forgotten: whoever serves it says another time.
local function said()
  local groups = own('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES')
  for n = 1, #groups, 2 do
    if groups[n] == ARGV[1] then return groups[n + 1] end
  end
  return ''
end
if ARGV[2] and said() == ARGV[2] then redis.call('ZREM', KEYS[1], ARGV[1]) end
return said()
