#!lua flags=allow-oom
-- KEYS alive workers...   ARGV worker lease_ms keep_ms pages...   -> the numbers of those that are new
local new = {}
for n = 2, #KEYS do
  if redis.call('EXISTS', KEYS[n]) == 0 then new[#new + 1] = n - 2 end
  redis.call('HSET', KEYS[n], ARGV[1], ARGV[n + 2])
  redis.call('PEXPIRE', KEYS[n], ARGV[3])
end
redis.call('SET', KEYS[1], '1', 'PX', ARGV[2])
return new
