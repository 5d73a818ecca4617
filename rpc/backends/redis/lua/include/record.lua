-- sent kind deaths id inbox once ttl; the frame follows
local RECORD = '^(%d+) (%a)(%d*)%+?\n([^\n]*)\n([^\n]*)\n([^\n]*)\n(%d*)\n'
