#!lua flags=allow-oom
-- include ours
-- include own
-- include line
-- KEYS queue job scheduled bell   ARGV id cancels   -> 1 it was not started and is gone, 0 it runs, or ran
local was_next = own('LREM', KEYS[1], 1, ARGV[1]) == 1 or own('ZREM', KEYS[3], ARGV[1]) == 1
if was_next or leave(KEYS[4], ARGV[1]) == 1 then
  if was_next then step(KEYS[1], KEYS[4], KEYS[2], ARGV[1]) end
  if is_ours(KEYS[2]) then redis.call('DEL', KEYS[2]) end
  return 1
end
if is_ours(KEYS[2]) and redis.call('HGET', KEYS[2], 'status') == 'started' then
  redis.call('HSET', KEYS[2], 'rpc_withdrawn', 1) -- it may be postponed before its worker hears of it
  local inbox = ARGV[2] .. (redis.call('HGET', KEYS[2], 'worker_name') or '')
  redis.pcall('RPUSH', inbox, ARGV[1])
  redis.call('PEXPIRE', inbox, 60000)
end
return 0
