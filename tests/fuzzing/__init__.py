"""Decoders, and any bytes."""

NAMES = [
    *("frame", "message", "dispatch", "credit", "json_rpc", "signature"),
    *("resp", "record", "amqp", "http", "zmq"),
]
"""Of the targets."""
