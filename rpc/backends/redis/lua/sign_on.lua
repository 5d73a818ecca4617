#!lua flags=allow-oom
-- KEYS alive workers...   ARGV worker lease_ms pages...
for n = 2, #KEYS do redis.call('HSET', KEYS[n], ARGV[1], ARGV[n + 1]) end
redis.call('SET', KEYS[1], '1', 'PX', ARGV[2])
