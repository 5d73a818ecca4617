#!lua flags=allow-oom
-- KEYS (alive workers)...   ARGV worker lease_ms
for n = 1, #KEYS, 2 do
  redis.call('SADD', KEYS[n + 1], ARGV[1])
  redis.call('SET', KEYS[n], '1', 'PX', ARGV[2])
end
