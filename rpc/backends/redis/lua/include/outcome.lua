-- include record
local function keep_last(queue, record, frame, keep_ms)  -- for anybody who knows the id
  local _, _, _, id = string.match(record, RECORD)
  if id and frame ~= '' and keep_ms ~= '0' then redis.call('SET', queue .. ':r:' .. id, frame, 'PX', keep_ms) end
end
