-- include now
-- include own
-- KEYS topic subscriptions   ARGV frame length keep_ms is_kept looked_through_ms
-- -> the groups that keep it, those just forgotten. If there are any, nothing is told before they have it.
if ARGV[4] == '0' then
  local gone = own('ZRANGEBYSCORE', KEYS[2], '-inf', now)
  if #gone > 0 then redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now) end
  local kept = redis.call('ZRANGE', KEYS[2], 0, -1)
  if #kept + #gone > 0 then return {kept, gone} end
end
if ARGV[5] ~= '0' then  -- it may have been told before
  local since = string.format('%.0f', now - ARGV[5])
  for _, entry in ipairs(own('XREVRANGE', KEYS[1], '+', since)) do
    if entry[2][2] == ARGV[1] then return {{}, {}} end
  end
end
own('XADD', KEYS[1], 'MAXLEN', '~', ARGV[2], '*', 'm', ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return {{}, {}}
