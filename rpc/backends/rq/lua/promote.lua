#!lua flags=allow-oom
-- include now
-- include ours
-- include bell
-- include line
-- KEYS scheduled queue queues bell started   ARGV jobs   What is due moves to its queue.   -> ms until more is due, -1: nothing is
local due = own('ZRANGEBYSCORE', KEYS[1], '-inf', now / 1000, 'LIMIT', 0, 100)
local moved = 0
for _, id in ipairs(due) do
  redis.call('ZREM', KEYS[1], id)
  local job = ARGV[1] .. id
  if is_hash(job) then  -- it has not expired; rq's own scheduler would do the same with those of others
    redis.call('HSET', job, 'status', 'queued')
    if line_up(KEYS[4], job, id) then own('RPUSH', KEYS[2], id) end
    moved = moved + 1
  else
    step(KEYS[2], KEYS[4], job, id)
  end
end
local order = beside(KEYS[4], 'order')
if #due == 0 and redis.call('EXISTS', KEYS[1], KEYS[2], KEYS[5]) == 0 and own('HGET', order, '') then
  for _, key in ipairs(redis.call('HKEYS', order)) do  -- what is the first is nowhere: somebody else took it away
    if key ~= '' and string.sub(key, 1, 1) ~= ':' then next_of(KEYS[2], KEYS[4], ARGV[1], key) end
  end
end
if moved > 0 then
  redis.pcall('SADD', KEYS[3], KEYS[2])
  ring(KEYS[4])
end
local next = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
return next[2] and math.max(0, math.ceil(next[2] * 1000 - now)) or -1
