-- include now
-- include ours
-- include text
-- include enqueue
-- include schedule
-- include way_back
-- include line
-- With a delay, an idempotency key, an order key, or several of them.
-- KEYS job queue queues bell scheduled later once [way back]
-- ARGV id ttl_ms way_back_ms latest_ms (as SEND) delay_ms (-1: none) window_ms (0: no key) reply_to field value ...   -> as SEND
local id, way_back, once = ARGV[1], KEYS[8], KEYS[7]
local ttl, delay, window = tonumber(ARGV[2]), tonumber(ARGV[5]), tonumber(ARGV[6])
if ARGV[4] ~= '0' and now > tonumber(ARGV[4]) then return now end
if redis.call('EXISTS', KEYS[1]) == 1 then return now end
local function is_wanted(job)
  if not is_ours(job) then return false end
  local status, left = redis.call('HGET', job, 'status'), redis.call('PTTL', job)
  return status == 'started' or ((status == 'queued' or status == 'scheduled') and (left == -1 or left > 5000))
end
local function extend(job)  -- it is wanted until the last one that asked for it has left
  local expires = tonumber(redis.call('HGET', job, 'rpc_expires'))
  if ttl == 0 then
    redis.call('PERSIST', job)
    redis.call('HDEL', job, 'rpc_expires')
  else
    local left = redis.call('PTTL', job)
    if left >= 0 and left < ttl then redis.call('PEXPIRE', job, ttl) end
    if expires and expires < now + ttl - 5000 then
      redis.call('HSET', job, 'rpc_expires', string.format('%d', now + ttl - 5000))
    end
  end
end
if window > 0 then
  local state = text_at(once)
  if state and string.sub(state, 1, 1) == 'd' then
    if way_back then
      open(way_back, ARGV[3])
      redis.call('XADD', way_back, '1-0', 'm', string.sub(state, 2))
    end
    return now
  end
  local first = state and string.sub(KEYS[1], 1, -1 - #id) .. string.sub(state, 2)
  if first and is_wanted(first) then
    extend(first)
    if way_back then
      open(way_back, ARGV[3])
      own('HSET', once .. ':w', id, ARGV[7])
      redis.call('PEXPIRE', once .. ':w', window)
    end
    return now
  end
  redis.call('DEL', once .. ':w')
  redis.call('SET', once, 'q' .. id, 'PX', window)
end
redis.call('HSET', KEYS[1], unpack(ARGV, 8))
if window > 0 then redis.call('HSET', KEYS[1], 'rpc_key', once) end
if ttl > 0 then redis.call('PEXPIRE', KEYS[1], ttl) end
if way_back then open(way_back, ARGV[3]) end
if delay < 0 then
  if line_up(KEYS[4], KEYS[1], id) then enqueue(KEYS[2], KEYS[3], KEYS[4], id) end
else
  redis.pcall('SADD', KEYS[3], KEYS[2])
  schedule(KEYS[5], KEYS[6], KEYS[1], id, delay)
end
return now
