-- include now
-- include enqueue
-- include full
-- KEYS queue delayed token [inbox]   ARGV id record token_ms max_length sweep shared delay_ms channel
-- -> as SEND
if redis.call('EXISTS', KEYS[3]) == 1 then return 0 end
local length = redis.call('LLEN', KEYS[1]) + redis.call('ZCARD', KEYS[2])
if ARGV[4] ~= '0' and length >= 0 + ARGV[4] then return full(KEYS[1], ARGV[2], ARGV[1], KEYS[4], ARGV[6]) end
clear(KEYS[4], ARGV[6])
keep(KEYS[1], ARGV[2])
redis.call('SET', KEYS[3], '', 'PX', ARGV[3])
redis.call('ZADD', KEYS[2], now + 1 + ARGV[7], ARGV[2])  -- this millisecond is not over
redis.call('PUBLISH', ARGV[8], '')
return 1
