#!lua flags=allow-oom
-- include now
-- include line
-- include wake
-- KEYS delayed queue wakeup   What is due moves to its queue.   -> ms until more is due, -1 if nothing is
local due = own('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, 100)
for _, record in ipairs(due) do
  if is_first(KEYS[2], record) then own('RPUSH', KEYS[2], record) end
  redis.call('ZREM', KEYS[1], record)
end
local function is_stuck()  -- something waits behind what is nowhere: somebody else took that away
  if redis.call('EXISTS', KEYS[1], KEYS[2]) > 0 or not own('HGET', KEYS[2] .. ':order', '') then return false end
  local workers = redis.pcall('HGETALL', KEYS[2] .. ':workers')
  for n = 1, #workers, 2 do
    for page = 0, math.min(tonumber(workers[n + 1]) or 0, 10000) - 1 do
      if redis.call('EXISTS', KEYS[2] .. ':taken:' .. workers[n] .. ':' .. string.format('%d', page)) == 1 then return false end
    end
  end
  return true
end
if #due == 0 and is_stuck() then
  for _, key in ipairs(redis.call('HKEYS', KEYS[2] .. ':order')) do
    if key ~= '' then next_of(KEYS[2], key) end
  end
end
if #due > 0 then wake(KEYS[3]) else redis.call('PEXPIRE', KEYS[3], '60000') end
local next = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
return next[2] and math.max(0, next[2] - now) or -1
