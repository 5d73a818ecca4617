-- KEYS failed job results [queue queues bell: back into the queue with it]   ARGV id field value ...
-- -> 1 done, 0 it is no dead letter
if redis.call('TYPE', KEYS[2]).ok ~= 'hash' or redis.call('HEXISTS', KEYS[2], 'rpc_dead') == 0 then return 0 end
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('DEL', KEYS[2], KEYS[3])
if KEYS[4] then
  redis.call('HSET', KEYS[2], unpack(ARGV, 2))
  redis.call('SADD', KEYS[5], KEYS[4])
  redis.call('RPUSH', KEYS[4], ARGV[1])
  redis.call('LPUSH', KEYS[6], 1)
  redis.call('PEXPIRE', KEYS[6], 60000)
end
return 1
