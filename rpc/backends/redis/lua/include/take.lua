local function take(slot, id)  -- out of the slot, if it is there
  local record = redis.call('LPOP', slot)
  if record and string.match(record, '^%a%d*\n([^\n]*)') == id then return record end
  if record then redis.call('LPUSH', slot, record) end
end
