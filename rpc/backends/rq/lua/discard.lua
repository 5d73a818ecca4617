#!lua flags=allow-oom
-- include ours
-- include own
-- KEYS queue queues scheduled   ARGV jobs only_empty   The queue goes, and its jobs, but for those of others.
if ARGV[2] == '1' and own('LLEN', KEYS[1]) + own('ZCARD', KEYS[3]) > 0 then return end
local function drop(id)
  if is_ours(ARGV[1] .. id) then redis.call('DEL', ARGV[1] .. id) end
end
while true do
  local id = own('LPOP', KEYS[1])
  if not id then break end
  drop(id)
end
for _, id in ipairs(own('ZRANGE', KEYS[3], 0, -1)) do drop(id) end
redis.call('DEL', KEYS[3])
redis.pcall('SREM', KEYS[2], KEYS[1])
