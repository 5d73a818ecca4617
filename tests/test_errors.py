"""The tree of errors: one base, one code on the wire each, and safe to send between processes."""

from __future__ import annotations

import json
import logging
import pickle
import re
import sys
import threading
from pathlib import Path

import pytest
from in_memory import LONG

from rpc import BackendUnavailable, RemoteError, RpcClient, RpcError, RpcReceiver, RpcTimeout, errors, job
from rpc.backends import backend_from_url
from rpc.transport import NAME, Delivery, Message, queue

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


@pytest.mark.parametrize("kind", ["subprocess.Popen", "builtins.exec", "this.Zen", "KeyError"])
def test_what_a_reply_names_is_neither_imported_nor_run(memory_url: str, tmp_path: Path, kind: str) -> None:
    """An error is a RemoteError with its name as `type`, a result the data that it is."""
    touched = tmp_path / "touched"
    arguments = {"subprocess.Popen": ["touch", str(touched)]}.get(kind, f"open({str(touched)!r}, 'w')")
    said = {
        "type": kind,
        "message": arguments,
        "args": [arguments],
        "data": {"type": kind, "args": [arguments]},
    }
    error = {"code": RemoteError.code, "message": "why", "data": said}

    def answer(delivery: Delivery) -> None:
        asked = delivery.message
        outcome = {"error": error} if b"fail" in asked.body else {"result": said}
        reply = {"jsonrpc": "2.0", "id": asked.id, **outcome}
        delivery.finish(Message(json.dumps(reply).encode(), asked.headers))

    server = backend_from_url(memory_url).server([queue("default")], answer)
    thread = threading.Thread(target=server.run)
    thread.start()
    with RpcClient(backend=memory_url, timeout=LONG) as client:
        assert client.call_and_wait("succeed").data == said
        with pytest.raises(RemoteError) as raised:
            client.call_and_wait("fail")
    server.stop()
    thread.join(LONG)
    assert (type(raised.value), raised.value.type) == (RemoteError, kind)
    assert not touched.exists()
    assert "this" not in sys.modules
