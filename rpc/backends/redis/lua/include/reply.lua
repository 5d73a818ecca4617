local function put(inbox, keep_ms, ...)  -- a record may name any key: nothing goes but to inboxes beside its queue
  local _, tag = string.find(KEYS[1], '}:', 1, true)
  if string.sub(inbox, 1, tag) ~= string.sub(KEYS[1], 1, tag) or not string.find(inbox, '^in:[!-~]+$', tag + 1) then return end
  local pushed = redis.pcall('RPUSH', inbox, ...)
  if type(pushed) == 'table' then
    if string.find(pushed.err, 'WRONGTYPE') then redis.call('UNLINK', inbox) end
    redis.call('RPUSH', inbox, ...)
  end
  redis.call('PEXPIRE', inbox, keep_ms)
end
local function reply_to(inbox, number, id, frame)
  put(inbox, '60000', number .. '\n' .. id .. '\n' .. frame)
end
