-- include ours
-- KEYS queue queues   ARGV jobs   The queue goes, and its jobs, but for those of others.
while true do
  local id = redis.call('LPOP', KEYS[1])
  if not id then break end
  if is_ours(ARGV[1] .. id) then redis.call('DEL', ARGV[1] .. id) end
end
redis.pcall('SREM', KEYS[2], KEYS[1])
