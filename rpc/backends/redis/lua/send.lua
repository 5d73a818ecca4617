-- include enqueue
-- include refuse
-- KEYS queue wakeup token [inbox]   ARGV id record token_ms max_length sweep again
-- -> 1 sent, 0 known, -1 full
local inbox = KEYS[4]
if ARGV[6] == '1' and is_answered(inbox, ARGV[1]) then return 0 end
if not has_room(KEYS[1], ARGV[4], ARGV[5], 0) then
  if redis.call('EXISTS', KEYS[3]) == 1 then return 0 end
  return full(KEYS[1], ARGV[2], ARGV[1], inbox)
end
if not redis.call('SET', KEYS[3], '', 'NX', 'PX', ARGV[3]) then
  sweep(KEYS[1], ARGV[5])
  return 0
end
clear(inbox)
keep(KEYS[1], ARGV[2])
enqueue(KEYS[1], KEYS[2], ARGV[5], ARGV[2])
return 1
