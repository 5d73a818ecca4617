local function open(way_back, keep_ms)
  redis.pcall('XADD', way_back, '0-1', 'm', '')  -- it is there already if this is a repetition
  redis.call('PEXPIRE', way_back, keep_ms)
end
