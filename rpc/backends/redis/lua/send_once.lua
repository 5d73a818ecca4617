-- include enqueue
-- include refuse
-- include text
-- include later
-- KEYS queue wakeup token once [inbox]   ARGV id record token_ms max_length sweep shared window_ms [delay_ms]
-- The record is that of SEND, with a delay that of SEND_LATER.
-- once: q<id> it was sent, r<id> it runs, d<frame> it was answered   -> as SEND
local id, token, once, inbox, shared = ARGV[1], KEYS[3], KEYS[4], KEYS[5], ARGV[6]
local delayed, delay = KEYS[1] .. ':delayed', ARGV[8]
if is_answered(inbox, id) then return 0 end
local state = text_at(once)
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
    if inbox then own('HSET', once .. ':w', id, inbox) redis.call('PEXPIRE', once .. ':w', ARGV[7]) end
    if redis.call('PTTL', theirs) < tonumber(ARGV[3]) then redis.call('SET', theirs, '', 'PX', ARGV[3]) end
    return 0
  end
end
local coming = delay and own('ZCARD', delayed) or 0
if not has_room(KEYS[1], ARGV[4], ARGV[5], coming) then return full(KEYS[1], ARGV[2], id, inbox, shared) end
redis.call('SET', once, 'q' .. id, 'PX', ARGV[7])
redis.call('SET', token, '', 'PX', ARGV[3])
clear(inbox, shared)
keep(KEYS[1], ARGV[2])
if delay then
  later(delayed, KEYS[1] .. ':control', ARGV[2], delay)
elseif is_first(KEYS[1], ARGV[2]) then
  enqueue(KEYS[1], KEYS[2], ARGV[5], ARGV[2])
end
return 1
