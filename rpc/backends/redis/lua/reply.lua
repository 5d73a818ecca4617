#!lua flags=allow-oom
-- include reply
-- KEYS slot token inbox   ARGV id number frame place last   -> 1 sent, 0 nobody listens, or it is not held
-- place: where in the slot it is; last: no acknowledgement will send it again, and no other worker
local record = redis.call('LINDEX', KEYS[1], ARGV[4])
local kind, id, lane, rest = string.match(record or '', '^(%a%d*)\n([^\n]*)\n([^\n]*)(.*)')
if id ~= ARGV[1] or lane == '' or redis.call('EXISTS', KEYS[2]) == 0 then return 0 end
reply_to(KEYS[3], ARGV[2], id, ARGV[3])
if ARGV[5] == '1' then redis.call('LSET', KEYS[1], ARGV[4], kind .. '\n' .. id .. '\n' .. rest) end
return 1
