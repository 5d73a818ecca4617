"""The client of the project."""

from __future__ import annotations

import atexit
from collections.abc import Mapping
from datetime import datetime
from typing import Any, cast

from django.core.signals import setting_changed
from django.db import transaction

from ...caller import Key
from ...client import RpcClient
from ...durations import Duration
from .conf import NAME, settings

_made: dict[str, RpcClient] = {}


def client() -> RpcClient:
    """The one client of this process, with the settings in RPC; made when it is first asked for, and closed
    when the process ends. For any number of threads, and for forks. Raises SettingsError."""
    # Not under a lock, which a fork could copy while it is held: of two, only one is ever used.
    return _made.get(NAME) or _made.setdefault(NAME, RpcClient(settings=settings()))


class _Rpc:
    """Stands for `client()`, and makes none before something is asked of it."""

    def __getattr__(self, name: str) -> Any:
        return getattr(client(), name)

    def __dir__(self) -> list[str]:
        return dir(client())

    def __repr__(self) -> str:
        return "<the RpcClient of this project>"


rpc = cast("RpcClient", _Rpc())


def call_on_commit(
    name: str,
    data: Any = None,
    *,
    using: str | None = None,
    queue: str | None = None,
    ttl: Duration | None = None,
    delay: Duration | None = None,
    at: datetime | None = None,
    idempotency_key: Key | None = None,
    order_key: Key | None = None,
    keep: Duration | None = None,
    headers: Mapping[str, str] | None = None,
) -> str:
    """Send a job, as `RpcClient.call` does, as soon as the current transaction of the database `using` has
    committed; at once if there is none. If it is rolled back, or the savepoint is in which this was called,
    nothing is sent. `ttl`, `delay` and `keep` are in seconds; the first two count from then. Returns the id
    that the job will have.

    What is wrong with the arguments is raised here: SerializationError, ValueError, Unsupported. If the
    broker fails when the transaction has committed, BackendUnavailable or QueueFull leaves the outermost
    `atomic` block: what was saved stays saved, the job is not sent, and what else was to be done on commit
    is not done.
    """
    about = name, data, ttl, delay, at, idempotency_key, order_key, keep, headers
    # What these raise is to be known before the commit.
    id, _ = client()._job(*about).id, client().to(name, queue)

    def send() -> None:
        sender = client()
        sender._send(lambda: sender._job(*about, id=id), sender.to(name, queue))

    transaction.on_commit(send, using=using)
    return id


@atexit.register
def close() -> None:
    """Close the client, if one was made. The next one who asks gets another."""
    if found := _made.pop(NAME, None):
        found.close()


def _on_setting_changed(*, setting: str, **_: Any) -> None:
    """Tests override settings."""
    if setting == NAME:
        close()


setting_changed.connect(_on_setting_changed)
