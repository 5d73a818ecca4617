#!lua flags=allow-oom
-- include answer
-- include bury
-- include line
-- include wake
-- KEYS alive page queue wakeup dead [workers]   ARGV force died max_deliveries lost why [worker]
-- -> {how many are back in the queue, how many were given up} | nil: it lives
-- With its last page it is forgotten; not a moment later: it may be there again, and take something, by then.
if ARGV[1] == '0' and redis.call('PTTL', KEYS[1]) > 0 then return false end
local back, given_up = 0, 0
while true do
  local record = redis.call('RPOP', KEYS[2])
  if not record then break end
  local head, deaths, rest = string.match(record, '^(%d+ %a)(%d*)(.*)')
  deaths = (tonumber(deaths) or 0) + ARGV[2]
  if not head then
    bury(KEYS[3], KEYS[5], 'it cannot be read', record)
    step(KEYS[3], record)
    given_up = given_up + 1
  elseif deaths >= tonumber(ARGV[3]) then
    answer(KEYS[3], record, 0, ARGV[4])
    bury(KEYS[3], KEYS[5], ARGV[5], record)
    step(KEYS[3], record)
    given_up = given_up + 1
  else
    own('LPUSH', KEYS[3], head .. (deaths > 0 and string.format('%d', deaths) or '') .. rest)
    back = back + 1
  end
end
if back > 0 then wake(KEYS[4]) end
if KEYS[6] then own('HDEL', KEYS[6], ARGV[6]) end
return {back, given_up}
