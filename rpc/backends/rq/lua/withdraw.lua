-- KEYS queue job scheduled   ARGV id   -> 1 it was not started and is gone, 0 it runs, or ran
if redis.call('LREM', KEYS[1], 1, ARGV[1]) == 1 or redis.call('ZREM', KEYS[3], ARGV[1]) == 1 then
  redis.call('DEL', KEYS[2])
  return 1
end
if redis.call('TYPE', KEYS[2]).ok == 'hash' and redis.call('HGET', KEYS[2], 'status') == 'started' then
  local inbox = 'rpc:cancel:' .. (redis.call('HGET', KEYS[2], 'worker_name') or '')
  redis.call('RPUSH', inbox, ARGV[1])
  redis.call('PEXPIRE', inbox, 60000)
end
return 0
