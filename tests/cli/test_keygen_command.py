"""`rpc keygen`: what it prints is a key."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from click.testing import Result

from rpc.signing.signer import keys_of

Invoke = Callable[..., Result]


def test_a_secret_is_new_each_time_and_can_be_taken_as_it_is(invoke: Invoke) -> None:
    one, other = (invoke("keygen").stdout.strip() for _ in range(2))
    assert one.partition("=")[2] != other.partition("=")[2]
    keys_of(f"{one},{other}")


def test_a_pair_has_a_half_that_signs_and_one_that_does_not(invoke: Invoke) -> None:
    pytest.importorskip("cryptography")
    private, public = invoke("keygen", "--ed25519", "--id", "worker").stdout.split()
    signing, verifying = keys_of(private), keys_of(f"{invoke('keygen').stdout.strip()},{public}")
    verifying.check(b"kind", b"data", signing.signature(b"kind", b"data"))
    assert public.startswith("worker=ed25519-public:")


def test_with_json_it_is_one_object(invoke: Invoke) -> None:
    made = json.loads(invoke("keygen", "--id", "2026-11", "--json").stdout)
    assert (made["id"], made["public"]) == ("2026-11", None)
    keys_of({made["id"]: made["key"]})


def test_an_id_that_is_none_is_refused(invoke: Invoke) -> None:
    result = invoke("keygen", "--id", "a b")
    assert result.exit_code == 2
    assert "--id" in result.stderr
