#!lua flags=allow-oom
-- include answer
-- include take
-- include bury
-- KEYS slot queue dead   ARGV id why number frame   -> 1 among the dead letters, 0 it was not held
local record = take(KEYS[1], ARGV[1])
if not record then return 0 end
answer(KEYS[2], record, ARGV[3], ARGV[4])
bury(KEYS[2], KEYS[3], ARGV[2], record)
return 1
