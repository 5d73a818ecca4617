#!lua flags=allow-oom
-- include ours
-- include own
-- KEYS started job   ARGV id worker_name   -> 1 done, 0 it was given to another worker meanwhile
if not own('ZSCORE', KEYS[1], ARGV[1] .. ':' .. ARGV[2]) then return 0 end
if not is_ours(KEYS[2]) then return 0 end
redis.call('HSET', KEYS[2], 'rpc_once', 1)
redis.call('HDEL', KEYS[2], 'retries_left')
return 1
