-- include now
-- include own
-- KEYS subscriptions   ARGV group keep_ms
own('ZADD', KEYS[1], now + ARGV[2], ARGV[1])
redis.call('PEXPIRE', KEYS[1], 2 * ARGV[2])  -- whoever publishes then sees that it is forgotten
