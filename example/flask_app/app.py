"""A shop on Flask: one RpcClient for all threads of all workers. The README beside it says how to run it."""

import logging
from typing import Any

from flask import Flask, abort, request

from rpc import (
    BackendUnavailable,
    Cancelled,
    InvalidParams,
    MethodNotFound,
    NoReceivers,
    QueueFull,
    RemoteError,
    RpcClient,
    RpcError,
    RpcTimeout,
    WorkerLost,
)

logger = logging.getLogger(__name__)

STATUS = {
    InvalidParams: 422,
    RemoteError: 502,
    MethodNotFound: 502,
    WorkerLost: 502,
    BackendUnavailable: 503,
    NoReceivers: 503,
    QueueFull: 503,
    Cancelled: 503,
    RpcTimeout: 504,
}

client = RpcClient()  # connects at the first call, which is after the fork
app = Flask(__name__)


@app.errorhandler(RpcError)
def failed(error: RpcError) -> tuple[dict[str, str], int]:
    is_refusal = isinstance(error, RemoteError) and error.type == "Refused"
    status = 422 if is_refusal else STATUS.get(type(error), 500)
    if status < 500:
        return {"error": str(error)}, status
    logger.error("%s %s: %s: %s", request.method, request.path, type(error).__name__, error)
    return {"error": type(error).__name__}, status


@app.post("/orders")
def place_order() -> tuple[Any, int]:
    """The job's annotations say what an order is: it is checked there."""
    return client.call_and_wait("place_order", sent()).data, 201


@app.get("/prices")
def prices() -> dict[str, int]:
    items = request.args.getlist("item")
    responses = client.map("price", ([item] for item in items))
    return {item: response.data for item, response in zip(items, responses, strict=True)}


@app.post("/receipts")
def send_receipt() -> tuple[dict[str, str], int]:
    """Nobody waits: the worker checks it later, and logs what is wrong with it."""
    return {"id": client.call("send_receipt", sent())}, 202


def sent() -> dict[str, Any]:
    data = request.get_json()
    return data if isinstance(data, dict) else abort(422)
