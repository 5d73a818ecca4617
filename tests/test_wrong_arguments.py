"""What is of a wrong kind is refused before anything is sent, with what it should be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from rpc import AsyncRpcClient, RpcClient, RpcReceiver, SettingsError, job

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


@pytest.mark.parametrize("wrong", [5, b"low", "a b", ["low"]], ids=repr)
def test_a_queue(client: RpcClient, wrong: Any) -> None:
    with pytest.raises(ValueError, match="is no queue name: letters, digits"):
        client.call("add", [], queue=wrong)


@pytest.mark.parametrize("name", ["x" * 100_000 + " ", "x" * 100_000], ids=["a name", "a queue"])
def test_a_long_one_is_not_told_in_full(client: RpcClient, name: str) -> None:
    with pytest.raises(ValueError, match="is no ") as caught:
        client.call(name, queue=name)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ("x-a", "headers are texts by their names, not a str"),
        (5, "headers are texts by their names, not a int"),
        ([("x-a", "secret")], "headers are texts by their names, not a list"),
        ({5: "secret"}, r"headers are named x-\.\.\., .*, not 5"),
        ({"x-a": 5}, "headers are texts, but 'x-a' is a int"),
        ({"x-a": b"secret"}, "headers are texts, but 'x-a' is a bytes"),
        ({"x-a": "b", "Authorization": "secret"}, r"headers are named x-\.\.\., .*, not 'Authorization'"),
        ({"X-User": "secret"}, r"headers are named x-\.\.\., .*, not 'X-User', in small letters: 'x-user'"),
    ],
    ids=repr,
)
def test_headers(client: RpcClient, wrong: Any, expected: str) -> None:
    with pytest.raises(ValueError, match=f"^{expected}$"):
        client.call("add", [], headers=wrong)


def test_the_header_of_an_event(client: RpcClient) -> None:
    with pytest.raises(ValueError, match=r"^header 'user' is a str, an int .*, not this dict$"):
        client.publish("boom", headers={"user": {"a": "secret"}})


@pytest.mark.parametrize("make", [RpcClient, AsyncRpcClient])
def test_arguments_of_a_client(make: Any) -> None:
    with pytest.raises(
        TypeError, match=rf"^the arguments of {make.__name__} have names, as in backend='redis:"
    ):
        make("redis://:secret@127.0.0.1")
    with pytest.raises(ValueError, match=r"\['low'\] is no queue name"):
        make(backend="memory://wrong", queue=["low"])


def test_jobs_that_are_no_mapping() -> None:
    jobs: Any = [print]
    with pytest.raises(SettingsError, match=r"^jobs maps names to functions, .*; it is a list$"):
        RpcReceiver(jobs=jobs, backend="memory://wrong")


def test_a_decorator_without_parentheses() -> None:
    decorator: Any = job
    with pytest.raises(TypeError, match=r"^write @job\(…\), with options in parentheses"):
        decorator(print)


@pytest.mark.parametrize("wrong", [None, 5, b"1"], ids=repr)
@pytest.mark.parametrize("use", [RpcClient.job, RpcClient.cancel, RpcClient.retry])
def test_the_id_of_a_job(client: RpcClient, use: Wrong, wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"^a job is found by its id, a text, not "):
        use(client, wrong)


@pytest.mark.parametrize("wrong", ["secret", 5, {5: "x"}, {"pay": 5}, ["pay"]], ids=repr)
def test_a_token(wrong: Any) -> None:
    with pytest.raises(SettingsError, match="says for which jobs a token is"):
        RpcClient(backend="memory://wrong", token=wrong)
