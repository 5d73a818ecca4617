"""The moves of a message of the native Redis backend, each one atomic, and harmless when it is repeated.

A message is in its queue or in the slot of one worker at every instant; a slot is a list that holds at most
the one message that its worker has. A record is `id \\n expires \\n lane \\n frame`: `expires` in ms of the
server's clock (0: never), `lane` the inbox of the caller that waits ("": nobody does). Whoever does
not hold the message in its slot can neither acknowledge nor answer it. The id of a message that is done is
remembered for 10 s, so that a late repetition of its sending is noticed.
"""

from __future__ import annotations

_NOW = "local t = redis.call('TIME') local now = t[1] * 1000 + math.floor(t[2] / 1000)\n"

SEND = (
    _NOW
    + """
-- KEYS queue bell ids inbox   ARGV id ttl_ms lane frame max_length   -> 1 sent, 0 it was there, -1 full
if tonumber(ARGV[5]) > 0 and redis.call('LLEN', KEYS[1]) >= tonumber(ARGV[5]) then return -1 end
redis.call('ZREMRANGEBYSCORE', KEYS[3], 1, now)
local expires = tonumber(ARGV[2]) > 0 and now + ARGV[2] or 0
local forgotten = expires > 0 and expires + 10000 or '+inf'
if redis.call('ZADD', KEYS[3], 'NX', forgotten, ARGV[1]) == 0 then return 0 end
redis.call('PEXPIRE', KEYS[3], 86400000)
for _ = 1, 2 do  -- the expired leave no trace, even if nobody serves the queue
  local head = redis.call('LINDEX', KEYS[1], 0)
  local until_ = head and tonumber(string.match(head, '^[^\\n]*\\n(%d+)'))
  if until_ and until_ > 0 and until_ <= now then redis.call('LPOP', KEYS[1]) else break end
end
if ARGV[3] ~= '' then redis.call('DEL', KEYS[4]) end
local record = {ARGV[1], string.format('%d', expires), ARGV[3], ARGV[4]}
redis.call('RPUSH', KEYS[1], table.concat(record, '\\n'))
redis.call('LPUSH', KEYS[2], 1)
redis.call('PEXPIRE', KEYS[2], 60000)
return 1
"""
)

NEXT = (
    _NOW
    + """
-- KEYS alive [queue slot ids cancelled deaths bell] ...
-- -> {number of the queue, record, ms left or -1, deaths} | nil: nothing to do | 0: it has expired meanwhile
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
local function found(k, record, id, expires)
  local left = expires == 0 and -1 or math.max(0, expires - now)
  return {(k - 2) / 6, record, left, redis.call('HGET', KEYS[k + 4], id) or 0}
end
for k = 2, #KEYS, 6 do  -- the answer to an earlier call was lost
  local record = redis.call('LINDEX', KEYS[k + 1], 0)
  if record then
    local id, expires = string.match(record, '^([^\\n]*)\\n(%d+)')
    return found(k, record, id, tonumber(expires))
  end
end
for k = 2, #KEYS, 6 do
  while true do
    local record = redis.call('LMOVE', KEYS[k], KEYS[k + 1], 'LEFT', 'RIGHT')
    if not record then
      redis.call('DEL', KEYS[k + 5])
      break
    end
    local id, expires = string.match(record, '^([^\\n]*)\\n(%d+)')
    if not id then
      redis.call('LPOP', KEYS[k + 1])
    else
      expires = tonumber(expires)
      if (expires == 0 or expires > now) and redis.call('SREM', KEYS[k + 3], id) == 0 then
        return found(k, record, id, expires)
      end
      redis.call('LPOP', KEYS[k + 1])
      redis.call('ZADD', KEYS[k + 2], 'XX', now + 10000, id)
    end
  end
end
return false
"""
)

_MINE = """
local record = redis.call('LINDEX', KEYS[1], 0)
if not record or string.sub(record, 1, #ARGV[1] + 1) ~= ARGV[1] .. '\\n' then return 0 end
"""

ACK = (
    _MINE
    + _NOW
    + """
-- KEYS slot ids deaths inbox cancelled   ARGV id frame number   -> 1 done, 0 it is not held (any more)
redis.call('LPOP', KEYS[1])
redis.call('SREM', KEYS[5], ARGV[1])
redis.call('ZADD', KEYS[2], 'XX', now + 10000, ARGV[1])
redis.call('HDEL', KEYS[3], ARGV[1])
if ARGV[2] ~= '' then
  redis.call('XADD', KEYS[4], '*', 'm', ARGV[2], 'i', ARGV[1], 'n', ARGV[3])
  redis.call('PEXPIRE', KEYS[4], 60000)
end
return 1
"""
)

REPLY = (
    _MINE
    + """
-- KEYS slot inbox cancelled   ARGV id frame number   -> 1 sent, 0 nobody listens
if redis.call('SISMEMBER', KEYS[3], ARGV[1]) == 1 then return 0 end
redis.call('XADD', KEYS[2], '*', 'm', ARGV[2], 'i', ARGV[1], 'n', ARGV[3])
redis.call('PEXPIRE', KEYS[2], 60000)
return 1
"""
)

FORBID = (
    _MINE
    + """
-- KEYS slot deaths   ARGV id   -> 1 the next death is the last, 0 it is not held (any more)
redis.call('HSET', KEYS[2], ARGV[1], 1000000)
return 1
"""
)

RECOVER = (
    _NOW
    + """
-- KEYS alive slot queue bell ids deaths dead   ARGV force died max_deliveries lost
-- -> 0 it lives, 1 nothing was held, 2 back in the queue, 3 given up
if ARGV[1] == '0' and redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
local outcome = 1
local record = redis.call('LPOP', KEYS[2])
if record then
  local id, expires, lane = string.match(record, '^([^\\n]*)\\n(%d+)\\n([^\\n]*)\\n')
  local deaths = (tonumber(redis.call('HGET', KEYS[6], id)) or 0) + ARGV[2]
  if deaths >= tonumber(ARGV[3]) then
    redis.call('HDEL', KEYS[6], id)
    redis.call('ZADD', KEYS[5], 'XX', now + 10000, id)
    redis.call('LPUSH', KEYS[7], record)
    redis.call('LTRIM', KEYS[7], 0, 9999)
    if lane ~= '' then
      redis.call('XADD', lane, '*', 'm', ARGV[4], 'i', id, 'n', 0)
      redis.call('PEXPIRE', lane, 60000)
    end
    outcome = 3
  else
    if ARGV[2] == '1' then redis.call('HSET', KEYS[6], id, deaths) end
    redis.call('LPUSH', KEYS[3], record)
    redis.call('LPUSH', KEYS[4], 1)
    redis.call('PEXPIRE', KEYS[4], 60000)
    outcome = 2
  end
end
return outcome
"""
)

WITHDRAW = """
-- KEYS ids cancelled   ARGV id channel   It is dropped when a worker comes to it; one that has it is told.
if redis.call('ZSCORE', KEYS[1], ARGV[1]) then
  redis.call('SADD', KEYS[2], ARGV[1])
  redis.call('PEXPIRE', KEYS[2], 86400000)
  redis.call('PUBLISH', ARGV[2], ARGV[1])
end
return 1
"""
