#!lua flags=allow-oom
-- include now
-- include ours
-- include bell
-- include answer
-- include line
-- KEYS started worker job queue bell failed results
-- ARGV id worker_name force died max_deliveries keep_s why frame executions shown
-- -> 0 nothing to do, 1 back in the queue, 2 given up
if ARGV[3] == '0' and redis.call('EXISTS', KEYS[2]) == 1 then return 0 end
if own('ZREM', KEYS[1], ARGV[1] .. ':' .. ARGV[2]) == 0 then return 0 end
-- include let_go
if not is_ours(KEYS[3]) then
  step(KEYS[4], KEYS[5], KEYS[3], ARGV[1])
  return 0
end
local lost = (tonumber(redis.call('HGET', KEYS[3], 'rpc_lost')) or 0) + ARGV[4]
redis.call('HSET', KEYS[3], 'rpc_lost', string.format('%d', lost))
local once = redis.call('HEXISTS', KEYS[3], 'rpc_once') == 1
if once or lost >= tonumber(ARGV[5]) then
  step(KEYS[4], KEYS[5], KEYS[3], ARGV[1])
  redis.call('HSET', KEYS[3], 'status', 'failed', 'exc_info', ARGV[7],
    'rpc_dead', string.format('%.0f', t[1] * 1000000 + t[2]))
  redis.pcall('XADD', KEYS[7], 'MAXLEN', 10, '*', 'type', 2, 'worker_name', ARGV[2], 'exc_string', ARGV[10])
  redis.call('EXPIRE', KEYS[7], ARGV[6])
  redis.call('EXPIRE', KEYS[3], ARGV[6])
  own('ZADD', KEYS[6], t[1] + ARGV[6], ARGV[1])
  local reply_to = redis.call('HGET', KEYS[3], 'rpc_reply_to')
  if reply_to then redis.pcall('XADD', way_to(reply_to, KEYS[5]), 'NOMKSTREAM', '*', 'm', ARGV[8]) end
  local key = redis.call('HGET', KEYS[3], 'rpc_key')
  if key then answer(key, ARGV[1], ARGV[8], false) end
  return 2
end
redis.call('HSET', KEYS[3], 'status', 'queued')
local expires = tonumber(redis.call('HGET', KEYS[3], 'rpc_expires'))
if expires then redis.call('PEXPIREAT', KEYS[3], string.format('%d', expires + 5000)) end
own('LPUSH', KEYS[4], ARGV[1])
ring(KEYS[5])
return 1
