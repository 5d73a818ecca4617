-- include own
-- KEYS started way_back   ARGV id worker_name frame number last   -> 1 sent, 0 nobody listens
if not own('ZSCORE', KEYS[1], ARGV[1] .. ':' .. ARGV[2]) then return 0 end
local sent = redis.pcall('XADD', KEYS[2], 'NOMKSTREAM', ARGV[4] .. '-0', 'm', ARGV[3])
if not sent then return 0 end
if sent.err and ARGV[5] == '1' then redis.pcall('XADD', KEYS[2], '*', 'm', ARGV[3]) end
return 1  -- also if the same reply is there already, from an earlier delivery: the first one counts
