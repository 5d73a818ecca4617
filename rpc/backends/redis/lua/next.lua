#!lua flags=allow-oom
-- include record
-- include wakeup
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
    local kind, deaths, id, _, once = string.match(record, RECORD)
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
