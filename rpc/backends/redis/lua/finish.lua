#!lua flags=allow-oom
-- include answer
-- include body
-- include outcome
-- KEYS page queue   ARGV record number frame keep_ms   -> 1 it was held, 0 it was not
-- As ACK, for a message with an idempotency key, whose body lies elsewhere, or whose last reply is kept.
local held = redis.call('LREM', KEYS[1], 1, ARGV[1])
if held == 1 then answer(KEYS[2], ARGV[1], ARGV[2], ARGV[3]) end
if held == 1 then keep_last(KEYS[2], ARGV[1], ARGV[3], ARGV[4]) end
if held == 1 then forget(KEYS[2], ARGV[1]) end
return held
