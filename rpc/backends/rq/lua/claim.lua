#!lua flags=allow-oom
-- include now
-- include ours
-- include own
-- KEYS worker [queue started bell] ...   ARGV worker_name horizon_s started_at jobs executions
-- -> {number of the queue, id, ms left or -1, hash, passed over} | {passed over}: nothing to do
--    | 0: this worker is not registered.   Passed over: the id of a job of others in the queue, or ''
if not is_hash(KEYS[1]) then return 0 end
local id, at
local passed_over = ''
local function next_of(queue)  -- what is not ours goes back as it was
  local first
  for _ = 1, 10000 do
    local head = own('LPOP', queue)
    if not head then return end
    if not is_hash(ARGV[4] .. head) or is_ours(ARGV[4] .. head) then return head end
    redis.call('RPUSH', queue, head)
    if head == first then return end
    first, passed_over = first or head, head
  end
end
local held = redis.call('HGET', KEYS[1], 'current_job')
if held then  -- the answer to an earlier claim was lost
  for k = 2, #KEYS, 3 do
    if own('ZSCORE', KEYS[k + 1], held .. ':' .. ARGV[1]) then id, at = held, k break end
  end
end
for k = 2, #KEYS, 3 do
  if id then break end
  id, at = next_of(KEYS[k]), k
end
if not id then
  for k = 2, #KEYS, 3 do redis.call('DEL', KEYS[k + 2]) end
  return {passed_over}
end
own('ZADD', KEYS[at + 1], t[1] + ARGV[2], id .. ':' .. ARGV[1])
redis.call('HSET', KEYS[1], 'current_job', id, 'state', 'busy')
local job, left, hash = ARGV[4] .. id, -1, {}
if is_hash(job) then
  local expires = tonumber(redis.call('HGET', job, 'rpc_expires'))
  local pttl = redis.call('PTTL', job)
  if not expires and pttl >= 0 then expires = now + pttl - 5000 end
  if expires then
    left = math.max(0, expires - now)
    redis.call('HSET', job, 'rpc_expires', string.format('%d', expires))
  end
  redis.call('PERSIST', job)
  if id ~= held then
    local deliveries = tonumber(redis.call('HGET', job, 'rpc_deliveries')) or 0
    redis.call('HSET', job, 'rpc_deliveries', string.format('%d', deliveries + 1))
  end
  redis.call('HSET', job, 'status', 'started', 'worker_name', ARGV[1],
    'started_at', ARGV[3], 'last_heartbeat', ARGV[3])
  if ARGV[5] ~= '' and not string.find(id, '[^%w_-]') then  -- rq cannot read others
    local execution, all = id .. ':' .. ARGV[1], KEYS[1] .. ':executions'
    redis.pcall('HSET', ARGV[5] .. execution, 'created_at', t[1], 'last_heartbeat', t[1])
    redis.call('EXPIRE', ARGV[5] .. execution, ARGV[2])
    redis.pcall('SADD', all, execution)
    redis.call('EXPIRE', all, ARGV[2])
  end
  hash = redis.call('HGETALL', job)
end
return {(at - 2) / 3, id, left, hash, passed_over}
