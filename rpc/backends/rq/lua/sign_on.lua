#!lua flags=allow-oom
-- include own
-- KEYS worker workers [workers of a queue]...   ARGV lease_s field value ...   A worker is entered, whatever is there.
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], unpack(ARGV, 2))
redis.call('EXPIRE', KEYS[1], ARGV[1])
redis.pcall('SADD', KEYS[2], KEYS[1])
for n = 3, #KEYS do own('SADD', KEYS[n], KEYS[1]) end
