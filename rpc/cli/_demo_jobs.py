"""The jobs of `rpc demo`, and its settings module: the worker gets the backend's URL on its command line."""

import logging

from ..core.jobs import Request

logger = logging.getLogger(__name__)


def add(request: Request) -> None:
    logger.info("adding %(a)s and %(b)s", request.data)
    request.respond({"answer": request.data["a"] + request.data["b"]})


def note(request: Request) -> None:
    logger.info("noted: %s", request.data["text"])


def divide(a: float, b: float) -> float:
    return a / b


RPC_JOB_MAPPING = {"add": add, "note": note, "divide": divide}
