"""Jobs: the settings map a name to each of these functions."""

import logging

from rpc import Request

logger = logging.getLogger(__name__)


def add(request: Request) -> None:
    logger.info("adding %(a)s and %(b)s", request.data)
    request.respond({"answer": request.data["a"] + request.data["b"]})


def multiply(a: float, b: float) -> float:
    """In typed style: arguments are checked against the annotations, and what it returns is the response."""
    return a * b


def divide(a: float, b: float) -> float:
    """Fails for b=0: the caller gets a RemoteError."""
    return a / b
