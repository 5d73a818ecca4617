"""Help for tests: an embedded Redis (`start_redis`), pytest fixtures (`rpc_redis`, `rpc_worker`), and the
suite that every backend passes (`rpc.testing.conformance`)."""

from .servers import RedisServer, start_redis

__all__ = ["RedisServer", "start_redis"]
