"""What one writes by hand on httpx and Starlette. No deadline but httpx's own, no checked arguments."""

from __future__ import annotations

from typing import Any

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from .work import HTTP, WORK

PACKAGES = ("httpx", "starlette", "uvicorn", "httptools")
NOTE = "a httpx.Client; Starlette on uvicorn, with httptools and uvloop; `async def`"
PORT = 5573


class Caller:
    def __init__(self) -> None:
        waiting = httpx.HTTPTransport(retries=8)  # the worker may be started later
        self._client = httpx.Client(base_url=HTTP.format(port=PORT), timeout=30, transport=waiting)

    def call(self, name: str, **arguments: Any) -> Any:
        response = self._client.post(f"/call/{name}", json=arguments)
        response.raise_for_status()
        return response.json()

    def send(self, name: str, **arguments: Any) -> None:
        self._client.post(f"/send/{name}", json=arguments).raise_for_status()


connect = Caller


async def call(request: Request) -> Response:
    return JSONResponse(WORK[request.path_params["name"]](**await request.json()))


async def send(request: Request) -> Response:
    work = BackgroundTask(WORK[request.path_params["name"]], **await request.json())
    return Response(status_code=202, background=work)


def serve() -> None:
    routes = [Route("/call/{name}", call, methods=["POST"]), Route("/send/{name}", send, methods=["POST"])]
    uvicorn.run(Starlette(routes=routes), port=PORT, log_config=None, access_log=False)
