#!lua flags=allow-oom
-- include answer
-- include body
-- include line
-- KEYS queue delayed   ARGV record   Nobody begins it.   -> 1 it was there, 0 it was not
local there = redis.call('LREM', KEYS[1], 1, ARGV[1]) + redis.call('ZREM', KEYS[2], ARGV[1])
if there == 0 and leave(KEYS[1], ARGV[1]) == 0 then return 0 end
answer(KEYS[1], ARGV[1], 0, '')
forget(KEYS[1], ARGV[1])
if there > 0 then step(KEYS[1], ARGV[1]) end
return 1
