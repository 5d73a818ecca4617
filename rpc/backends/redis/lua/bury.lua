#!lua flags=allow-oom
-- include answer
-- include bury
-- include line
-- include outcome
-- KEYS page queue dead   ARGV record why number frame keep_ms   -> 1 among the dead letters, 0 it was not held
if redis.call('LREM', KEYS[1], 1, ARGV[1]) == 0 then return 0 end
answer(KEYS[2], ARGV[1], ARGV[3], ARGV[4])
keep_last(KEYS[2], ARGV[1], ARGV[4], ARGV[5])
bury(KEYS[2], KEYS[3], ARGV[2], ARGV[1])
step(KEYS[2], ARGV[1])
return 1
