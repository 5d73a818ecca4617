-- include enqueue
-- include refuse
-- KEYS queue wakeup token [inbox]   ARGV id record token_ms max_length sweep again
-- -> 1 sent, 0 known, -1 full
local inbox = KEYS[4]
local function may_be_lost()  -- what others put in the queue's place may have made room just now: then the plain
  local kind = redis.call('TYPE', KEYS[1]).ok  -- command that sent it for the first time came to nothing
  return (kind ~= 'none' and kind ~= 'list') or redis.call('PTTL', KEYS[1] .. ':refused') > 604797000
end
if ARGV[6] == '1' and is_answered(inbox, ARGV[1]) then return 0 end
if not has_room(KEYS[1], ARGV[4], ARGV[5], 0) then
  if redis.call('EXISTS', KEYS[3]) == 1 then return 0 end
  return full(KEYS[1], ARGV[2], ARGV[1], inbox)
end
if not redis.call('SET', KEYS[3], '', 'NX', 'PX', ARGV[3]) and not (ARGV[6] == '1' and may_be_lost()) then
  sweep(KEYS[1], ARGV[5])
  return 0
end
clear(inbox)
keep(KEYS[1], ARGV[2])
enqueue(KEYS[1], KEYS[2], ARGV[5], ARGV[2])
return 1
