local function own(how, key, ...)  -- a command on a key of ours; what it holds of another type makes room
  local outcome = redis.pcall(how, key, ...)
  if type(outcome) ~= 'table' or not outcome.err then return outcome end
  if string.find(outcome.err, 'WRONGTYPE') or string.find(outcome.err, 'exhausted') then
    redis.call('RENAME', key, key .. ':refused')
    redis.call('PEXPIRE', key .. ':refused', '604800000')
  end
  return redis.call(how, key, ...)
end
