#!lua flags=allow-oom
-- KEYS page [inbox...]   ARGV keep_ms (record inbox entry)...   -> how many of them were held
-- A reply is delivered also if its message was given to another worker meanwhile: the first one counts.
local held, inbox, entries = 0, '', {}
local function deliver()
  if #entries == 0 then return end
  redis.call('RPUSH', inbox, unpack(entries))
  redis.call('PEXPIRE', inbox, ARGV[1])
  entries = {}
end
for n = 2, #ARGV, 3 do
  held = held + redis.call('LREM', KEYS[1], 1, ARGV[n])
  if ARGV[n + 1] ~= '' then
    if ARGV[n + 1] ~= inbox then deliver() end
    inbox = ARGV[n + 1]
    entries[#entries + 1] = ARGV[n + 2]
  end
end
deliver()
return held
