local function reply_to(inbox, number, id, frame)
  redis.call('RPUSH', inbox, number .. '\n' .. id .. '\n' .. frame)
  redis.call('PEXPIRE', inbox, '60000')
end
