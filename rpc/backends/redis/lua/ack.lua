#!lua flags=allow-oom
-- include own
-- include reply
-- KEYS page [inbox...]   ARGV keep_ms (record inbox entry)...   -> how many of them were held
-- A reply is delivered also if its message was given to another worker meanwhile: the first one counts.
local held, inbox, entries = 0, '', {}
local function deliver()
  if #entries == 0 then return end
  put(inbox, ARGV[1], unpack(entries))
  entries = {}
end
for n = 2, #ARGV, 3 do
  held = held + own('LREM', KEYS[1], 1, ARGV[n])
  if ARGV[n + 1] ~= '' then
    if ARGV[n + 1] ~= inbox then deliver() end
    inbox = ARGV[n + 1]
    entries[#entries + 1] = ARGV[n + 2]
  end
end
deliver()
return held
