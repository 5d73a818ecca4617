-- The worker (KEYS[2], ARGV[2]) does not have the job ARGV[1] any more. ARGV[9]: executions
if is_hash(KEYS[2]) and redis.call('HGET', KEYS[2], 'current_job') == ARGV[1] then redis.call('HDEL', KEYS[2], 'current_job') end
if ARGV[9] ~= '' then
  redis.call('DEL', ARGV[9] .. ARGV[1] .. ':' .. ARGV[2])
  redis.pcall('SREM', KEYS[2] .. ':executions', ARGV[1] .. ':' .. ARGV[2])
end
