local inboxes = string.match(KEYS[1], '^[^{]*{[^}]*}:') .. 'in:'
local function put(inbox, keep_ms, ...)  -- a record may name any key: nothing goes but to inboxes beside its queue
  if string.sub(inbox, 1, #inboxes) ~= inboxes or not string.find(inbox, '^[!-~]+$', #inboxes + 1) then return end
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
