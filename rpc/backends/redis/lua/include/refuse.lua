-- include body
-- include reply
local function is_answered(inbox, id)
  for _, entry in ipairs(inbox and redis.pcall('LRANGE', inbox, 0, -1) or {}) do
    if string.find(entry, '\n' .. id .. '\n', 1, true) then return true end
  end
end
local function clear(inbox, shared)
  if inbox and shared ~= '1' then redis.call('DEL', inbox) end
end
local function full(queue, record, id, inbox, shared)
  forget(queue, record)
  clear(inbox, shared)
  if inbox then reply_to(inbox, -1, id, '') end
  return -1
end
