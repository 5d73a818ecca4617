"""The tree of errors: one base, one code on the wire each, and safe to send between processes."""

from __future__ import annotations

import logging
import pickle
import re
import threading

import pytest
from in_memory import LONG

from rpc import BackendUnavailable, RemoteError, RpcClient, RpcError, RpcReceiver, RpcTimeout, errors, job
from rpc.transport import NAME, Message, queue

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, RpcError)]


def test_the_tree_is_drawn_in_full_and_no_two_share_a_code():
    assert set(re.findall(r"[├└]── (\w+)", errors.__doc__)) == {kind.__name__ for kind in KINDS} - {
        "RpcError"
    }
    codes = [kind.code for kind in KINDS if "code" in vars(kind) and kind is not RpcError]
    assert len(set(codes)) == len(codes) == len(KINDS) - 2


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_survives_pickling(kind):
    error = RemoteError("KeyError", "'a'", {"b": 1}, "line 1") if kind is RemoteError else kind("why")
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), vars(copy)) == (kind, str(error), vars(error))


@pytest.mark.parametrize(
    ("kind", "other"), [(RpcTimeout, TimeoutError), (BackendUnavailable, ConnectionError)]
)
def test_what_python_has_a_word_for_is_that_too(kind, other):
    with pytest.raises(other, match=r"^why$"):
        raise kind("why")


@pytest.mark.parametrize(("message", "text"), [("'a'", "KeyError: 'a'"), ("", "KeyError")])
def test_a_remote_error_reads_like_the_remote_one(message, text):
    assert str(RemoteError("KeyError", message)) == text


@pytest.mark.parametrize("body", [b"", b'{"jsonrpc": "2.0", "method": "x\\ny"}', b'{"method": "fail"}'])
def test_what_others_write_forges_no_lines_of_a_log(
    memory_url: str, caplog: pytest.LogCaptureFixture, body: bytes
) -> None:
    @job(retries=1, backoff=0.001)
    def fail() -> None:
        raise ValueError

    caplog.set_level(logging.INFO, "rpc")
    receiver = RpcReceiver(jobs={"fail": fail, "echo": lambda number: number}, backend=memory_url)
    thread = threading.Thread(target=receiver.run)
    thread.start()
    forged = "2026-01-01 CRITICAL forged"
    with RpcClient(backend=memory_url, timeout=LONG) as client:
        client.backend.send(queue("default"), Message(body, {"id": f"x\n{forged}", NAME: f"x\n{forged}"}))
        client.call_and_wait("echo", [1])
        receiver.stop()
        thread.join(LONG)
    said = [record.getMessage() for record in caplog.records]
    assert any(forged in text for text in said)
    assert [text for text in said if "\n" in text] == []
