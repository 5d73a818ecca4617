-- include own
local function ring(bell)
  own('LPUSH', bell, 1)
  redis.call('PEXPIRE', bell, 60000)
end
