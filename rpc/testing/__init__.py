"""Help for tests: an embedded Redis (`start_redis`), pytest fixtures (`rpc_redis`, `rpc_worker`), and the
suite that every backend passes (`rpc.testing.conformance`)."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .servers import RedisServer, start_redis

__all__ = ["RedisServer", "start_redis"]


def __getattr__(name: str) -> Any:
    if name in __all__:  # brings redis along: pytest loads this package, by its plugin, for everybody
        from . import servers

        return getattr(servers, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
