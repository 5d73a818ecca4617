"""Help for tests: answers without a broker (`patch`), an embedded Redis (`start_redis`), pytest fixtures
(`rpc_receiver`, `rpc_worker`, `rpc_redis`), and the suite that every backend passes
(`rpc.testing.conformance`)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .patching import patch
    from .servers import RedisServer, start_redis

__all__ = ["RedisServer", "patch", "start_redis"]


def __getattr__(name: str) -> Any:
    if name in __all__:  # each brings much along: pytest loads this package, by its plugin, for everybody
        return getattr(import_module(f".{'patching' if name == 'patch' else 'servers'}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
