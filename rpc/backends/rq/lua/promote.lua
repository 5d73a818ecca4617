-- include now
-- KEYS scheduled queue queues bell   ARGV jobs   What is due moves to its queue.   -> ms until more is due, -1: nothing is
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now / 1000, 'LIMIT', 0, 100)
local moved = 0
for _, id in ipairs(due) do
  redis.call('ZREM', KEYS[1], id)
  local job = ARGV[1] .. id
  if redis.call('TYPE', job).ok == 'hash' then  -- it has not expired
    redis.call('HSET', job, 'status', 'queued')
    redis.call('RPUSH', KEYS[2], id)
    moved = moved + 1
  end
end
if moved > 0 then
  redis.call('SADD', KEYS[3], KEYS[2])
  redis.call('LPUSH', KEYS[4], 1)
  redis.call('PEXPIRE', KEYS[4], 60000)
end
local next = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
return next[2] and math.max(0, math.ceil(next[2] * 1000 - now)) or -1
