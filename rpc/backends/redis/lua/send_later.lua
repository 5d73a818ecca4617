-- include refuse
-- include later
-- include line
-- KEYS queue delayed token control [inbox]   ARGV id record token_ms max_length sweep shared delay_ms
-- -> as SEND
if redis.call('EXISTS', KEYS[3]) == 1 then return 0 end
local is_full = ARGV[4] ~= '0' and waiting(KEYS[1]) + own('ZCARD', KEYS[2]) >= 0 + ARGV[4]
if is_full then return full(KEYS[1], ARGV[2], ARGV[1], KEYS[5], ARGV[6]) end
clear(KEYS[5], ARGV[6])
keep(KEYS[1], ARGV[2])
redis.call('SET', KEYS[3], '', 'PX', ARGV[3])
later(KEYS[2], KEYS[4], ARGV[2], ARGV[7])
return 1
