"""Signed messages, for tests of what was there before them. As a plugin of pytest (`-p tests.signed`): every
client and receiver of the test's process has keys. For the conformance suite: a site of signed backends."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

from rpc import caller, job_info, receiver
from rpc.backends import backend_from_url
from rpc.settings import Settings
from rpc.signing.backend import signing
from rpc.testing.site import Site, main
from rpc.transport import Backend

KEYS = {"test": "a secret of thirty-two characters"}


def signed(settings: Settings, backend: Any) -> Any:
    return signing(settings if settings.signing_keys else replace(settings, signing_keys=KEYS), backend)


def signed_backend(url: str, **options: Any) -> Backend:
    made: Backend = signed(Settings(), backend_from_url(url, **options))
    return made


class SignedSite(Site):
    made = staticmethod(signed_backend)
    module = __name__


def pytest_configure() -> None:
    for module in (caller, job_info, receiver):
        module.signing = signed  # type: ignore[attr-defined]


if __name__ == "__main__":
    main(*sys.argv[1:], made=signed_backend)
