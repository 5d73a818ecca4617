"""Streams: conversations of more than one message. `iterators` and `consuming` are the caller's end,
`producing` and `uploads` the receiver's; what they count, and how they say it, is in `rpc.core.streams`."""
