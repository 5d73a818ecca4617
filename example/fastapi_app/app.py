"""A shop on FastAPI: one AsyncRpcClient for the whole app. The README beside it says how to run it."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Query, Request
from fastapi.responses import JSONResponse, StreamingResponse

from rpc import (
    AsyncRpcClient,
    BackendUnavailable,
    Cancelled,
    InvalidParams,
    MethodNotFound,
    NoReceivers,
    QueueFull,
    RemoteError,
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


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
    async with AsyncRpcClient() as client:
        yield {"client": client}


def client_of(request: Request) -> AsyncRpcClient:
    client: AsyncRpcClient = request.state.client
    return client


Client = Annotated[AsyncRpcClient, Depends(client_of)]
app = FastAPI(lifespan=lifespan)


@app.exception_handler(RpcError)
async def failed(request: Request, error: RpcError) -> JSONResponse:
    is_refusal = isinstance(error, RemoteError) and error.type == "Refused"
    status = 422 if is_refusal else STATUS.get(type(error), 500)
    if status < 500:
        return JSONResponse({"error": str(error)}, status)
    logger.error("%s %s: %s: %s", request.method, request.url.path, type(error).__name__, error)
    return JSONResponse({"error": type(error).__name__}, status)


@app.post("/orders", status_code=201)
async def place_order(order: dict[str, Any], client: Client) -> Any:
    """The job's annotations say what an order is: it is checked there."""
    response = await client.call_and_wait("place_order", order)
    return response.data


@app.get("/prices")
async def prices(item: Annotated[list[str], Query(max_length=100)], client: Client) -> dict[str, int]:
    responses = await asyncio.gather(*(client.call_and_wait("price", [name]) for name in item))
    return {name: response.data for name, response in zip(item, responses, strict=True)}


@app.post("/receipts", status_code=202)
async def send_receipt(receipt: dict[str, Any], client: Client) -> dict[str, str]:
    """Nobody waits: the worker checks it later, and logs what is wrong with it."""
    return {"id": await client.call("send_receipt", receipt)}


@app.get("/preparation")
async def preparation(item: str, client: Client) -> StreamingResponse:
    """Server-sent events. When the browser leaves, the stream is closed, and the generator in the worker."""
    steps = client.stream("preparation", [item])
    return StreamingResponse((f"data: {step}\n\n" async for step in steps), media_type="text/event-stream")
