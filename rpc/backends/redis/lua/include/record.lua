-- sent kind deaths id inbox once ttl; the frame follows, and the order key the dot after once
local RECORD = '^(%d+) ([kwaKWA])(%d*)%+?\n([!-~]+)\n([^\n]*)\n(%x*)%.?%x*\n(%d*)\n'
