"""AsyncAPI documents of listeners (https://www.asyncapi.com/docs/reference/specification/v3.0.0).

A channel is what listeners listen to, an event or a pattern of them. `x-rpc-group` and `x-rpc-durable` of an
operation are the group that shares each event, and whether it is kept while nobody of that listens;
`x-rpc-headers` are those that an event must have (null: any value), as `x-rpc-match` says.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..core.parameters import function_of
from ..events import Listener
from .documents import Document
from .openrpc import told
from .schemas import Schemas

ASYNCAPI = "3.0.0"

HEADERS, MATCH = "x-rpc-headers", "x-rpc-match"


def asyncapi(listeners: Iterable[Listener], *, title: str, version: str) -> Document:
    """The document of these listeners."""
    schemas = Schemas()
    channels: dict[str, Any] = {}
    operations: dict[str, Any] = {}
    for each in sorted(listeners, key=lambda listener: (listener.subscription.pattern, listener.name)):
        pattern, group, wanted = each.subscription.pattern, each.subscription.group, each.subscription.filter
        name, about = each.name, told(function_of(each.handler))
        channel = channels.setdefault(_key(pattern), {"address": pattern, "messages": {}})
        channel["messages"][name] = {"name": pattern, "payload": schemas.of(each.payload)}
        here = f"#/channels/{_key(pattern)}"
        key = f"{name}.{_key(pattern)}"
        while key in operations:  # it listens to the same twice, with other headers
            key += "_"
        operations[key] = {
            "action": "receive",
            "channel": {"$ref": here},
            "messages": [{"$ref": f"{here}/messages/{name}"}],
            **about,
            **({} if group is None else {"x-rpc-group": group}),
            "x-rpc-durable": each.subscription.durable,
            **({} if wanted.is_everything else {HEADERS: wanted.headers, MATCH: wanted.match}),
        }
    return {
        "asyncapi": ASYNCAPI,
        "info": {"title": title, "version": version},
        "defaultContentType": "application/json",
        "channels": dict(sorted(channels.items())),  # as they are when documents are merged
        "operations": dict(sorted(operations.items())),
        "components": {"schemas": schemas.components()},
    }


def _key(pattern: str) -> str:
    """The key of a channel, to which others refer: `*` has no place in a reference."""
    return pattern.replace("*", "any")
