-- include own
-- include wake
-- <queue>:order is a hash: the id of the first of each key, which waits in the queue, or is held, or delayed to be
-- tried again; and under '' how many wait behind, in the list <queue>:k:<key> of each.
local function line_of(record)  -- the id, and the digest of the order key: nil if it has none
  return string.match(record, '^%d* ?%a%d*%+?\n([!-~]+)\n[^\n]*\n%x*%.(%x+)\n')
end
local function behind(queue, by)  -- so many more wait there
  local count = redis.pcall('HINCRBY', queue .. ':order', '', by)
  if type(count) ~= 'number' or count < 1 then own('HDEL', queue .. ':order', '') end
end
local function waiting(queue)
  return own('LLEN', queue) + (tonumber(own('HGET', queue .. ':order', '') or 0) or 0)
end
local function is_first(queue, record)  -- whether it may come into the queue; else it is put behind the others
  local id, key = line_of(record)
  if not key then return true end
  local first = own('HGET', queue .. ':order', key)
  if not first then redis.call('HSET', queue .. ':order', key, id) end
  if not first or first == id then return true end
  own('RPUSH', queue .. ':k:' .. key, record)
  behind(queue, 1)
  return false
end
local function next_of(queue, key)  -- comes after all that waits
  while true do
    local next = own('LPOP', queue .. ':k:' .. key)
    if not next then break end
    behind(queue, -1)
    if own('RPUSH', queue, next) == 1 then wake(queue .. ':wakeup') end
    local its_id, its_key = line_of(next)
    if its_key == key then return redis.call('HSET', queue .. ':order', key, its_id) end  -- else it is not ours
  end
  redis.call('HDEL', queue .. ':order', key)
end
local function step(queue, record)  -- it is done, or given up
  local id, key = line_of(record)
  local first = key and own('HGET', queue .. ':order', key)
  if key and (not first or first == id) then next_of(queue, key) end
end
local function leave(queue, record)  -- it waits no more behind others
  local _, key = line_of(record)
  local left = key and own('LREM', queue .. ':k:' .. key, 1, record) or 0
  if left == 1 then behind(queue, -1) end
  return left
end
