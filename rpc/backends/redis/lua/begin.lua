#!lua flags=allow-oom
-- include text
-- KEYS token [once]   ARGV id   -> ms that somebody still wants it, -2 nobody does
local left = redis.call('PTTL', KEYS[1])
if KEYS[2] and left ~= -2 and text_at(KEYS[2]) == 'q' .. ARGV[1] then
  redis.call('SET', KEYS[2], 'r' .. ARGV[1], 'KEEPTTL')
end
return left
