#!lua flags=allow-oom
-- include own
-- KEYS page   ARGV record changed   -> 1 it is held, as it was changed, 0 it is not held any more
if redis.call('LREM', KEYS[1], 1, ARGV[1]) == 0 then
  return redis.call('LPOS', KEYS[1], ARGV[2]) and 1 or 0  -- 1: the answer to this was lost before
end
own('RPUSH', KEYS[1], ARGV[2])
return 1
