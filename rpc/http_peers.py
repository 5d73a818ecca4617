"""Others that are reached over HTTP, whether they are workers of ours or not: what `client.at(url)` returns.

In the simple style, what is sent is `POST /helloworld` with `{"args": [...], "kwargs": {...}}`, and what
comes back is a value in JSON, or an error. In the style of JSON-RPC 2.0, all goes to the URL itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Generic, Literal, Protocol, TypeVar, get_args
from urllib.parse import quote, urlencode, urlsplit
from uuid import uuid4

from .backends import backend_from_url, redacted
from .core.bodies import too_large
from .core.codecs import JSON
from .core.protocol import Arguments, call_of, decode_reply, encode_call
from .durations import Duration, seconds_or_none
from .errors import (
    BackendUnavailable,
    MethodNotFound,
    RemoteError,
    RpcError,
    RpcTimeout,
    SerializationError,
    SettingsError,
    Unauthorized,
    shown,
)

P = TypeVar("P")
Style = Literal["simple", "jsonrpc"]
_TOKEN, _VERB = re.compile("[ -~]*"), re.compile("[A-Za-z-]+")
"""What goes into the head of a request must not end a line there."""
WITHOUT_BODY = ("GET", "HEAD", "DELETE")
LONGEST = 86400.0
"""Seconds that a call without a timeout waits."""


class Answers(Protocol):
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytearray


class Asked:
    """A request that is not sent yet."""

    def __init__(self, verb: str, path: str, body: bytes, token: str | None) -> None:
        self.verb, self.path, self.body = verb, path, body
        self.headers = {"content-type": JSON.content_type, "accept": JSON.content_type}
        if token is not None:
            self.headers["authorization"] = f"Bearer {token}"

    def value(self, answers: Answers, most: int | None) -> Any:
        """What was answered. Raises the error that it is."""
        status, body = answers.status, bytes(answers.body)
        kind = answers.headers.get("content-type", "").partition(";")[0].strip().lower()
        if most is not None and len(body) > most:
            raise too_large("reply", len(body), most)
        is_json = kind == JSON.content_type or kind.endswith("+json")
        if 200 <= status < 300:
            if status == 204 or not body:
                return None
            return JSON.decode(body) if is_json else body.decode("utf-8", "replace")
        if is_json:
            raise_if_said(body)
        raise _of_status(status, f"{self.verb} {self.path}: HTTP status {status}: {_text(body)}")


def raise_if_said(body: bytes) -> None:
    """The error in a body, if there is one."""
    try:
        found = JSON.decode(body)
    except SerializationError:
        return
    if isinstance(found, dict) and isinstance(found.get("error"), dict):
        decode_reply(body, JSON)


def simple(verb: str, rule: str, args: tuple[Any, ...], kwargs: dict[str, Any], token: str | None) -> Asked:
    """A request in the simple style. Raises SerializationError."""
    path = quote(rule if rule.startswith("/") else f"/{rule}", safe="/-._~!$&'()*+,;=:@%?")
    if verb not in WITHOUT_BODY:
        return Asked(verb, path, _encoded({"args": list(args), "kwargs": kwargs}), token)
    if args:
        raise SerializationError(f"{verb} has no body: give named arguments alone")
    if kwargs:
        path += f"?{urlencode({name: _plain(value) for name, value in kwargs.items()})}"
    return Asked(verb, path, b"", token)


def _encoded(sent: dict[str, Any]) -> bytes:
    try:
        return JSON.encode(sent)
    except SerializationError as error:
        raise JSON.located(error, **sent) from error


def jsonrpc(path: str, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], token: str | None) -> Asked:
    """A request of JSON-RPC. Raises SerializationError."""
    return Asked("POST", path, encode_call(call_of(name, Arguments(args, kwargs)), uuid4().hex, JSON), token)


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else JSON.encode(value).decode()


def _text(body: bytes) -> str:
    return shown(body[:300].decode("utf-8", "replace"))


def _of_status(status: int, text: str) -> RpcError:
    """The error of whoever says no more than a status."""
    match status:
        case 401 | 403:
            return Unauthorized(text)
        case 404 | 405:
            return MethodNotFound(text)
        case 408 | 504:
            return RpcTimeout(text)
        case 502 | 503:
            return BackendUnavailable(text)
    return RemoteError(f"HTTP {status}", text)


def _http(url: str) -> Any:
    """The backend whose connections are used. Raises SettingsError, Unsupported."""
    if url.partition(":")[0] not in ("http", "https"):
        raise SettingsError(f"{redacted(url)!r} is no URL of HTTP: http://host:port, or https:")
    return backend_from_url(url)


class _Peer:
    """What both kinds have."""

    def __init__(
        self, url: str, *, style: Style, timeout: Duration | None, most: int | None, token: str | None = None
    ) -> None:
        """Raises ValueError."""
        if style not in get_args(Style):
            raise ValueError(f"style is one of {', '.join(get_args(Style))}, not {style!r}")
        if token is not None and not _TOKEN.fullmatch(token):
            raise ValueError("a token for HTTP has printable characters of ASCII alone")
        address = url if "://" in url else f"http://{url}"
        self._backend = _http(address)
        self._style, self._most, self._token = style, most, token
        self._seconds = seconds_or_none(timeout, "timeout") or LONGEST
        self.url = address
        path = urlsplit(address).path
        self._own_path = "/" if not path or path.endswith("/") else ""
        """What is below the URL, which the backend has without a `/` at its end, if that itself is asked."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.url}>"  # without the token

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda *args, **kwargs: self.send(name, *args, **kwargs)

    def send(self, rule: str, /, *args: Any, **kwargs: Any) -> Any:
        """What `POST` to this path, or the method of this name, returns, with these arguments."""
        if self._style == "jsonrpc":
            return self._answer(jsonrpc(self._own_path, rule, args, kwargs, self._token), rule)
        return self.request("POST", rule, *args, **kwargs)

    def request(self, verb: str, rule: str, /, *args: Any, **kwargs: Any) -> Any:
        """In the simple style, what another method of HTTP returns; those without a body (GET, HEAD, DELETE)
        take named arguments, which go into the URL. Raises SerializationError, BackendUnavailable,
        RpcTimeout, MethodNotFound, InvalidParams, Unauthorized, RemoteError, as `send` does, too, and
        ValueError for what is no method."""
        if not _VERB.fullmatch(verb):
            raise ValueError(f"a method of HTTP is letters and '-', as GET, not {verb!r:.100}")
        return self._answer(simple(verb.upper(), rule, args, kwargs, self._token), rule)

    def _answer(self, asked: Asked, rule: str) -> Any:
        raise NotImplementedError

    def _told(self, asked: Asked, answers: Answers) -> Any:
        value = asked.value(answers, self._most)
        return decode_reply(bytes(answers.body), JSON) if self._style == "jsonrpc" else value

    def _late(self, rule: str) -> RpcTimeout:
        return RpcTimeout(f"{rule!r} was not answered within {self._seconds:g} s")


class HttpPeer(_Peer):
    """One, for threads: what `RpcClient.at` returns. Its attributes are functions: `peer.helloworld("x")` is
    `peer.send("/helloworld", "x")`."""

    def _answer(self, asked: Asked, rule: str) -> Any:
        about = asked.verb, asked.path, asked.body, asked.headers
        try:
            answers = self._backend.exchange(*about, self._seconds)
        except TimeoutError:
            raise self._late(rule) from None
        return self._told(asked, answers)

    def close(self) -> None:
        """Give back connections. Idempotent."""
        self._backend.close()

    def __enter__(self) -> HttpPeer:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class AsyncHttpPeer(_Peer):
    """As `HttpPeer`, for coroutines: calls are awaited."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._async = self._backend.asynchronous()

    async def _answer(self, asked: Asked, rule: str) -> Any:
        about = asked.verb, asked.path, asked.body, asked.headers
        try:
            answers = await self._async.exchange(*about, self._seconds)
        except TimeoutError:
            raise self._late(rule) from None
        return self._told(asked, answers)

    async def close(self) -> None:
        """As `HttpPeer.close`."""
        await self._async.close()

    async def __aenter__(self) -> AsyncHttpPeer:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()


class HttpPeers(Generic[P]):
    """Those that a client has called, whose connections are kept."""

    def __init__(self) -> None:
        self._of: dict[tuple[str, Style, str | None], P] = {}

    def at(self, kind: Callable[..., P], url: str, style: Style, token: str | None, **options: Any) -> P:
        """The one at this URL, called in this way."""
        key = url, style, token
        if key not in self._of:
            self._of.setdefault(key, kind(url, style=style, token=token, **options))
        return self._of[key]

    def all(self) -> list[P]:
        return [*self._of.values()]
