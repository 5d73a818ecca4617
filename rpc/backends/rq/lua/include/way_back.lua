local function open(way_back, keep_ms)
  redis.call('UNLINK', way_back)  -- nobody's yet, whatever is there
  redis.call('XADD', way_back, '0-1', 'm', '')
  redis.call('PEXPIRE', way_back, keep_ms)
end
