#!lua flags=allow-oom
-- include now
-- include ours
-- include own
-- KEYS worker [started job]   ARGV lease_s at horizon_s [id worker_name executions]   -> 0: it has expired meanwhile
if not is_hash(KEYS[1]) then return 0 end
redis.call('HSET', KEYS[1], 'last_heartbeat', ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[1])
if KEYS[2] then
  own('ZADD', KEYS[2], 'XX', t[1] + ARGV[3], ARGV[4] .. ':' .. ARGV[5])
  local execution = ARGV[6] .. ARGV[4] .. ':' .. ARGV[5]
  if ARGV[6] ~= '' and is_hash(execution) then
    redis.call('HSET', execution, 'last_heartbeat', t[1])
    redis.call('EXPIRE', execution, ARGV[3])
    redis.call('EXPIRE', KEYS[1] .. ':executions', ARGV[3])
  end
  if is_ours(KEYS[3]) then redis.call('HSET', KEYS[3], 'last_heartbeat', ARGV[2]) end
end
return 1
