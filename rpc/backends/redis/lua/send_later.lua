-- include refuse
-- include later
-- KEYS queue delayed token control [inbox]   ARGV id record token_ms max_length sweep shared delay_ms
-- -> as SEND
if redis.call('EXISTS', KEYS[3]) == 1 then return 0 end
local length = own('LLEN', KEYS[1]) + own('ZCARD', KEYS[2])
if ARGV[4] ~= '0' and length >= 0 + ARGV[4] then return full(KEYS[1], ARGV[2], ARGV[1], KEYS[5], ARGV[6]) end
clear(KEYS[5], ARGV[6])
keep(KEYS[1], ARGV[2])
redis.call('SET', KEYS[3], '', 'PX', ARGV[3])
later(KEYS[2], KEYS[4], ARGV[2], ARGV[7])
return 1
