-- KEYS topic members   ARGV group origin present_ms
local made = redis.pcall('XGROUP', 'CREATE', KEYS[1], ARGV[1], ARGV[2], 'MKSTREAM')
if made.err then
  if not string.find(made.err, 'BUSYGROUP') then return made end
  if ARGV[2] == '$' and redis.call('EXISTS', KEYS[2]) == 0 then
    redis.call('XGROUP', 'SETID', KEYS[1], ARGV[1], '$')
  end
end
redis.call('SET', KEYS[2], 1, 'PX', ARGV[3])
return 1
