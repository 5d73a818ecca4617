"""What is of a wrong kind is refused before anything is sent, with what it should be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from rpc import RpcClient, SettingsError

Wrong = Callable[[RpcClient, Any], Any]


@pytest.fixture
def client() -> RpcClient:
    return RpcClient(backend="memory://wrong", timeout=1)


@pytest.mark.parametrize("wrong", [None, 5, b"add", ("a",), "", "a b"], ids=repr)
@pytest.mark.parametrize(
    ("use", "expected"),
    [
        (lambda client, it: client.call_and_wait(it, []), "is no job name: a letter, then"),
        (lambda client, it: client.call(it), "is no job name: a letter, then"),
        (lambda client, it: client.publish(it, 1), "is no event: letters, digits"),
        (lambda client, it: client.subscribe(it), "is no event: a name, and after its first dot"),
    ],
)
def test_a_name(client: RpcClient, use: Wrong, wrong: Any, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        use(client, wrong)


@pytest.mark.parametrize("wrong", [5, b"low", "a b"], ids=repr)
def test_a_queue(client: RpcClient, wrong: Any) -> None:
    with pytest.raises(ValueError, match="is no queue name: letters, digits"):
        client.call("add", [], queue=wrong)


@pytest.mark.parametrize("name", ["x" * 100_000 + " ", "x" * 100_000], ids=["a name", "a queue"])
def test_a_long_one_is_not_told_in_full(client: RpcClient, name: str) -> None:
    with pytest.raises(ValueError, match="is no ") as caught:
        client.call(name, queue=name)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("wrong", ["x-a", 5, [("x-a", "b")], {5: "x"}, {"x-a": 5}, {"a": "b"}], ids=repr)
def test_headers(client: RpcClient, wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"headers are texts, named x-\.\.\."):
        client.call("add", [], headers=wrong)


@pytest.mark.parametrize("wrong", [None, 5, b"1"], ids=repr)
@pytest.mark.parametrize("use", [RpcClient.job, RpcClient.cancel, RpcClient.retry])
def test_the_id_of_a_job(client: RpcClient, use: Wrong, wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"^a job is found by its id, a text, not "):
        use(client, wrong)


@pytest.mark.parametrize("wrong", ["secret", 5, {5: "x"}, {"pay": 5}, ["pay"]], ids=repr)
def test_a_token(wrong: Any) -> None:
    with pytest.raises(SettingsError, match="says for which jobs a token is"):
        RpcClient(backend="memory://wrong", token=wrong)
