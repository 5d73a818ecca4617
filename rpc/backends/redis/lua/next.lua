#!lua flags=allow-oom
-- include wake
-- KEYS (queue page wakeup)...   ARGV most also: one was just taken into the page
-- -> {number of the queue, record, ...}   The first queue that has some goes first.
local most, taken = 0 + ARGV[1], {}
local before = ARGV[2] == '1' and redis.call('LINDEX', KEYS[2], -1)
if before and string.find(before, '^%d+ %a%d') then return taken end  -- it may have killed: it is handled alone
for n = 1, #KEYS, 3 do
  while most > 0 do
    local record = redis.call('LMOVE', KEYS[n], KEYS[n + 1], 'LEFT', 'RIGHT')
    if not record then break end
    local may_have_killed = string.find(record, '^%d+ %a%d')
    if may_have_killed and #taken > 0 then  -- it is handled alone
      redis.call('LMOVE', KEYS[n + 1], KEYS[n], 'RIGHT', 'LEFT')
      most = 0
    else
      taken[#taken + 1], taken[#taken + 2] = (n - 1) / 3, record
      most = may_have_killed and 0 or most - 1
    end
  end
  if most == 0 and redis.call('EXISTS', KEYS[n]) == 1 then wake(KEYS[n + 2]) end
end
return taken
