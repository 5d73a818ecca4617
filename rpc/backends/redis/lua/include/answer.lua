-- include record
-- include reply
-- include text
local function answer(queue, record, number, frame)  -- the last reply, to whoever waits for it
  local _, _, _, id, inbox, once = string.match(record, RECORD)
  if not id then return end  -- it cannot be read
  if inbox ~= '' and frame ~= '' then reply_to(inbox, number, id, frame) end
  local key = queue .. ':o:' .. once
  local state = once ~= '' and text_at(key)
  if once ~= '' and (not state or state == 'q' .. id or state == 'r' .. id) then
    local waiting = redis.pcall('HGETALL', key .. ':w')
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
end
