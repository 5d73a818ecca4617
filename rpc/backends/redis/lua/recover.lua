#!lua flags=allow-oom
-- include wakeup
-- include answer
-- include bury
-- KEYS alive slot queue bell dead workers   ARGV force died max_deliveries lost why worker
-- -> {how many are back in the queue, how many were given up} | nil: it lives
if ARGV[1] == '0' and redis.call('EXISTS', KEYS[1]) == 1 then return false end
local back, given_up = 0, 0
while true do
  local record = redis.call('RPOP', KEYS[2])
  if not record then break end
  local kind, deaths, rest = string.match(record, '^(%a)(%d*)(.*)')
  deaths = (tonumber(deaths) or 0) + ARGV[2]
  if deaths >= tonumber(ARGV[3]) then
    answer(KEYS[3], record, 0, ARGV[4])
    bury(KEYS[3], KEYS[5], ARGV[5], record)
    given_up = given_up + 1
  else
    redis.call('LPUSH', KEYS[3], kind .. (deaths > 0 and string.format('%d', deaths) or '') .. rest)
    back = back + 1
  end
end
if back > 0 then ring(KEYS[4]) end
redis.call('SREM', KEYS[6], ARGV[6])
return {back, given_up}
