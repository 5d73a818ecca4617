#!lua flags=allow-oom
-- KEYS key   ARGV kind keep_ms   -> the kind of what was there in its place and made room, or nil
local kind = redis.call('TYPE', KEYS[1]).ok
if kind == 'none' or kind == ARGV[1] then return false end
redis.call('RENAME', KEYS[1], KEYS[1] .. ':refused')
redis.call('PEXPIRE', KEYS[1] .. ':refused', ARGV[2])
return kind
