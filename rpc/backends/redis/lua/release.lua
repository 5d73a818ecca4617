#!lua flags=allow-oom
-- include wake
-- KEYS queue wakeup   ARGV (page record)...   What was taken and not begun goes back, the last one first.
for n = #ARGV - 1, 1, -2 do
  if redis.call('LREM', ARGV[n], -1, ARGV[n + 1]) == 1 then own('LPUSH', KEYS[1], ARGV[n + 1]) end
end
return wake(KEYS[2])
