#!lua flags=allow-oom
-- include answer
-- KEYS slot queue [(token inbox)...]   ARGV (id entry)...   -> how many of them were held
-- entry: as it will lie in the inbox; nothing for none
local records = redis.call('LPOP', KEYS[1], #ARGV / 2) or {}
local held, inbox, entries = 0, '', {}
local function deliver()
  if #entries == 0 then return end
  redis.call('RPUSH', inbox, unpack(entries))
  redis.call('PEXPIRE', inbox, '60000')
  entries = {}
end
for n = 1, #ARGV, 2 do
  local record, entry = records[held + 1], ARGV[n + 1]
  local kind, _, id, lane, once = string.match(record or '', RECORD)
  if kind and id == ARGV[n] then
    held = held + 1
    if once == '' and string.find(kind, '%l') then  -- as `answer` does, with one push for several
      if lane ~= inbox then deliver() end
      inbox = lane
      if lane ~= '' and entry ~= '' then entries[#entries + 1] = entry end
      if kind == 'w' then redis.call('PEXPIRE', KEYS[2] .. ':t:' .. id, '10000') end
    else
      local number, frame = string.match(entry, '^(%d+)\n[^\n]*\n(.*)')
      answer(KEYS[2], record, number or '0', frame or '')
      if string.find(kind, '%u') then redis.call('UNLINK', KEYS[2] .. ':b:' .. id) end
    end
  end
end
deliver()
for n = #records, held + 1, -1 do redis.call('LPUSH', KEYS[1], records[n]) end
return held
