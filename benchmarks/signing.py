"""What a signature costs each side of a call: `python -m benchmarks.signing`. Microseconds, by which key."""

from __future__ import annotations

import time
from collections.abc import Callable
from os import urandom
from statistics import median

from rpc.core.bodies import Writing
from rpc.core.codecs import JSON
from rpc.core.conversation import call_message
from rpc.core.signing import (
    Key,
    Keys,
    SecretKey,
    binding_of,
    check_message,
    check_reply,
    ed25519,
    signed_message,
    signed_reply,
)
from rpc.errors import Unsupported
from rpc.transport import Message, queue

ROUNDS, CALLS = 9, 2000
TO = queue("default")


def microseconds(action: Callable[[], object], calls: int) -> float:
    """Of a processor, for one call, in the median of rounds: what else the machine does is left out."""
    found = []
    for _ in range(ROUNDS):
        began = time.process_time()
        for _ in range(calls):
            action()
        found.append((time.process_time() - began) / calls * 1e6)
    return median(found)


def sides(key: Key, size: int, calls: int) -> tuple[float, float]:
    """What the caller signs and verifies in one call, and what the worker does."""
    keys = Keys({"k": key})
    data = {"text": "x" * size}
    message = call_message("4f" * 16, "add", data, Writing(JSON), ttl=30, replies=True)
    reply = Message(message.body, {"id": message.id, "content-type": JSON.content_type})
    request = signed_message(keys, TO, message, 0.0)
    binding = binding_of(TO, request)
    answer = signed_reply(keys, [binding], reply)

    def caller() -> None:
        check_reply(keys, binding_of(TO, signed_message(keys, TO, message, 0.0)), answer)

    def worker() -> None:
        check_message(keys, TO, request, 0.0, 300.0)
        signed_reply(keys, [binding_of(TO, request)], reply)

    return microseconds(caller, calls), microseconds(worker, calls)


def main() -> None:
    kinds: dict[str, Key] = {"HMAC-SHA-256": SecretKey(urandom(32))}
    try:
        kinds["Ed25519"] = ed25519(private=urandom(32))
    except Unsupported as missing:
        print(missing)
    print(f"{'':14}{'body':>9}{'caller':>12}{'worker':>12}")
    for name, key in kinds.items():
        for size in 100, 1_000, 100_000:
            calls = CALLS if name != "Ed25519" and size < 10_000 else CALLS // 10
            caller, worker = sides(key, size, calls)
            print(f"{name:14}{size:>7} B{caller:>9.1f} µs{worker:>9.1f} µs")


if __name__ == "__main__":
    main()
