-- include enqueue
-- KEYS failed job [queue queues bell: back into the queue with it]   ARGV id field value ...
-- -> 1 done, 0 it is no dead letter
if redis.call('TYPE', KEYS[2]).ok ~= 'hash' or redis.call('HEXISTS', KEYS[2], 'rpc_dead') == 0 then return 0 end
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('DEL', KEYS[2])
if KEYS[3] then
  redis.call('HSET', KEYS[2], unpack(ARGV, 2))
  enqueue(KEYS[3], KEYS[4], KEYS[5], ARGV[1])
end
return 1
