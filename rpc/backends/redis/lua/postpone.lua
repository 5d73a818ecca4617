#!lua flags=allow-oom
-- include later
-- KEYS page delayed control [cancelled]   ARGV record later delay_ms
-- -> 1 put among the delayed, 0 it was not held, 2 it was cancelled, and is held still
if KEYS[4] and redis.call('EXISTS', KEYS[4]) == 1 then return 2 end
if redis.call('LREM', KEYS[1], 1, ARGV[1]) == 0 then return 0 end
later(KEYS[2], KEYS[3], ARGV[2], ARGV[3])
return 1
