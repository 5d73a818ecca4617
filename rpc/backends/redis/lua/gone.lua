-- include now
-- include own
-- KEYS subscriptions   -> those that have just been forgotten
local gone = own('ZRANGEBYSCORE', KEYS[1], '-inf', now)
if #gone > 0 then redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now) end
return gone
