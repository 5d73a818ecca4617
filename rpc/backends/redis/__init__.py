"""Redis natively: one server, the master that sentinels know, or a cluster."""

from .backend import RedisBackend as RedisBackend
