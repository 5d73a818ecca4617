#!lua flags=allow-oom
-- include own
-- include record
-- KEYS cancelled control page...   ARGV id length   -> 1 whoever has it is told, and cannot postpone it, 0 nobody has it
for page = 3, #KEYS do
  for _, record in ipairs(own('LRANGE', KEYS[page], 0, -1)) do
    local _, _, _, id = string.match(record, RECORD)
    if id == ARGV[1] then
      redis.call('SET', KEYS[1], '', 'PX', '3600000')
      own('XADD', KEYS[2], 'MAXLEN', '~', ARGV[2], '*', 'cancelled', id)
      redis.call('PEXPIRE', KEYS[2], '3600000')
      return 1
    end
  end
end
return 0
