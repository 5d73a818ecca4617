#!lua flags=allow-oom
-- include wakeup
-- KEYS slot queue bell   ARGV record...   What was taken and not begun goes back, the last one first.
for n = #ARGV, 1, -1 do
  if redis.call('LREM', KEYS[1], -1, ARGV[n]) == 1 then redis.call('LPUSH', KEYS[2], ARGV[n]) end
end
return ring(KEYS[3])
