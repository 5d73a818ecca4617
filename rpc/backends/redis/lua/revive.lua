-- include now
-- include body
-- include line
-- include wake
-- KEYS dead queue wakeup   ARGV letter [record: back into the queue with it]   -> 1 done, 0 it is not there
if redis.call('LREM', KEYS[1], 1, ARGV[1]) == 0 then return 0 end
if ARGV[2] then
  keep(KEYS[2], ARGV[2])
  local record = now .. ' ' .. ARGV[2]
  if is_first(KEYS[2], record) then own('RPUSH', KEYS[2], record) end
  wake(KEYS[3])
else
  forget(KEYS[2], string.match(ARGV[1], '^[^\n]*\n[^\n]*\n%d+ (.*)') or '')
end
return 1
