-- include now
-- include enqueue
-- include way_back
-- include line
-- KEYS job queue queues bell [way back]   ARGV id ttl_ms way_back_ms latest_ms (0: any time) field value ...   -> the time in ms
if ARGV[4] ~= '0' and now > tonumber(ARGV[4]) then return now end  -- it was on its way for longer than anybody waits
local jobs = string.sub(KEYS[1], 1, -1 - #ARGV[1])
for _ = 1, 2 do  -- expired jobs leave their id behind: sweep two for each that comes
  local head = own('LINDEX', KEYS[2], 0)
  if not head or redis.call('EXISTS', jobs .. head) == 1 then break end
  redis.call('LPOP', KEYS[2])
  step(KEYS[2], KEYS[4], jobs .. head, head)
end
if redis.call('EXISTS', KEYS[1]) == 1 then return now end
redis.call('HSET', KEYS[1], unpack(ARGV, 5))
if tonumber(ARGV[2]) > 0 then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
if KEYS[5] then open(KEYS[5], ARGV[3]) end
enqueue(KEYS[2], KEYS[3], KEYS[4], ARGV[1])
return now
