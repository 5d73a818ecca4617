#!lua flags=allow-oom
-- include answer
-- include body
-- include line
-- include outcome
-- KEYS page queue   ARGV (record number frame keep_ms)...   -> how many of them were held
-- As ACK, for messages with an idempotency key, an order key, whose body lies elsewhere, or whose last reply is kept.
local held = 0
for n = 1, #ARGV, 4 do
  local record, number, frame = ARGV[n], ARGV[n + 1], ARGV[n + 2]
  if redis.call('LREM', KEYS[1], 1, record) == 1 then
    held = held + 1
    answer(KEYS[2], record, number, frame)
    keep_last(KEYS[2], record, frame, ARGV[n + 3])
    if string.find(record, '^%d+ %u') then forget(KEYS[2], record) end
    step(KEYS[2], record)
  end
end
return held
