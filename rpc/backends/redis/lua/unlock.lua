-- include text
-- KEYS lock   ARGV owner
if text_at(KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
