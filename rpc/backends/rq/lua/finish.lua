#!lua flags=allow-oom
-- include now
-- include ours
-- include own
-- include answer
-- include line
-- KEYS started worker job registry way_back result queue bell [results]
-- ARGV id worker_name status ended_at keep_s why frame number executions dead kept keep_ms once [shown]
-- -> 1 done, 0 it was given to another worker meanwhile
-- include let_go
if is_hash(KEYS[2]) then redis.call('HSET', KEYS[2], 'state', 'idle') end
if own('ZREM', KEYS[1], ARGV[1] .. ':' .. ARGV[2]) == 0 then
  if not is_ours(KEYS[3]) then return 0 end
  local done = redis.call('HMGET', KEYS[3], 'worker_name', 'status')
  return done[1] == ARGV[2] and done[2] == ARGV[3] and 1 or 0  -- 1: the answer to this was lost before
end
step(KEYS[7], KEYS[8], KEYS[3], ARGV[1])
if ARGV[7] ~= '' and redis.call('EXISTS', KEYS[5]) == 1 then
  local sent = redis.pcall('XADD', KEYS[5], ARGV[8] .. '-0', 'm', ARGV[7])
  if sent.err then sent = redis.pcall('XADD', KEYS[5], '*', 'm', ARGV[7]) end  -- another worker has said more
  if sent.err then  -- it is something else: that makes room
    redis.call('UNLINK', KEYS[5])
    redis.call('XADD', KEYS[5], '*', 'm', ARGV[7])
    redis.call('PEXPIRE', KEYS[5], 60000)
  end
end
if ARGV[11] ~= '' then redis.call('SET', KEYS[6], ARGV[11], 'PX', ARGV[12]) end
if ARGV[13] ~= '' then answer(ARGV[13], ARGV[1], ARGV[7], true) end
local finished = ARGV[3] == 'finished'
if is_hash(KEYS[2]) then
  redis.pcall('HINCRBY', KEYS[2], finished and 'successful_job_count' or 'failed_job_count', 1)
end
if not is_ours(KEYS[3]) then return 1 end
if tonumber(ARGV[5]) <= 0 then
  redis.call('DEL', KEYS[3])
  return 1
end
redis.call('HSET', KEYS[3], 'status', ARGV[3], 'ended_at', ARGV[4])
if ARGV[6] ~= '' then redis.call('HSET', KEYS[3], 'exc_info', ARGV[6]) end
if ARGV[10] == '1' then redis.call('HSET', KEYS[3], 'rpc_dead', string.format('%.0f', t[1] * 1000000 + t[2])) end
if KEYS[9] then
  redis.pcall('XADD', KEYS[9], 'MAXLEN', 10, '*', 'type', 2, 'worker_name', ARGV[2], 'exc_string', ARGV[14])
  redis.call('EXPIRE', KEYS[9], ARGV[5])
end
redis.call('EXPIRE', KEYS[3], ARGV[5])
own('ZADD', KEYS[4], t[1] + ARGV[5], ARGV[1])
return 1
