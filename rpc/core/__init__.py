"""Everything that is decided: encoding, dispatch, validation, both ends of a conversation.

No I/O, no threads, no clock of its own: time is an argument. `make lint` checks it.
"""
