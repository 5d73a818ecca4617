local RECORD = '^(%a)(%d*)\n([^\n]*)\n([^\n]*)\n([^\n]*)\n'  -- kind, deaths, id, inbox, once; the frame follows
