"""JSON-RPC 2.0 as others speak it (https://www.jsonrpc.org/specification): batches, notifications, ids of any
kind. What is in it is passed on as it was written: numbers of any length, members that are not looked at.

Whatever comes, each function returns a value. `kwargs` is our extension member: named arguments beside
positional ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from ..errors import (
    InvalidParams,
    MethodNotExposed,
    MethodNotFound,
    RpcError,
    SerializationError,
    ServiceNotFound,
    WorkerLost,
)
from ..transport import LOST, Message
from .codecs import JSON
from .protocol import INVALID_REQUEST, PARSE_ERROR, encode_error

NULL, NONE = b"null", b""
INTERNAL_ERROR = -32603
MOST_IN_A_BATCH = 1000
_TEXTS = {
    PARSE_ERROR: "Parse error",
    INVALID_REQUEST: "Invalid Request",
    MethodNotFound.code: "Method not found",
    InvalidParams.code: "Invalid params",
    INTERNAL_ERROR: "Internal error",
}
_NOT_FOUND = (MethodNotFound.code, ServiceNotFound.code, MethodNotExposed.code)
_Raw = msgspec.Raw
_raw = _Raw(NONE)


class _Members(msgspec.Struct):
    """Of a request."""

    jsonrpc: _Raw = _raw
    method: _Raw = _raw
    params: _Raw = _raw
    kwargs: _Raw = _raw
    id: _Raw = _raw


class _Answer(msgspec.Struct):
    """What a handler's reply has."""

    result: _Raw = _raw
    error: _Raw = _raw


class Asked(msgspec.Struct, frozen=True):
    """A request that makes sense."""

    method: str
    members: bytes
    """Those of `method`, `params` and `kwargs`, as they were written."""
    id: bytes
    """As it was written; NONE: nobody wants a response."""

    def body(self, id: str) -> bytes:
        """The same with an id of ours."""
        return b'{"jsonrpc":"2.0","id":"%s",%s}' % (id.encode(), self.members)


class Refused(msgspec.Struct, frozen=True):
    """The response to what is no request."""

    response: bytes


_whole = msgspec.json.Decoder(_Raw).decode
_several = msgspec.json.Decoder(list[_Raw]).decode
_members = msgspec.json.Decoder(_Members).decode
_text = msgspec.json.Decoder(str).decode
_answer = msgspec.json.Decoder(_Answer).decode
_error = msgspec.json.Decoder(dict[str, Any]).decode
_encode = msgspec.json.Encoder().encode
_BAD = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def requests(body: bytes) -> tuple[list[Asked | Refused], bool]:
    """What is asked for, and whether that is a batch."""
    try:
        JSON.decode(body)  # all of it, however deep
        if not body.lstrip(b" \t\r\n").startswith(b"["):
            return [_request(body)], False
        several = _several(body)
    except (SerializationError, *_BAD):
        return [Refused(response_of_code(PARSE_ERROR))], False
    if not several:
        return [Refused(response_of_code(INVALID_REQUEST))], False
    if len(several) > MOST_IN_A_BATCH:
        why = f"a batch has at most {MOST_IN_A_BATCH} requests"
        return [Refused(response_of_code(INVALID_REQUEST, data=why))], False
    return [_request(bytes(each)) for each in several], True


def _request(text: bytes) -> Asked | Refused:
    try:
        found = _members(text)
        id = bytes(found.id)
        if id and id[:1] not in b'"-0123456789n':
            return Refused(response_of_code(INVALID_REQUEST))
        try:
            method = _text(found.method)
        except _BAD:
            return Refused(response_of_code(INVALID_REQUEST, id or NULL))
        params, kwargs = bytes(found.params), bytes(found.kwargs)
        is_one = bytes(found.jsonrpc) == b'"2.0"' and params[:1] in (b"", b"[", b"{")
        if not is_one or (kwargs and not (kwargs[:1] == b"{" and params[:1] == b"[")):
            return Refused(response_of_code(INVALID_REQUEST, id or NULL))
    except _BAD:
        return Refused(response_of_code(INVALID_REQUEST))
    members = b'"method":' + bytes(found.method)
    members += b',"params":' + params if params else b""
    members += b',"kwargs":' + kwargs if kwargs else b""
    return Asked(method, members, id)


def response_of_code(code: int, id: bytes = NULL, data: Any = None) -> bytes:
    """The response that has one of the codes of the specification."""
    return _of_error({"code": code, "message": _TEXTS[code]} | ({} if data is None else {"data": data}), id)


def response_of_error(error: RpcError, id: bytes) -> bytes:
    """The response that says so."""
    return _of_error(_error(bytes(_answer(encode_error("", error, JSON)).error)), id)


def response(reply: Message, id: bytes) -> bytes:
    """The response with this id that stands for the last reply to a request."""
    if LOST in reply.headers:
        return response_of_error(WorkerLost(reply.headers[LOST]), id)
    try:
        answer = _answer(reply.body)
        if error := bytes(answer.error):
            return _of_error(_error(error), id)
        if result := bytes(answer.result):
            return b'{"jsonrpc":"2.0","result":%s,"id":%s}' % (result, id)
    except _BAD:  # whoever handled it is to blame, not whoever asked
        pass
    return response_of_code(INTERNAL_ERROR, id)


def _of_error(error: dict[str, Any], id: bytes) -> bytes:
    return b'{"jsonrpc":"2.0","error":%s,"id":%s}' % (_encode(_standard(error)), id)


def _standard(error: dict[str, Any]) -> dict[str, Any]:
    """What the specification calls otherwise than we do, or has no text of its own."""
    code, message = error["code"], error["message"]
    if code in _NOT_FOUND:
        return {"code": MethodNotFound.code, "message": _TEXTS[MethodNotFound.code]}
    if code in _TEXTS and message != _TEXTS[code]:
        return {"code": code, "message": _TEXTS[code], "data": message}
    return error


def batch(responses: Iterable[bytes]) -> bytes:
    """The responses to a batch; NONE if there is none."""
    all_of_them = b",".join(filter(None, responses))
    return b"[" + all_of_them + b"]" if all_of_them else NONE
