local function ring(bell)  -- once is enough: whoever is woken up looks at all that is there
  if redis.call('EXISTS', bell) == 0 then redis.call('LPUSH', bell, '1') end
  redis.call('PEXPIRE', bell, '60000')
end
