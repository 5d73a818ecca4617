-- include now
-- include answer
-- KEYS started worker job queue bell failed
-- ARGV id worker_name force died max_deliveries keep_s why frame executions
-- -> 0 nothing to do, 1 back in the queue, 2 given up
if ARGV[3] == '0' and redis.call('EXISTS', KEYS[2]) == 1 then return 0 end
if redis.call('ZREM', KEYS[1], ARGV[1] .. ':' .. ARGV[2]) == 0 then return 0 end
-- include let_go
if redis.call('TYPE', KEYS[3]).ok ~= 'hash' then return 0 end
local lost = (tonumber(redis.call('HGET', KEYS[3], 'rpc_lost')) or 0) + ARGV[4]
redis.call('HSET', KEYS[3], 'rpc_lost', string.format('%d', lost))
local once = redis.call('HEXISTS', KEYS[3], 'rpc_once') == 1
if once or lost >= tonumber(ARGV[5]) then
  redis.call('HSET', KEYS[3], 'status', 'failed', 'exc_info', ARGV[7],
    'rpc_dead', string.format('%.0f', t[1] * 1000000 + t[2]))
  redis.call('EXPIRE', KEYS[3], ARGV[6])
  redis.call('ZADD', KEYS[6], t[1] + ARGV[6], ARGV[1])
  local reply_to = redis.call('HGET', KEYS[3], 'rpc_reply_to')
  if reply_to then redis.pcall('XADD', 'rpc:re:' .. reply_to, 'NOMKSTREAM', '*', 'm', ARGV[8]) end
  local once = redis.call('HGET', KEYS[3], 'rpc_key')
  if once then answer(once, ARGV[1], ARGV[8], false) end
  return 2
end
redis.call('HSET', KEYS[3], 'status', 'queued')
local expires = tonumber(redis.call('HGET', KEYS[3], 'rpc_expires'))
if expires then redis.call('PEXPIREAT', KEYS[3], string.format('%d', expires + 5000)) end
redis.call('LPUSH', KEYS[4], ARGV[1])
redis.call('LPUSH', KEYS[5], 1)
redis.call('PEXPIRE', KEYS[5], 60000)
return 1
