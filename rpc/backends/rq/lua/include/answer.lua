-- include own
-- include text
-- include way_to
-- once: q<id> the first was sent, d<frame> it was answered; once:w: who else waits, and where
local function answer(once, id, frame, is_final)  -- to all who asked with that key besides the first
  if text_at(once) ~= 'q' .. id then return end
  local waiting = frame ~= '' and own('HVALS', once .. ':w') or {}
  for _, reply_to in ipairs(waiting) do
    redis.pcall('XADD', way_to(reply_to, once), 'NOMKSTREAM', '*', 'm', frame)
  end
  redis.call('DEL', once .. ':w')
  if is_final and frame ~= '' then redis.call('SET', once, 'd' .. frame, 'KEEPTTL') else redis.call('DEL', once) end
end
