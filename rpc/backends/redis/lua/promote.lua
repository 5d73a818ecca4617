#!lua flags=allow-oom
-- include now
-- include wake
-- KEYS delayed queue wakeup   What is due moves to its queue.   -> ms until more is due, -1 if nothing is
local due = own('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, 100)
for _, record in ipairs(due) do
  own('RPUSH', KEYS[2], record)
  redis.call('ZREM', KEYS[1], record)
end
if #due > 0 then wake(KEYS[3]) else redis.call('PEXPIRE', KEYS[3], '60000') end
local next = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
return next[2] and math.max(0, next[2] - now) or -1
