-- include record
-- include body
-- include bury
-- include line
-- include wake
-- include text
local EXPIRED = 'RpcTimeout: it expired before a worker came to it'
local function sweep(queue, most)  -- the unwanted leave, even if nobody serves the queue
  for _ = 1, most do
    local head = own('LINDEX', queue, 0)
    local sent, kind, _, id, inbox, once, ttl = string.match(head or '', RECORD)
    if not sent then return end
    local token, time = text_at(queue .. ':t:' .. id), redis.call('TIME')
    if kind == 'a' or kind == 'A' then
      if token then return end
    elseif token ~= 'left' and (ttl == '' or time[1] * 1000 + time[2] / 1000 < sent + ttl) then
      return
    end
    redis.call('LPOP', queue)
    if inbox == '' and once == '' then  -- nobody would know
      bury(queue, queue .. ':dead', EXPIRED, head)
    else
      forget(queue, head)
    end
    step(queue, head)
    once = queue .. ':o:' .. once
    if text_at(once) == 'r' .. id then redis.call('DEL', once, once .. ':w') end
  end
end
local function has_room(queue, most, looks, coming)
  if most == '0' or waiting(queue) + coming < tonumber(most) then return true end
  sweep(queue, looks)
  return waiting(queue) + coming < tonumber(most)
end
local function enqueue(queue, wakeup, looks, ...)
  local length = own('RPUSH', queue, ...)
  if length == select('#', ...) then wake(wakeup) elseif length % 8 == 0 then sweep(queue, 8 * looks) end
end
