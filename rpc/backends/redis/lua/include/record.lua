-- sent kind deaths id inbox once ttl; the frame follows
local RECORD = '^(%d+) ([kwaKWA])(%d*)%+?\n([!-~]+)\n([^\n]*)\n(%x*)\n(%d*)\n'
