-- include own
-- include bell
-- <prefix>:order:<queue> is a hash: by order key, the id of the first, which is queued, scheduled or started; :<id>, the
-- order key of each that has one; and under '' how many wait behind, in the list <prefix>:line:<queue>:<key> of each.
local function beside(bell, kind) return (string.gsub(bell, ':bell:', ':' .. kind .. ':', 1)) end
local function behind(order, by)  -- so many more wait there
  local count = redis.pcall('HINCRBY', order, '', by)
  if type(count) ~= 'number' or count < 1 then own('HDEL', order, '') end
end
local function is_first(bell, id)  -- whether it may come into the queue; else it is put behind the others
  local order = beside(bell, 'order')
  local key = own('HGET', order, ':' .. id)
  if not key then return true end
  local first = redis.call('HGET', order, key)
  if not first then redis.call('HSET', order, key, id) end
  if not first or first == id then return true end
  own('RPUSH', beside(bell, 'line') .. ':' .. key, id)
  behind(order, 1)
  return false
end
local function line_up(bell, job, id)  -- whether it may come into the queue, the first time
  local key = redis.call('HGET', job, 'rpc_order')
  if not key or not string.find(key, '^%x+$') then return true end
  own('HSET', beside(bell, 'order'), ':' .. id, key)
  return is_first(bell, id)
end
local function next_of(queue, bell, jobs, key)  -- comes after all that waits
  local order = beside(bell, 'order')
  while true do
    local next = own('LPOP', beside(bell, 'line') .. ':' .. key)
    if not next then break end
    behind(order, -1)
    if redis.call('EXISTS', jobs .. next) == 1 then
      redis.call('HSET', order, key, next)
      own('RPUSH', queue, next)
      return ring(bell)
    end
    redis.call('HDEL', order, ':' .. next)  -- it has expired
  end
  redis.call('HDEL', order, key)
end
local function step(queue, bell, job, id)  -- it is done, or given up, or gone
  local order, jobs = beside(bell, 'order'), string.sub(job, 1, -1 - #id)
  local key = own('HGET', order, ':' .. id)
  if not key then return end
  redis.call('HDEL', order, ':' .. id)
  if redis.call('HGET', order, key) == id then next_of(queue, bell, jobs, key) end
end
local function leave(bell, id)  -- it waits no more behind others
  local order = beside(bell, 'order')
  local key = own('HGET', order, ':' .. id)
  local left = key and own('LREM', beside(bell, 'line') .. ':' .. key, 1, id) or 0
  if left == 1 then
    behind(order, -1)
    redis.call('HDEL', order, ':' .. id)
  end
  return left
end
