"""A backend whose messages are signed: between everything that sends or serves and the backend that carries
it, so that there is one place where messages are signed, and one where they are verified.

What arrives unsigned is not given to anybody: a job is refused, and kept as a dead letter; an event, a
message to a stream, a reply and a kept outcome are as if they had not come. Each is logged and counted.
"""
