"""JSON-RPC 2.0 objects (https://www.jsonrpc.org/specification) in the bodies of messages.

A call is `{"jsonrpc", "id", "method", "params"}`, to which positional and named arguments together add the
extension member `kwargs`; a reply has `result` or `error: {"code", "message", "data"}`. What comes off
the wire is any bytes at all: each function here returns a value or raises an RpcError.
"""

from __future__ import annotations

from types import NoneType
from typing import Any

import msgspec

from .. import errors
from ..errors import RemoteError, RpcError, SerializationError
from .codecs import Codec
from .typed import outline

PARSE_ERROR, INVALID_REQUEST = -32700, -32600
_STRUCTURED = (dict, list, tuple, NoneType)

_BY_CODE: dict[int, type[RpcError]] = {
    kind.code: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, RpcError) and kind not in (RpcError, RemoteError)
    if "code" in vars(kind)
}


class Call(msgspec.Struct, frozen=True):
    """What a request asks for."""

    method: str
    params: dict[str, Any] | list[Any] | None = None
    kwargs: dict[str, Any] | None = None


class Arguments(msgspec.Struct, frozen=True):
    """Positional and named arguments, in place of `data`."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def call_of(method: str, data: Any) -> Call:
    """The call of a job with this data, or these arguments."""
    if not isinstance(data, Arguments):
        return Call(method, data)
    return Call(method, list(data.args), data.kwargs) if data.args else Call(method, data.kwargs or None)


def encode_call(call: Call, id: str, codec: Codec) -> bytes:
    """The body of a request. Raises SerializationError, also if `params` is neither a dict nor a list
    once it is encoded."""
    members: dict[str, Any] = {"jsonrpc": "2.0", "id": id, "method": call.method}
    params = params_of(call.params, codec)
    if params is not None:
        members["params"] = params
    if call.kwargs:
        members["kwargs"] = call.kwargs
    try:
        body = codec.encode(members)
    except SerializationError as error:
        raise codec.located(error, data=call.params, kwargs=call.kwargs) from error
    if not isinstance(params, _STRUCTURED) and not _is_structured(params, codec):
        kind = type(call.params).__name__
        raise SerializationError(f"data of type {kind} cannot be sent: it must be a dict or a list")
    return body


def params_of(params: Any, codec: Codec) -> Any:
    """What is encoded of these. With a codec that keeps types, what has members is made a dict of them, and
    what has items a list."""
    if params is None or isinstance(params, dict | list) or not codec.keeps_types:
        return params
    return list(params) if isinstance(params, tuple | set | frozenset) else outline(params)


def _is_structured(params: Any, codec: Codec) -> bool:
    return isinstance(codec.decode(codec.encode(params)), dict | list)


def decode_call(body: bytes, codec: Codec) -> Call:
    """The call in the body of a request; SerializationError if there is none."""
    try:
        decoded = codec.decode(body)
    except SerializationError as error:
        error.code = PARSE_ERROR
        raise
    try:
        return _call(decoded)
    except SerializationError as error:
        error.code = INVALID_REQUEST
        raise


def _call(decoded: Any) -> Call:
    method = decoded.get("method") if isinstance(decoded, dict) else None
    if not method or not isinstance(method, str):
        raise SerializationError("not a call: no object with a `method`")
    params, kwargs = decoded.get("params"), decoded.get("kwargs") or {}
    if params is not None and not isinstance(params, (dict, list)):
        raise SerializationError("not a call: `params` is neither an object nor an array")
    if kwargs and not (isinstance(kwargs, dict) and isinstance(params, list)):
        raise SerializationError("not a call: `kwargs` goes with an array of `params`")
    return Call(method, params, kwargs)


ENVELOPE = 256
"""Bytes that a message has around an item, at most."""


def encode_result(id: str, result: Any, codec: Codec) -> bytes:
    """The body of the reply that carries a result; SerializationError if it cannot be encoded."""
    try:
        return codec.encode({"jsonrpc": "2.0", "id": id, "result": result})
    except SerializationError as error:
        raise codec.located(error, result=result) from error


def encode_error(id: str, error: RpcError, codec: Codec) -> bytes:
    """The body of the reply that carries an error. Does not fail: data that cannot be encoded is left out."""
    id = printable(id)
    members: dict[str, Any] = {"code": _code(error), "message": _text(error)}
    if isinstance(error, RemoteError):
        members["message"] = printable(str(error.message))
        details = {"type": printable(str(error.type))}
        if error.traceback is not None:
            details["traceback"] = printable(error.traceback)
        try:
            members["data"] = details if error.data is None else {**details, "data": error.data}
            return codec.encode({"jsonrpc": "2.0", "id": id, "error": members})
        except SerializationError:
            members["data"] = details
    return codec.encode({"jsonrpc": "2.0", "id": id, "error": members})


def _code(error: RpcError) -> int:
    return error.code if -(2**31) <= error.code < 2**31 else RpcError.code


def decode_reply(body: bytes, codec: Codec) -> Any:
    """The result in the body of a reply. Raises the error that it carries, or SerializationError."""
    decoded = codec.decode(body)
    if isinstance(decoded, dict):
        match decoded.get("error"):
            case {"code": int(code), "message": str(message), **rest}:
                raise _error(code, message, rest.get("data"))
        if "result" in decoded:
            return decoded["result"]
    raise SerializationError("not a reply: it has neither a `result` nor an `error`")


def encode_items(id: str, items: list[bytes], codec: Codec) -> bytes:
    """The body of a message with several items, each of which is encoded already."""
    return codec.encode({"jsonrpc": "2.0", "id": id, "result": [codec.embedded(item) for item in items]})


def decode_items(body: bytes, codec: Codec) -> list[Any]:
    """The items in the body of a message; SerializationError if there are none."""
    try:
        items = decode_reply(body, codec)
    except SerializationError:
        raise
    except RpcError as error:
        raise SerializationError(f"not items, but an error: {type(error).__name__}") from error
    if not isinstance(items, list):
        raise SerializationError("not items: the `result` is no array")
    return items


def remote_error(error: BaseException, traceback: str | None = None) -> RemoteError:
    """What the caller is told of an exception that a handler raised."""
    return RemoteError(type(error).__name__, _text(error), traceback=traceback)


def in_short(error: BaseException) -> str:
    """Its type and its text, for a log."""
    return str(remote_error(error))[:500]  # which knows what to do if it has no text


def given_up_for(why: str) -> RpcError:
    """The error of a job that was given up, of the line that says why."""
    kind, _, text = why.partition(": ")
    ours = next((each for each in _BY_CODE.values() if each.__name__ == kind), None)
    return ours(text) if ours else RemoteError(kind, text)


def _error(code: int, message: str, data: Any) -> RpcError:
    if code in _BY_CODE:
        return _BY_CODE[code](message)
    if code in (PARSE_ERROR, INVALID_REQUEST):
        return SerializationError(message)
    details = data if isinstance(data, dict) else {}
    kind, trace = details.get("type"), details.get("traceback")
    return RemoteError(
        kind if isinstance(kind, str) else "RemoteError",
        message,
        details.get("data"),
        trace if isinstance(trace, str) else None,
    )


def _text(error: BaseException) -> str:
    try:
        return printable(str(error))
    except BaseException:  # the class is the user's: its __str__ may raise anything
        return "(an error whose text cannot be had)"


def printable(text: str) -> str:
    """The text without lone surrogates, which cannot travel."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()
