"""Limits that hold on every backend: what is too large, too deep, or has too many headers, is an error that
says so, and nobody else notices. Those of HTTP alone (batches, streams of one address) are in
overhttp/test_hostile.py."""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from threading import Thread
from typing import Any

import pytest

from rpc import RpcClient, RpcReceiver, SerializationError
from rpc.core.codecs import MAX_DEPTH
from rpc.settings import Settings
from rpc.transport import MAX_HEADER_BYTES, MAX_HEADERS

SECONDS = 60
LARGEST = 50_000
"""Bytes of a message."""


@pytest.fixture(
    params=[
        "memory",
        pytest.param("redis", marks=pytest.mark.redis),
        pytest.param("rq", marks=pytest.mark.redis),
        pytest.param("amqp", marks=pytest.mark.xdist_group("rabbit_node")),
        "zmq",
        "http",
    ]
)
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    """Of a receiver whose messages have at most LARGEST bytes."""
    url = str(request.getfixturevalue(f"{request.param}_url"))
    jobs = {"echo": lambda value: value, "grow": lambda size: "x" * size}
    receiver = RpcReceiver(jobs=jobs, backend=url, settings=Settings(max_message_bytes=LARGEST))
    thread = Thread(target=receiver.run)
    thread.start()
    yield url
    receiver.stop()
    thread.join()


def nested(depth: int) -> Any:
    return reduce(lambda inner, _: [inner], range(depth - 1), [])


@pytest.mark.parametrize("codec", ["json", "msgpack", "json+types"])
def test_what_is_beyond_a_limit_is_an_error_and_harms_nobody(url: str, codec: str) -> None:
    large = "x" * LARGEST
    headers = {f"x-{n}": "" for n in range(MAX_HEADERS + 1)}
    too_many = rf"at most {MAX_HEADERS} headers, of {MAX_HEADER_BYTES} bytes"
    with (
        RpcClient(backend=url, timeout=SECONDS, codec=codec) as client,
        RpcClient(backend=url, timeout=SECONDS, codec=codec, compress="gzip:1kB") as compressing,
        RpcClient(backend=url, timeout=SECONDS, codec=codec, max_message_bytes=1000) as small,
    ):
        for calling, name, data, options, why in (
            (client, "echo", [large], {}, f"more than {LARGEST}"),
            (compressing, "echo", [large], {}, f"more than {LARGEST} bytes when it is decompressed"),
            (client, "grow", [LARGEST], {}, f"more than {LARGEST}"),
            (small, "echo", ["x" * 1000], {}, "more than 1000"),
            (small, "grow", [1000], {}, "more than 1000"),
            (client, "echo", [nested(MAX_DEPTH)], {}, f"nested more deeply than {MAX_DEPTH}"),
            (client, "echo", ["x"], {"headers": headers}, too_many),
            (client, "echo", ["x"], {"headers": {"x-a": "x" * MAX_HEADER_BYTES}}, too_many),
        ):
            with pytest.raises(SerializationError, match=why):
                calling.call_and_wait(name, data, **options)
            assert calling.call_and_wait("echo", ["still here"]).data == "still here"
        assert client.call_and_wait("echo", [nested(MAX_DEPTH - 2)]).data == nested(MAX_DEPTH - 2)
