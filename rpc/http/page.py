"""The page at `GET /`: the jobs, with a form to try each."""

from __future__ import annotations

import re
from base64 import b64encode
from functools import cache
from hashlib import sha256
from importlib.resources import files
from typing import Any

from ..core.codecs import JSON
from .responses import Response


def page_of(receiver: Any) -> Response:
    """The page of what a receiver has. Its scripts and styles are allowed by their hashes: no
    name, docstring or default is a script. See https://www.w3.org/TR/CSP3/."""
    template, policy = _template()
    data = {
        "document": receiver.discover(),
        "tokens": [name for name in receiver.jobs if receiver.tokens.wanted(name)],
        "signed": bool(receiver.settings.signing_keys) and receiver.settings.signing_required,
    }
    headers = {
        "content-security-policy": policy,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-store",
    }
    written = JSON.encode(data).replace(b"<", b"\\u003c")
    return Response(200, template.replace(b"{{data}}", written), "text/html; charset=utf-8", headers)


@cache
def _template() -> tuple[bytes, str]:
    """The page, and its Content-Security-Policy."""
    template = files(__package__).joinpath("page.html").read_bytes()

    def hashed(tag: bytes) -> str:
        (text,) = re.findall(rb"<%b>(.*?)</%b>" % (tag, tag), template, re.DOTALL)
        return f"{tag.decode()}-src 'sha256-{b64encode(sha256(text).digest()).decode()}'"

    return template, "; ".join(
        (
            "default-src 'none'",
            hashed(b"script"),
            hashed(b"style"),
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
        )
    )
