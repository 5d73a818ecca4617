"""The tree of errors: one base, one code on the wire each, and safe to send between processes."""

from __future__ import annotations

import pickle
import re

import pytest

from rpc import BackendUnavailable, RemoteError, RpcError, RpcTimeout, errors

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
