local function body_of(queue, record)  -- the key of its frame, if that lies elsewhere
  return queue .. ':b:' .. (string.match(record, '^%d* ?%u%d*%+?\n([^\n]*)') or '')
end
local function keep(queue, record)
  if string.find(record, '^%d* ?K') then redis.call('PERSIST', body_of(queue, record)) end
end
local function forget(queue, record) redis.call('UNLINK', body_of(queue, record)) end
