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

FORBIDDEN = 1_000_000
"""So many deaths are written down of what nobody may get again."""

GIVEN_UP, NOT_EMPTY = 0, 1
"""What NEXT returns besides messages and nothing: this worker gave no sign of life for too long; a slot has
something that its worker may not know of."""

PARTS = r"'^(%a)(%d*)\n([^\n]*)\n([^\n]*)\n([^\n]*)\n'"

RING = """
local function ring(bell)  -- once is enough: whoever is woken up looks at all that is there
  if redis.call('EXISTS', bell) == 0 then redis.call('LPUSH', bell, '1') end
  redis.call('PEXPIRE', bell, '60000')
end
"""

NOW = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
"""

BODY = """
local function body_of(queue, record)  -- the key of its frame, if that lies elsewhere
  return queue .. ':b:' .. (string.match(record, '^%u%d*\\n([^\\n]*)') or '')
end
local function keep(queue, record)
  if string.find(record, '^K') then redis.call('PERSIST', body_of(queue, record)) end
end
local function forget(queue, record) redis.call('UNLINK', body_of(queue, record)) end
"""

REPLYING = """
local function reply_to(inbox, number, id, frame)
  redis.call('RPUSH', inbox, number .. '\\n' .. id .. '\\n' .. frame)
  redis.call('PEXPIRE', inbox, '60000')
end
"""

SIGN_ON = (
    ANYWAY
    + """
-- KEYS (alive workers)...   ARGV worker lease_ms
for n = 1, #KEYS, 2 do
  redis.call('SADD', KEYS[n + 1], ARGV[1])
  redis.call('SET', KEYS[n], '1', 'PX', ARGV[2])
end
"""
)

PROMOTE = (
    ANYWAY
    + RING
    + NOW
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
    + RING
    + """
-- KEYS alive slot... (queue bell)...   ARGV most queues
-- -> {number of the queue, record, ms left or -1 or UNWANTED, ...} | nil: nothing | GIVEN_UP | NOT_EMPTY
local queues, room, taken, strange = tonumber(ARGV[2]), tonumber(ARGV[1]), {}, false
local alive_and_slots = {unpack(KEYS, 1, 1 + queues)}
for n = 1, queues do alive_and_slots[1 + queues + n] = KEYS[1] end
if redis.call('EXISTS', unpack(alive_and_slots)) ~= 1 + queues then return redis.call('EXISTS', KEYS[1]) end
for n = 1, queues do
  local queue, slot = KEYS[queues + 2 * n], KEYS[1 + n]
  local waiting = room > 0 and redis.call('LRANGE', queue, 0, room - 1) or {}
  local seen, moved = 0, {}
  for _, record in ipairs(waiting) do
    local kind, deaths, id, _, once = string.match(record, PARTS)
    if kind and deaths ~= '' and #taken > 0 then  -- what may have killed a worker is handled alone
      room = 0
      break
    end
    seen = seen + 1
    strange = strange or not kind  -- it is no record
    if kind then
      local left = -1
      if kind == 'w' or kind == 'W' then left = redis.call('PTTL', queue .. ':t:' .. id) end
      local state = queue .. ':o:' .. once
      if once ~= '' and left ~= -2 and redis.call('GET', state) == 'q' .. id then
        redis.call('SET', state, 'r' .. id, 'KEEPTTL')
      end
      moved[#moved + 1] = record
      taken[#taken + 1], taken[#taken + 2], taken[#taken + 3] = n - 1, record, left
      room = deaths == '' and room - 1 or 0
      if room == 0 then break end
    end
  end
  if seen == 1 and #moved == 1 then
    redis.call('LMOVE', queue, slot, 'LEFT', 'RIGHT')
  elseif seen > 0 then
    redis.call('LTRIM', queue, seen, -1)
    if #moved > 0 then redis.call('RPUSH', slot, unpack(moved)) end
  end
end
if room > 0 and not strange then return #taken > 0 and taken end
for n = 1, queues do
  if redis.call('EXISTS', KEYS[queues + 2 * n]) == 1 then ring(KEYS[queues + 2 * n + 1]) end
end
return taken
"""
).replace("PARTS", PARTS)

_ANSWER = (
    REPLYING
    + """
local function answer(queue, record, number, frame)  -- the last reply, to whoever waits for it
  local kind, _, id, lane, once = string.match(record, PARTS)
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
  if kind == 'w' or kind == 'W' then  -- a late copy may come
    redis.call('PEXPIRE', queue .. ':t:' .. id, '10000')
  end
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
    + """
-- KEYS slot queue [(token inbox)...]   ARGV (id entry)...   -> how many of them were held
-- entry: as it will lie in the inbox; nothing for none
local records = redis.call('LPOP', KEYS[1], #ARGV / 2) or {}
local held, inbox, entries = 0, '', {}
local function deliver()
  if #entries == 0 then return end
  redis.call('RPUSH', inbox, unpack(entries))
  redis.call('PEXPIRE', inbox, '60000')
  entries = {}
end
for n = 1, #ARGV, 2 do
  local record, entry = records[held + 1], ARGV[n + 1]
  local kind, _, id, lane, once = string.match(record or '', PARTS)
  if kind and id == ARGV[n] then
    held = held + 1
    if once == '' and string.find(kind, '%l') then  -- as `answer` does, with one push for several
      if lane ~= inbox then deliver() end
      inbox = lane
      if lane ~= '' and entry ~= '' then entries[#entries + 1] = entry end
      if kind == 'w' then redis.call('PEXPIRE', KEYS[2] .. ':t:' .. id, '10000') end
    else
      local number, frame = string.match(entry, '^(%d+)\\n[^\\n]*\\n(.*)')
      answer(KEYS[2], record, number or '0', frame or '')
      if string.find(kind, '%u') then redis.call('UNLINK', KEYS[2] .. ':b:' .. id) end
    end
  end
end
deliver()
for n = #records, held + 1, -1 do redis.call('LPUSH', KEYS[1], records[n]) end
return held
"""
).replace("PARTS", PARTS)

REPLY = (
    ANYWAY
    + REPLYING
    + """
-- KEYS slot token inbox   ARGV id number frame place last   -> 1 sent, 0 nobody listens, or it is not held
-- place: where in the slot it is; last: no acknowledgement will send it again, and no other worker
local record = redis.call('LINDEX', KEYS[1], ARGV[4])
local kind, id, lane, rest = string.match(record or '', '^(%a%d*)\\n([^\\n]*)\\n([^\\n]*)(.*)')
if id ~= ARGV[1] or lane == '' or redis.call('EXISTS', KEYS[2]) == 0 then return 0 end
reply_to(KEYS[3], ARGV[2], id, ARGV[3])
if ARGV[5] == '1' then redis.call('LSET', KEYS[1], ARGV[4], kind .. '\\n' .. id .. '\\n' .. rest) end
return 1
"""
)

FORBID = (
    ANYWAY
    + f"""
-- KEYS slot   ARGV id   -> 1 the next death is the last, 0 it is not held any more
local record = redis.call('LINDEX', KEYS[1], 0)
local kind, id, rest = string.match(record or '', '^(%a)%d*\\n([^\\n]*)(.*)')
if id ~= ARGV[1] then return 0 end
redis.call('LSET', KEYS[1], 0, kind .. '{FORBIDDEN}\\n' .. id .. rest)
return 1
"""
)

POSTPONE = (
    ANYWAY
    + _TAKE
    + NOW
    + """
-- KEYS slot delayed   ARGV id record delay_ms channel   -> 1 put among the delayed, 0 it was not held
if not take(KEYS[1], ARGV[1]) then return 0 end
redis.call('ZADD', KEYS[2], now + 1 + ARGV[3], ARGV[2])
redis.call('PUBLISH', ARGV[4], '')
return 1
"""
)

_BURY = (
    NOW
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
    + RING
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
    + RING
    + """
-- KEYS slot queue bell   ARGV record...   What was taken and not begun goes back, the last one first.
for n = #ARGV, 1, -1 do
  if redis.call('LREM', KEYS[1], -1, ARGV[n]) == 1 then redis.call('LPUSH', KEYS[2], ARGV[n]) end
end
return ring(KEYS[3])
"""
)

REVIVE = (
    RING
    + BODY
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
