-- include ours
-- include own
-- KEYS queue job scheduled   ARGV id cancels   -> 1 it was not started and is gone, 0 it runs, or ran
if own('LREM', KEYS[1], 1, ARGV[1]) == 1 or own('ZREM', KEYS[3], ARGV[1]) == 1 then
  if is_ours(KEYS[2]) then redis.call('DEL', KEYS[2]) end
  return 1
end
if is_ours(KEYS[2]) and redis.call('HGET', KEYS[2], 'status') == 'started' then
  local inbox = ARGV[2] .. (redis.call('HGET', KEYS[2], 'worker_name') or '')
  redis.pcall('RPUSH', inbox, ARGV[1])
  redis.call('PEXPIRE', inbox, 60000)
end
return 0
