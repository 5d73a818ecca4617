"""A job with a process of its own, which must be able to import it."""

from __future__ import annotations

from rpc import Request, job


@job(fork=True)
def convert(request: Request) -> str:
    request.progress(0.5, "converting")
    return "converted"
