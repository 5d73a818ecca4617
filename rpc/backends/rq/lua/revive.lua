-- include ours
-- include enqueue
-- include line
-- KEYS failed job results [queue queues bell: back into the queue with it]   ARGV id death field value ...
-- -> 1 done, 0 it is no dead letter, or one of another death
if not is_ours(KEYS[2]) or redis.call('HGET', KEYS[2], 'rpc_dead') ~= ARGV[2] then return 0 end
own('ZREM', KEYS[1], ARGV[1])
redis.call('DEL', KEYS[2], KEYS[3])
if KEYS[4] then
  redis.call('HSET', KEYS[2], unpack(ARGV, 3))
  if line_up(KEYS[6], KEYS[2], ARGV[1]) then enqueue(KEYS[4], KEYS[5], KEYS[6], ARGV[1]) end
end
return 1
