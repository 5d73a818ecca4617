#!lua flags=allow-oom
-- include schedule
-- include ours
-- include line
-- KEYS started worker job scheduled later queue bell
-- ARGV id worker_name delay_ms - - - - - executions field value ...
-- -> 1 it is scheduled, or gone, 0 it was given to another worker meanwhile, 2 it was withdrawn, and is held still
if is_ours(KEYS[3]) and redis.call('HEXISTS', KEYS[3], 'rpc_withdrawn') == 1
  and own('ZSCORE', KEYS[1], ARGV[1] .. ':' .. ARGV[2]) then return 2 end
-- include let_go
if is_hash(KEYS[2]) then redis.call('HSET', KEYS[2], 'state', 'idle') end
if own('ZREM', KEYS[1], ARGV[1] .. ':' .. ARGV[2]) == 0 then
  return is_ours(KEYS[3]) and redis.call('HGET', KEYS[3], 'rpc_postponed') == ARGV[2] and 1 or 0
end
if not is_ours(KEYS[3]) then
  step(KEYS[6], KEYS[7], KEYS[3], ARGV[1])
  return 1
end
redis.call('HSET', KEYS[3], 'rpc_postponed', ARGV[2], unpack(ARGV, 10))
redis.call('HDEL', KEYS[3], 'rpc_deliveries', 'rpc_lost', 'rpc_once')
local expires = tonumber(redis.call('HGET', KEYS[3], 'rpc_expires'))
if expires then redis.call('PEXPIREAT', KEYS[3], string.format('%d', expires + 5000)) end
schedule(KEYS[4], KEYS[5], KEYS[3], ARGV[1], tonumber(ARGV[3]))
return 1
