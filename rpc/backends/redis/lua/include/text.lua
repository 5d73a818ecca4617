local function text_at(key)  -- false if there is none
  local value = redis.pcall('GET', key)
  return type(value) == 'string' and value
end
