-- include enqueue
-- include refuse
-- KEYS queue wakeup [shared inbox]   ARGV read last max_length sweep (id record token_ms)...
-- -> {as SEND, ...}   So many entries of the inbox were read, the last of which begins so: they are removed.
local queue, inbox, outcomes, records = KEYS[1], KEYS[3], {}, {}
if ARGV[1] ~= '0' then
  local entry = redis.pcall('LINDEX', inbox, ARGV[1] - 1)
  if type(entry) == 'string' and string.sub(entry, 1, #ARGV[2]) == ARGV[2] then redis.call('LTRIM', inbox, ARGV[1], -1) end
end
for n = 5, #ARGV, 3 do
  local id, record, token = ARGV[n], ARGV[n + 1], queue .. ':t:' .. ARGV[n]
  local outcome = 1
  if not has_room(queue, ARGV[3], ARGV[4], #records) then
    if redis.call('EXISTS', token) == 1 then
      outcome = 0
    else
      local way_back = string.find(record, '^%d+ %a\n[^\n]*\n[^\n]') and inbox
      outcome = full(queue, record, id, way_back, '1')
      if way_back then redis.call('SET', token, '', 'PX', '10000') end  -- a late copy is refused, too
    end
  elseif not redis.call('SET', token, '', 'NX', 'PX', ARGV[n + 2]) then
    outcome = 0
  else
    keep(queue, record)
    if is_first(queue, record) then records[#records + 1] = record end
  end
  outcomes[#outcomes + 1] = outcome
end
if #records > 0 then enqueue(queue, KEYS[2], ARGV[4], unpack(records)) end
return outcomes
