#!lua flags=allow-oom
-- KEYS slot   ARGV id   -> 1 the next death is the last, 0 it is not held any more
local record = redis.call('LINDEX', KEYS[1], 0)
local kind, id, rest = string.match(record or '', '^(%a)%d*\n([^\n]*)(.*)')
if id ~= ARGV[1] then return 0 end
redis.call('LSET', KEYS[1], 0, kind .. '1000000\n' .. id .. rest)
return 1
