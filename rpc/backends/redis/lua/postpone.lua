#!lua flags=allow-oom
-- include take
-- include now
-- KEYS slot delayed   ARGV id record delay_ms channel   -> 1 put among the delayed, 0 it was not held
if not take(KEYS[1], ARGV[1]) then return 0 end
redis.call('ZADD', KEYS[2], now + 1 + ARGV[3], ARGV[2])
redis.call('PUBLISH', ARGV[4], '')
return 1
