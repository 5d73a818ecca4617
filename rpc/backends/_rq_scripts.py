"""The moves of a job between rq's keys, each one atomic, and harmless when it is carried out twice.

rq's own dequeue pops, and then writes down in other commands what it popped; whatever dies in between takes
the job along. Here a job is in a queue, or in the registry of started jobs under the name of the worker that
has it, at every instant. The keys and fields are rq's; those that start with `rpc_` are ours. Time is the
server's. A job's key is built in the script: rq does not run on a cluster anyway.
"""

from __future__ import annotations

_NOW = "local t = redis.call('TIME') local now = t[1] * 1000 + math.floor(t[2] / 1000)\n"

SEND = """
-- KEYS job queue queues bell [way back]   ARGV id ttl_ms way_back_ms field value ...
for _ = 1, 2 do  -- expired jobs leave their id behind: sweep two for each that comes
  local head = redis.call('LINDEX', KEYS[2], 0)
  if head and redis.call('EXISTS', 'rq:job:' .. head) == 0 then redis.call('LPOP', KEYS[2]) else break end
end
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
redis.call('HSET', KEYS[1], unpack(ARGV, 4))
if tonumber(ARGV[2]) > 0 then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
if KEYS[5] then
  redis.call('XADD', KEYS[5], '0-1', 'm', '')
  redis.call('PEXPIRE', KEYS[5], ARGV[3])
end
redis.call('SADD', KEYS[3], KEYS[2])
redis.call('RPUSH', KEYS[2], ARGV[1])
redis.call('LPUSH', KEYS[4], 1)
redis.call('PEXPIRE', KEYS[4], 60000)
return 1
"""

CLAIM = (
    _NOW
    + """
-- KEYS worker [queue started bell] ...   ARGV worker_name horizon_s started_at
-- -> {number of the queue, id, ms left or -1, hash} | nil: nothing to do | 0: this worker is not registered
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
local id, at
local held = redis.call('HGET', KEYS[1], 'current_job')
if held then  -- the answer to an earlier claim was lost
  for k = 2, #KEYS, 3 do
    if redis.call('ZSCORE', KEYS[k + 1], held .. ':' .. ARGV[1]) then id, at = held, k break end
  end
end
for k = 2, #KEYS, 3 do
  if id then break end
  id, at = redis.call('LPOP', KEYS[k]), k
end
if not id then
  for k = 2, #KEYS, 3 do redis.call('DEL', KEYS[k + 2]) end
  return false
end
redis.call('ZADD', KEYS[at + 1], t[1] + ARGV[2], id .. ':' .. ARGV[1])
redis.call('HSET', KEYS[1], 'current_job', id, 'state', 'busy')
local job, left, hash = 'rq:job:' .. id, -1, {}
if redis.call('TYPE', job).ok == 'hash' then
  local expires = tonumber(redis.call('HGET', job, 'rpc_expires'))
  local pttl = redis.call('PTTL', job)
  if not expires and pttl >= 0 then expires = now + pttl - 5000 end
  if expires then
    left = math.max(0, expires - now)
    redis.call('HSET', job, 'rpc_expires', string.format('%d', expires))
  end
  redis.call('PERSIST', job)
  if id ~= held then
    local deliveries = tonumber(redis.call('HGET', job, 'rpc_deliveries')) or 0
    redis.call('HSET', job, 'rpc_deliveries', string.format('%d', deliveries + 1))
  end
  redis.call('HSET', job, 'status', 'started', 'worker_name', ARGV[1],
    'started_at', ARGV[3], 'last_heartbeat', ARGV[3])
  hash = redis.call('HGETALL', job)
end
return {(at - 2) / 3, id, left, hash}
"""
)

REPLY = """
-- KEYS started way_back   ARGV id worker_name frame number last   -> 1 sent, 0 nobody listens
if not redis.call('ZSCORE', KEYS[1], ARGV[1] .. ':' .. ARGV[2]) then return 0 end
local sent = redis.pcall('XADD', KEYS[2], 'NOMKSTREAM', ARGV[4] .. '-0', 'm', ARGV[3])
if not sent then return 0 end
if sent.err and ARGV[5] == '1' then redis.pcall('XADD', KEYS[2], '*', 'm', ARGV[3]) end
return 1  -- also if the same reply is there already, from an earlier delivery: the first one counts
"""

FORBID = """
-- KEYS started job   ARGV id worker_name   -> 1 done, 0 it was given to another worker meanwhile
if not redis.call('ZSCORE', KEYS[1], ARGV[1] .. ':' .. ARGV[2]) then return 0 end
if redis.call('TYPE', KEYS[2]).ok ~= 'hash' then return 0 end
redis.call('HSET', KEYS[2], 'rpc_once', 1)
redis.call('HDEL', KEYS[2], 'retries_left')
return 1
"""

FINISH = (
    _NOW
    + """
-- KEYS started worker job registry way_back
-- ARGV id worker_name status ended_at keep_s why frame number
-- -> 1 done, 0 it was given to another worker meanwhile
if redis.call('HGET', KEYS[2], 'current_job') == ARGV[1] then redis.call('HDEL', KEYS[2], 'current_job') end
if redis.call('EXISTS', KEYS[2]) == 1 then redis.call('HSET', KEYS[2], 'state', 'idle') end
if redis.call('ZREM', KEYS[1], ARGV[1] .. ':' .. ARGV[2]) == 0 then
  if redis.call('TYPE', KEYS[3]).ok ~= 'hash' then return 0 end
  local done = redis.call('HMGET', KEYS[3], 'worker_name', 'status')
  return done[1] == ARGV[2] and done[2] == ARGV[3] and 1 or 0  -- 1: the answer to this was lost before
end
if ARGV[7] ~= '' and redis.call('EXISTS', KEYS[5]) == 1 then
  local sent = redis.pcall('XADD', KEYS[5], ARGV[8] .. '-0', 'm', ARGV[7])
  if sent.err then redis.pcall('XADD', KEYS[5], '*', 'm', ARGV[7]) end  -- another worker has said more
end
local finished = ARGV[3] == 'finished'
if redis.call('EXISTS', KEYS[2]) == 1 then
  redis.call('HINCRBY', KEYS[2], finished and 'successful_job_count' or 'failed_job_count', 1)
end
if redis.call('TYPE', KEYS[3]).ok ~= 'hash' then return 1 end
if tonumber(ARGV[5]) <= 0 then
  redis.call('DEL', KEYS[3])
  return 1
end
redis.call('HSET', KEYS[3], 'status', ARGV[3], 'ended_at', ARGV[4])
if ARGV[6] ~= '' then redis.call('HSET', KEYS[3], 'exc_info', ARGV[6]) end
redis.call('EXPIRE', KEYS[3], ARGV[5])
redis.call('ZADD', KEYS[4], t[1] + ARGV[5], ARGV[1])
return 1
"""
)

RECOVER = (
    _NOW
    + """
-- KEYS started worker job queue bell failed
-- ARGV id worker_name force died max_deliveries keep_s why frame
-- -> 0 nothing to do, 1 back in the queue, 2 given up
if ARGV[3] == '0' and redis.call('EXISTS', KEYS[2]) == 1 then return 0 end
if redis.call('ZREM', KEYS[1], ARGV[1] .. ':' .. ARGV[2]) == 0 then return 0 end
if redis.call('HGET', KEYS[2], 'current_job') == ARGV[1] then redis.call('HDEL', KEYS[2], 'current_job') end
if redis.call('TYPE', KEYS[3]).ok ~= 'hash' then return 0 end
local lost = (tonumber(redis.call('HGET', KEYS[3], 'rpc_lost')) or 0) + ARGV[4]
redis.call('HSET', KEYS[3], 'rpc_lost', string.format('%d', lost))
local once = redis.call('HEXISTS', KEYS[3], 'rpc_once') == 1
if once or lost >= tonumber(ARGV[5]) then
  redis.call('HSET', KEYS[3], 'status', 'failed', 'exc_info', ARGV[7])
  redis.call('EXPIRE', KEYS[3], ARGV[6])
  redis.call('ZADD', KEYS[6], t[1] + ARGV[6], ARGV[1])
  local reply_to = redis.call('HGET', KEYS[3], 'rpc_reply_to')
  if reply_to then redis.pcall('XADD', 'rpc:re:' .. reply_to, 'NOMKSTREAM', '*', 'm', ARGV[8]) end
  return 2
end
redis.call('HSET', KEYS[3], 'status', 'queued')
local expires = tonumber(redis.call('HGET', KEYS[3], 'rpc_expires'))
if expires then redis.call('PEXPIREAT', KEYS[3], string.format('%d', expires + 5000)) end
redis.call('LPUSH', KEYS[4], ARGV[1])
redis.call('LPUSH', KEYS[5], 1)
redis.call('PEXPIRE', KEYS[5], 60000)
return 1
"""
)

WITHDRAW = """
-- KEYS queue job   ARGV id   -> 1 it was not started and is gone, 0 it runs, or ran
if redis.call('LREM', KEYS[1], 1, ARGV[1]) == 1 then
  redis.call('DEL', KEYS[2])
  return 1
end
if redis.call('TYPE', KEYS[2]).ok == 'hash' and redis.call('HGET', KEYS[2], 'status') == 'started' then
  local inbox = 'rpc:cancel:' .. (redis.call('HGET', KEYS[2], 'worker_name') or '')
  redis.call('RPUSH', inbox, ARGV[1])
  redis.call('PEXPIRE', inbox, 60000)
end
return 0
"""

BEAT = (
    _NOW
    + """
-- KEYS worker [started job]   ARGV lease_s at horizon_s [id worker_name]   -> 0: it has expired meanwhile
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
redis.call('HSET', KEYS[1], 'last_heartbeat', ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[1])
if KEYS[2] then
  redis.call('ZADD', KEYS[2], 'XX', t[1] + ARGV[3], ARGV[4] .. ':' .. ARGV[5])
  if redis.call('EXISTS', KEYS[3]) == 1 then redis.call('HSET', KEYS[3], 'last_heartbeat', ARGV[2]) end
end
return 1
"""
)
