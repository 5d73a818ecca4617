-- include now
-- KEYS topic   ARGV milliseconds   -> the server's time so long ago
return string.format('%.0f', now - ARGV[1])
