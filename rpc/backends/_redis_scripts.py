"""The moves of a message of the native Redis backend, each one atomic, and harmless when it is repeated.

A message is in its queue, among the delayed, or in the slot of one worker at every instant; a slot is a list
of what its worker has taken and not acknowledged, the oldest first. A record is
`kind deaths \\n id \\n lane \\n once \\n frame`:

    kind    k: it waits as long as it must; w: it is wanted only while its token exists; K, W: the same, but
            the frame is too large to be moved about, and lies in a key of its own
    deaths  how many workers died that had it; nothing for none
    lane    the inbox of the caller that waits; nothing for none
    once    the digest of its idempotency key; nothing for none

The token of a message is a key that Redis lets expire with the message. Whoever leaves deletes it, and a
repeated sending finds it. Keys that are derived here (tokens, frames) share the hash tag of their queue; but
while a slot of a cluster moves they may be on the other node: nothing is dropped because one is not found.
"""

from __future__ import annotations

ANYWAY = "#!lua flags=allow-oom\n"
"""First line (Redis >= 7) of what must go on when the memory is used up, because it frees some."""

UNWANTED = -2
"""What Redis says of the time that a token has left which is not there."""

GIVEN_UP, NOT_EMPTY = 0, 1
"""What NEXT returns besides messages and nothing: this worker gave no sign of life for too long; a slot has
something that its worker may not know of."""

PARTS = r"'^(%a)(%d*)\n([^\n]*)\n([^\n]*)\n([^\n]*)\n'"

_RING = """
local function ring(bell)  -- once is enough: whoever is woken up looks at all that is there
  if redis.call('EXISTS', bell) == 0 then redis.call('LPUSH', bell, '1') end
  redis.call('PEXPIRE', bell, '60000')
end
"""

_NOW = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
"""

_BODY = """
local function body_of(queue, record)  -- the key of its frame, if that lies elsewhere
  return queue .. ':b:' .. (string.match(record, '^%u%d*\\n([^\\n]*)') or '')
end
local function keep(queue, record)
  if string.find(record, '^K') then redis.call('PERSIST', body_of(queue, record)) end
end
local function forget(queue, record) redis.call('UNLINK', body_of(queue, record)) end
"""

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
local function has_room(queue, most, looks)
  if most == '0' or redis.call('LLEN', queue) < tonumber(most) then return true end
  sweep(queue, looks)
  return redis.call('LLEN', queue) < tonumber(most)
end
local function enqueue(queue, bell, record, looks)
  keep(queue, record)
  if redis.call('RPUSH', queue, record) == 1 then ring(bell) else sweep(queue, looks) end
end
""".replace("PARTS", PARTS)

_REPLY = """
local function reply_to(inbox, number, id, frame)
  redis.call('RPUSH', inbox, number .. '\\n' .. id .. '\\n' .. frame)
  redis.call('PEXPIRE', inbox, '60000')
end
"""

_FULL = """
local function is_answered(inbox, id)
  for _, entry in ipairs(inbox and redis.call('LRANGE', inbox, 0, -1) or {}) do
    if string.find(entry, '\\n' .. id .. '\\n', 1, true) then return true end
  end
end
local function full(queue, record, id, inbox)
  forget(queue, record)
  if inbox then redis.call('DEL', inbox) reply_to(inbox, -1, id, '') end
  return -1
end
"""

_SENDING = _RING + _BODY + _ENQUEUE + _REPLY + _FULL

SEND = (
    _SENDING
    + """
-- KEYS queue bell token [inbox]   ARGV id record token_ms max_length sweep again -> 1 sent, 0 known, -1 full
local inbox = KEYS[4]
if ARGV[6] == '1' and is_answered(inbox, ARGV[1]) then return 0 end
if not has_room(KEYS[1], ARGV[4], ARGV[5]) then
  if redis.call('EXISTS', KEYS[3]) == 1 then return 0 end
  return full(KEYS[1], ARGV[2], ARGV[1], inbox)
end
if not redis.call('SET', KEYS[3], '', 'NX', 'PX', ARGV[3]) then return 0 end
if inbox then redis.call('DEL', inbox) end
enqueue(KEYS[1], KEYS[2], ARGV[2], ARGV[5])
return 1
"""
)

SEND_ONCE = (
    _SENDING
    + """
-- KEYS queue bell token once [inbox]   ARGV id record token_ms max_length sweep window_ms
-- once: q<id> it was sent, r<id> it runs, d<frame> it was answered   -> as SEND
local id, token, once, inbox = ARGV[1], KEYS[3], KEYS[4], KEYS[5]
if is_answered(inbox, id) then return 0 end
local state = redis.call('GET', once)
if state then
  local how, first = string.sub(state, 1, 1), string.sub(state, 2)
  if how ~= 'd' and first == id then return 0 end
  local theirs = KEYS[1] .. ':t:' .. first
  local under_way = how == 'r' or (how == 'q' and redis.call('EXISTS', theirs) == 1)
  if how == 'd' or under_way then
    forget(KEYS[1], ARGV[2])
    if inbox then redis.call('DEL', inbox) end
  end
  if how == 'd' and inbox then reply_to(inbox, 1, id, first) end
  if how == 'd' then return 0 end
  if under_way then
    if inbox then redis.call('HSET', once .. ':w', id, inbox) redis.call('PEXPIRE', once .. ':w', ARGV[6]) end
    if redis.call('PTTL', theirs) < tonumber(ARGV[3]) then redis.call('SET', theirs, '', 'PX', ARGV[3]) end
    return 0
  end
end
if not has_room(KEYS[1], ARGV[4], ARGV[5]) then return full(KEYS[1], ARGV[2], id, inbox) end
redis.call('SET', once, 'q' .. id, 'PX', ARGV[6])
redis.call('SET', token, '', 'PX', ARGV[3])
if inbox then redis.call('DEL', inbox) end
enqueue(KEYS[1], KEYS[2], ARGV[2], ARGV[5])
return 1
"""
)

SEND_LATER = (
    _NOW
    + _SENDING
    + """
-- KEYS queue delayed token [inbox]   ARGV id record token_ms max_length sweep delay_ms channel   -> as SEND
if redis.call('EXISTS', KEYS[3]) == 1 then return 0 end
local length = redis.call('LLEN', KEYS[1]) + redis.call('ZCARD', KEYS[2])
if ARGV[4] ~= '0' and length >= 0 + ARGV[4] then return full(KEYS[1], ARGV[2], ARGV[1], KEYS[4]) end
if KEYS[4] then redis.call('DEL', KEYS[4]) end
keep(KEYS[1], ARGV[2])
redis.call('SET', KEYS[3], '', 'PX', ARGV[3])
redis.call('ZADD', KEYS[2], now + ARGV[6], ARGV[2])
redis.call('PUBLISH', ARGV[7], '')
return 1
"""
)

PROMOTE = (
    ANYWAY
    + _RING
    + _NOW
    + """
-- KEYS delayed queue bell   What is due moves to its queue.   -> ms until more is due, -1 if nothing is
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, 100)
for _, record in ipairs(due) do
  redis.call('RPUSH', KEYS[2], record)
  redis.call('ZREM', KEYS[1], record)
end
if #due > 0 then ring(KEYS[3]) end
local next = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
return next[2] and math.max(0, next[2] - now) or -1
"""
)

NEXT = (
    ANYWAY
    + _RING
    + """
-- KEYS alive slot... (queue bell)...   ARGV most queues
-- -> {number of the queue, record, ms left or -1 or UNWANTED, ...} | nil: nothing | GIVEN_UP | NOT_EMPTY
local queues, room, taken = tonumber(ARGV[2]), tonumber(ARGV[1]), {}
local alive_and_slots = {unpack(KEYS, 1, 1 + queues)}
for n = 1, queues do alive_and_slots[1 + queues + n] = KEYS[1] end
if redis.call('EXISTS', unpack(alive_and_slots)) ~= 1 + queues then return redis.call('EXISTS', KEYS[1]) end
for n = 1, queues do
  local queue, slot = KEYS[queues + 2 * n], KEYS[1 + n]
  while room > 0 do
    local record = redis.call('LMOVE', queue, slot, 'LEFT', 'RIGHT')
    if not record then break end
    local kind, deaths, id, _, once = string.match(record, PARTS)
    local left = -1
    if kind == 'w' or kind == 'W' then left = redis.call('PTTL', queue .. ':t:' .. id) end
    if not kind then
      redis.call('RPOP', slot)
    elseif deaths ~= '' and #taken > 0 then  -- what may have killed a worker is handled alone
      redis.call('LMOVE', slot, queue, 'RIGHT', 'LEFT')
      room = 0
    else
      local state = queue .. ':o:' .. once
      if once ~= '' and left ~= -2 and redis.call('GET', state) == 'q' .. id then
        redis.call('SET', state, 'r' .. id, 'KEEPTTL')
      end
      taken[#taken + 1], taken[#taken + 2], taken[#taken + 3] = n - 1, record, left
      room = deaths == '' and room - 1 or 0
    end
  end
end
if room > 0 then return #taken > 0 and taken end
for n = 1, queues do
  if redis.call('EXISTS', KEYS[queues + 2 * n]) == 1 then ring(KEYS[queues + 2 * n + 1]) end
end
return taken
"""
).replace("PARTS", PARTS)

_ANSWER = (
    _REPLY
    + """
local function answer(queue, record, number, frame)  -- the last reply, to whoever waits for it
  local kind, _, id, lane, once = string.match(record, PARTS)
  local token = queue .. ':t:' .. id
  if lane ~= '' and frame ~= '' then reply_to(lane, number, id, frame) end
  local key = queue .. ':o:' .. once
  local state = once ~= '' and redis.call('GET', key)
  if once ~= '' and (not state or state == 'q' .. id or state == 'r' .. id) then
    local waiting = redis.call('HGETALL', key .. ':w')
    for n = 1, #waiting, 2 do
      if frame ~= '' then reply_to(waiting[n + 1], number, waiting[n], frame) end
    end
    redis.call('DEL', key .. ':w')
    if frame == '' or tonumber(number) == 0 then  -- nobody will ever be answered
      redis.call('DEL', key)
    else
      redis.call('SET', key, 'd' .. frame, 'XX', 'KEEPTTL')
    end
  end
  if kind == 'w' or kind == 'W' then redis.call('PEXPIRE', token, '10000') end  -- a late copy may come
end
"""
).replace("PARTS", PARTS)

_TAKE = """
local function take(slot, id)  -- out of the slot, if it is there
  local record = redis.call('LPOP', slot)
  if record and string.match(record, '^%a%d*\\n([^\\n]*)') == id then return record end
  if record then redis.call('LPUSH', slot, record) end
end
"""

ACK = (
    ANYWAY
    + _ANSWER
    + _TAKE
    + """
-- KEYS slot queue (token inbox)...   ARGV (id number frame)...   -> how many of them were held
local held = 0
for n = 1, #ARGV, 3 do
  local record = take(KEYS[1], ARGV[n])
  if record then
    held = held + 1
    answer(KEYS[2], record, ARGV[n + 1], ARGV[n + 2])
    if string.find(record, '^%u') then redis.call('UNLINK', KEYS[2] .. ':b:' .. ARGV[n]) end
  end
end
return held
"""
)

REPLY = (
    ANYWAY
    + _REPLY
    + """
-- KEYS slot token inbox   ARGV id number frame   -> 1 sent, 0 nobody listens, or it is not held any more
local record = redis.call('LINDEX', KEYS[1], 0)
if not record or string.match(record, '^%a%d*\\n([^\\n]*)') ~= ARGV[1] then return 0 end
if redis.call('EXISTS', KEYS[2]) == 0 then return 0 end
reply_to(KEYS[3], ARGV[2], ARGV[1], ARGV[3])
return 1
"""
)

FORBID = (
    ANYWAY
    + """
-- KEYS slot   ARGV id   -> 1 the next death is the last, 0 it is not held any more
local record = redis.call('LINDEX', KEYS[1], 0)
local kind, id, rest = string.match(record or '', '^(%a)%d*\\n([^\\n]*)(.*)')
if id ~= ARGV[1] then return 0 end
redis.call('LSET', KEYS[1], 0, kind .. '1000000\\n' .. id .. rest)
return 1
"""
)

POSTPONE = (
    ANYWAY
    + _TAKE
    + _NOW
    + """
-- KEYS slot delayed   ARGV id record delay_ms channel   -> 1 put among the delayed, 0 it was not held
if not take(KEYS[1], ARGV[1]) then return 0 end
redis.call('ZADD', KEYS[2], now + ARGV[3], ARGV[2])
redis.call('PUBLISH', ARGV[4], '')
return 1
"""
)

_BURY = (
    _NOW
    + """
local function bury(queue, dead, why, record)
  redis.call('LPUSH', dead, string.format('%d', now) .. '\\n' .. why .. '\\n' .. record)
  redis.call('LTRIM', dead, 0, 9999)
  local id = string.match(record, '^%u%d*\\n([^\\n]*)')
  if id then redis.call('PEXPIRE', queue .. ':b:' .. id, '604800000') end
end
"""
)

BURY = (
    ANYWAY
    + _ANSWER
    + _TAKE
    + _BURY
    + """
-- KEYS slot queue dead   ARGV id why number frame   -> 1 among the dead letters, 0 it was not held
local record = take(KEYS[1], ARGV[1])
if not record then return 0 end
answer(KEYS[2], record, ARGV[3], ARGV[4])
bury(KEYS[2], KEYS[3], ARGV[2], record)
return 1
"""
)

RECOVER = (
    ANYWAY
    + _RING
    + _ANSWER
    + _BURY
    + """
-- KEYS alive slot queue bell dead workers   ARGV force died max_deliveries lost why worker
-- -> {how many are back in the queue, how many were given up} | nil: it lives
if ARGV[1] == '0' and redis.call('EXISTS', KEYS[1]) == 1 then return false end
local back, given_up = 0, 0
while true do
  local record = redis.call('RPOP', KEYS[2])
  if not record then break end
  local kind, deaths, rest = string.match(record, '^(%a)(%d*)(.*)')
  deaths = (tonumber(deaths) or 0) + ARGV[2]
  if deaths >= tonumber(ARGV[3]) then
    answer(KEYS[3], record, 0, ARGV[4])
    bury(KEYS[3], KEYS[5], ARGV[5], record)
    given_up = given_up + 1
  else
    redis.call('LPUSH', KEYS[3], kind .. (deaths > 0 and string.format('%d', deaths) or '') .. rest)
    back = back + 1
  end
end
if back > 0 then ring(KEYS[4]) end
redis.call('SREM', KEYS[6], ARGV[6])
return {back, given_up}
"""
)

RELEASE = (
    ANYWAY
    + _RING
    + """
-- KEYS slot queue bell   ARGV record...   What was taken and not begun goes back, the last one first.
for n = #ARGV, 1, -1 do
  if redis.call('LREM', KEYS[1], -1, ARGV[n]) == 1 then redis.call('LPUSH', KEYS[2], ARGV[n]) end
end
return ring(KEYS[3])
"""
)

REVIVE = (
    _RING
    + _BODY
    + """
-- KEYS dead queue bell   ARGV letter [record: back into the queue with it]   -> 1 done, 0 it is not there
if redis.call('LREM', KEYS[1], 1, ARGV[1]) == 0 then return 0 end
if ARGV[2] then
  keep(KEYS[2], ARGV[2])
  redis.call('RPUSH', KEYS[2], ARGV[2])
  ring(KEYS[3])
else
  forget(KEYS[2], string.match(ARGV[1], '^[^\\n]*\\n[^\\n]*\\n(.*)'))
end
return 1
"""
)
