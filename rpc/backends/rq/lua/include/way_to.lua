local function way_to(reply_to, key)  -- another key of ours begins with the same prefix
  return string.match(key, '^[^:]*') .. ':re:' .. reply_to
end
