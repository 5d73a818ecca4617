#!lua flags=allow-oom
-- include own
-- KEYS page   ARGV record changed   -> 1 it is held, as it was changed, 0 it is not held any more
if redis.call('LREM', KEYS[1], 1, ARGV[1]) == 0 then return 0 end
own('RPUSH', KEYS[1], ARGV[2])
return 1
