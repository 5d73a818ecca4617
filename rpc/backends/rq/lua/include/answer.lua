-- once: q<id> the first was sent, d<frame> it was answered; once:w: who else waits, and where
local function answer(once, id, frame, is_final)  -- to all who asked with that key besides the first
  if redis.call('GET', once) ~= 'q' .. id then return end
  local waiting = redis.call('HVALS', once .. ':w')
  for _, reply_to in ipairs(frame ~= '' and waiting or {}) do
    redis.pcall('XADD', 'rpc:re:' .. reply_to, 'NOMKSTREAM', '*', 'm', frame)
  end
  redis.call('DEL', once .. ':w')
  if is_final and frame ~= '' then redis.call('SET', once, 'd' .. frame, 'KEEPTTL') else redis.call('DEL', once) end
end
