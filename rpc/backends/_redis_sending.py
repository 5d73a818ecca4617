"""How a message comes into its queue: scripts of the native Redis backend. What a record and a token are,
`_redis_scripts` says.

An inbox is one caller's at a time, whose last reply a new request clears away; or it is shared by many, who
are told apart by the id that each entry has.
"""

from __future__ import annotations

from ._redis_scripts import BODY, NOW, PARTS, REPLYING, RING

_ENQUEUE = """
local function sweep(queue, most)  -- the unwanted leave, even if nobody serves the queue
  for _ = 1, most do
    local head = redis.call('LINDEX', queue, 0)
    local kind, _, id, _, once = string.match(head or '', PARTS)
    if not kind or string.lower(kind) == 'k' or redis.call('EXISTS', queue ..':t:'.. id) == 1 then return end
    forget(queue, redis.call('LPOP', queue))
    once = queue .. ':o:' .. once
    if redis.call('GET', once) == 'r' .. id then redis.call('DEL', once, once .. ':w') end
  end
end
local function has_room(queue, most, looks, coming)
  if most == '0' or redis.call('LLEN', queue) + coming < tonumber(most) then return true end
  sweep(queue, looks)
  return redis.call('LLEN', queue) + coming < tonumber(most)
end
local function enqueue(queue, bell, looks, ...)
  if redis.call('RPUSH', queue, ...) == select('#', ...) then ring(bell) else sweep(queue, looks) end
end
""".replace("PARTS", PARTS)

_FULL = """
local function is_answered(inbox, id)
  for _, entry in ipairs(inbox and redis.call('LRANGE', inbox, 0, -1) or {}) do
    if string.find(entry, '\\n' .. id .. '\\n', 1, true) then return true end
  end
end
local function clear(inbox, shared)
  if inbox and shared ~= '1' then redis.call('DEL', inbox) end
end
local function full(queue, record, id, inbox, shared)
  forget(queue, record)
  clear(inbox, shared)
  if inbox then reply_to(inbox, -1, id, '') end
  return -1
end
"""

_SENDING = RING + BODY + _ENQUEUE + REPLYING + _FULL

SEND = (
    _SENDING
    + """
-- KEYS queue bell token [inbox]   ARGV id record token_ms max_length sweep again -> 1 sent, 0 known, -1 full
local inbox = KEYS[4]
if ARGV[6] == '1' and is_answered(inbox, ARGV[1]) then return 0 end
if not has_room(KEYS[1], ARGV[4], ARGV[5], 0) then
  if redis.call('EXISTS', KEYS[3]) == 1 then return 0 end
  return full(KEYS[1], ARGV[2], ARGV[1], inbox)
end
if not redis.call('SET', KEYS[3], '', 'NX', 'PX', ARGV[3]) then return 0 end
clear(inbox)
keep(KEYS[1], ARGV[2])
enqueue(KEYS[1], KEYS[2], ARGV[5], ARGV[2])
return 1
"""
)

SEND_MANY = (
    _SENDING
    + """
-- KEYS queue bell [shared inbox]   ARGV read last max_length sweep (id record token_ms)...
-- -> {as SEND, ...}   So many entries of the inbox were read, the last of which begins so: they are removed.
local queue, inbox, outcomes, records = KEYS[1], KEYS[3], {}, {}
if ARGV[1] ~= '0' then
  local entry = redis.call('LINDEX', inbox, ARGV[1] - 1)
  if entry and string.sub(entry, 1, #ARGV[2]) == ARGV[2] then redis.call('LTRIM', inbox, ARGV[1], -1) end
end
for n = 5, #ARGV, 3 do
  local id, record, token = ARGV[n], ARGV[n + 1], queue .. ':t:' .. ARGV[n]
  local outcome = 1
  if not has_room(queue, ARGV[3], ARGV[4], #records) then
    if redis.call('EXISTS', token) == 1 then
      outcome = 0
    else
      local way_back = string.find(record, '^%a%d*\\n[^\\n]*\\n[^\\n]') and inbox
      outcome = full(queue, record, id, way_back, '1')
      if way_back then redis.call('SET', token, '', 'PX', '10000') end  -- a late copy is refused, too
    end
  elseif not redis.call('SET', token, '', 'NX', 'PX', ARGV[n + 2]) then
    outcome = 0
  else
    keep(queue, record)
    records[#records + 1] = record
  end
  outcomes[#outcomes + 1] = outcome
end
if #records > 0 then enqueue(queue, KEYS[2], ARGV[4], unpack(records)) end
return outcomes
"""
)

SEND_ONCE = (
    _SENDING
    + """
-- KEYS queue bell token once [inbox]   ARGV id record token_ms max_length sweep shared window_ms
-- once: q<id> it was sent, r<id> it runs, d<frame> it was answered   -> as SEND
local id, token, once, inbox, shared = ARGV[1], KEYS[3], KEYS[4], KEYS[5], ARGV[6]
if is_answered(inbox, id) then return 0 end
local state = redis.call('GET', once)
if state then
  local how, first = string.sub(state, 1, 1), string.sub(state, 2)
  if how ~= 'd' and first == id then return 0 end
  local theirs = KEYS[1] .. ':t:' .. first
  local under_way = how == 'r' or (how == 'q' and redis.call('EXISTS', theirs) == 1)
  if how == 'd' or under_way then
    forget(KEYS[1], ARGV[2])
    clear(inbox, shared)
  end
  if how == 'd' and inbox then reply_to(inbox, 1, id, first) end
  if how == 'd' then return 0 end
  if under_way then
    if inbox then redis.call('HSET', once .. ':w', id, inbox) redis.call('PEXPIRE', once .. ':w', ARGV[7]) end
    if redis.call('PTTL', theirs) < tonumber(ARGV[3]) then redis.call('SET', theirs, '', 'PX', ARGV[3]) end
    return 0
  end
end
if not has_room(KEYS[1], ARGV[4], ARGV[5], 0) then return full(KEYS[1], ARGV[2], id, inbox, shared) end
redis.call('SET', once, 'q' .. id, 'PX', ARGV[7])
redis.call('SET', token, '', 'PX', ARGV[3])
clear(inbox, shared)
keep(KEYS[1], ARGV[2])
enqueue(KEYS[1], KEYS[2], ARGV[5], ARGV[2])
return 1
"""
)

SEND_LATER = (
    NOW
    + _SENDING
    + """
-- KEYS queue delayed token [inbox]   ARGV id record token_ms max_length sweep shared delay_ms channel
-- -> as SEND
if redis.call('EXISTS', KEYS[3]) == 1 then return 0 end
local length = redis.call('LLEN', KEYS[1]) + redis.call('ZCARD', KEYS[2])
if ARGV[4] ~= '0' and length >= 0 + ARGV[4] then return full(KEYS[1], ARGV[2], ARGV[1], KEYS[4], ARGV[6]) end
clear(KEYS[4], ARGV[6])
keep(KEYS[1], ARGV[2])
redis.call('SET', KEYS[3], '', 'PX', ARGV[3])
redis.call('ZADD', KEYS[2], now + 1 + ARGV[7], ARGV[2])  -- this millisecond is not over
redis.call('PUBLISH', ARGV[8], '')
return 1
"""
)
