"""What each of our backends can do, known without its driver; and the words for what one cannot."""

from __future__ import annotations

from ..errors import Unsupported

_ON_A_BROKER = frozenset(
    {
        "store-and-forward",
        "durable",
        "redelivers",
        "topics",
        "groups",
        "subscriptions",
        "locks",
        "priorities",
        "processes",
        "liveness",
        "presence",
        "delay",
        "dead-letters",
        "counts",
    }
)
_OF_A_BROKER = {"durable", "redelivers", "processes", "liveness"}
_SEEN = {"inspection", "results"}
_ON_HTTP = frozenset(
    {"redelivers", "describes", "priorities", "processes", "liveness", "presence", "detached"}
)
FEATURES = {
    "redis": _ON_A_BROKER | _SEEN | {"idempotency", "order", "detached", "replay"},
    "rq+redis": _ON_A_BROKER | _SEEN | {"idempotency", "order", "replay"},
    "amqp": _ON_A_BROKER | {"order", "detached"},
    "zmq+tcp": frozenset(
        {"redelivers", "topics", "groups", "priorities", "processes", "liveness", "presence", "detached"}
    ),
    "http": _ON_HTTP,
    "ws": _ON_HTTP,
    "memory": (_ON_A_BROKER - _OF_A_BROKER) | _SEEN | {"idempotency", "order", "detached"},
}
"""URL scheme -> the features of its backend: see `transport.Backend`."""


def unsupported(feature: str, who: str = "this backend") -> Unsupported:
    """The error that says so, and which backends have the feature."""
    able = [f"{scheme}:" for scheme, features in FEATURES.items() if feature in features]
    named = " and ".join(filter(None, (", ".join(able[:-1]), able[-1])))
    return Unsupported(f"{who} has no feature {feature!r}; {named} have it")
