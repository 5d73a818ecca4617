-- include enqueue
-- include refuse
-- KEYS queue wakeup token [inbox]   ARGV id record token_ms max_length sweep again
-- -> 1 sent, 0 known, -1 full
local inbox = KEYS[4]
local function may_be_lost()  -- what others put in the queue's place may have made room just now: then the plain
  local kind = redis.call('TYPE', KEYS[1]).ok  -- command that sent it for the first time came to nothing
  return (kind ~= 'none' and kind ~= 'list') or redis.call('PTTL', KEYS[1] .. ':refused') > 604797000
end
local function lies_in(list)
  return type(redis.pcall('LPOS', list, ARGV[2], 'RANK', '-1', 'MAXLEN', '10000')) == 'number'
end
local function is_there()  -- the connection broke between the plain commands that sent it: only the token is missing
  local _, key = line_of(ARGV[2])
  if lies_in(KEYS[1]) or (key and lies_in(KEYS[1] .. ':k:' .. key)) then return true end
  local workers = redis.pcall('HGETALL', KEYS[1] .. ':workers')
  for n = 1, #workers, 2 do
    for page = 0, math.min(tonumber(workers[n + 1]) or 0, 10000) - 1 do
      if lies_in(KEYS[1] .. ':taken:' .. workers[n] .. ':' .. string.format('%d', page)) then return true end
    end
  end
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
if ARGV[6] == '1' and is_there() then return 0 end
clear(inbox)
keep(KEYS[1], ARGV[2])
if is_first(KEYS[1], ARGV[2]) then enqueue(KEYS[1], KEYS[2], ARGV[5], ARGV[2]) end
return 1
