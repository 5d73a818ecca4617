"""`rpc call`: one call, its arguments as words or as JSON, its answer on stdout."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, BinaryIO

import click

from ..caller import propagated
from ..client import RpcClient
from ..core.codecs import JSON
from ..core.jobs import JOB_NAME, Progress
from ..errors import RpcError, SerializationError
from ..pending import OnProgress
from ..proxies import OneService
from ..submits import pipelined
from ..transport import OWN, TRACE, VERSION
from .options import backend_option, queue_names, seconds_option, service_options, settings_option, time
from .output import TAGGED, json_option, json_wanted, print_data, print_line

WHICH = ("domain", "type", "id", "version", "instance")
"""The options that say which service does it."""

_WORD = re.compile(r"(?P<key>[^=]*?)(?P<sign>:?=)(?P<value>.*)", re.DOTALL)


def job_name(ctx: click.Context, parameter: click.Parameter, value: str) -> str:
    """Callback of an argument: a name that a job can have."""
    if not JOB_NAME.fullmatch(value):
        raise click.BadParameter(f"{value!r}: a letter, then letters, digits, '_', '.' or '-'.")
    return value


def headers_of(
    ctx: click.Context, parameter: click.Parameter, value: tuple[str, ...]
) -> dict[str, str] | None:
    """Callback of an option: headers, by name."""
    headers = dict(each.partition("=")[::2] for each in value)
    wrong = headers.keys() - propagated(headers).keys() - {VERSION}
    if wrong or len(headers) < len(value) or not all("=" in each for each in value):
        raise click.BadParameter(
            f"{' '.join(value)!r}: each once, as {OWN}NAME=VALUE, or {', '.join((VERSION, *TRACE))} for NAME."
        )
    return headers or None


@click.command("call")
@click.argument("name", callback=job_name)
@click.argument("words", metavar="[a=TEXT b:=JSON ... | JSON | -]", nargs=-1)
@settings_option
@backend_option
@click.option("--queue", metavar="NAME", callback=queue_names, help="The queue that the call goes to.")
@service_options()
@click.option("--instance", metavar="NAME", help="The one worker that does it, as `rpc services` has it.")
@seconds_option("--wait", help="How long to wait until such a service runs; by default not at all.")
@seconds_option("--timeout", help="How long to wait for the answer; by default RPC_TIMEOUT.")
@click.option("--no-wait", is_flag=True, help="Do not wait for the answer: print the request's id.")
@seconds_option("--delay", help="Do it so much later; with --no-wait.")
@click.option(
    "--at",
    metavar="TIME",
    callback=time,
    help="Do it at this time, as 2030-01-31T18:30+01:00; without a zone it is local; with --no-wait.",
)
@seconds_option("--ttl", help="Do not do it any more after so long; with --no-wait.")
@seconds_option("--keep", help="Keep what becomes of it so long, for `rpc jobs show`; with --no-wait.")
@click.option(
    "--idempotency-key",
    metavar="KEY",
    help="Of the calls of this job with one key, in one queue, only the first is done; all get its response.",
)
@click.option(
    "--order-key",
    metavar="KEY",
    help="Jobs with one key, in one queue, are done one after the other, as they were sent.",
)
@click.option(
    "--header",
    "headers",
    metavar="NAME=VALUE",
    multiple=True,
    callback=headers_of,
    help="A header of the request, as x-tenant=acme, version='>=1.2' or traceparent=…; may be repeated.",
)
@click.option(
    "--map",
    "lines",
    metavar="FILE",
    type=click.File("rb"),
    help="Call it with each line, which is a JSON object or array, and print the answers in order.",
)
@click.option(
    "--window",
    metavar="N",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    help="How many calls, or items, are under way at a time; with --map and --stream.",
)
@click.option("--stream", "streams", is_flag=True, help="Print the items that it yields, as they come.")
@click.option(
    "--codec",
    metavar="NAME",
    help="How it is encoded: json, msgpack, json+types or another one; by default RPC_CODEC.",
)
@json_option
def command(
    name: str,
    words: tuple[str, ...],
    settings: str | None,
    backend: str | None,
    queue: str | None,
    timeout: float | None,
    no_wait: bool,
    idempotency_key: str | None,
    order_key: str | None,
    headers: dict[str, str] | None,
    lines: BinaryIO | None,
    window: int,
    streams: bool,
    codec: str | None,
    wait: float | None,
    **later: Any,
) -> None:
    """Call the job NAME, and print the data of its response as JSON.

    Its data is given as words: a=1 is the text "1", b:=2 is JSON; or as one JSON object or array; or as "-",
    which reads JSON from stdin. With --backend no settings module is needed.

    With --type, one of the services of that type that run does it: of that --id, of such a --service-version;
    with --instance, that worker does. If none runs, that is an error at once, or after --wait SECONDS. The
    domain is that of the settings, if --domain says no other.

    With --json, what is printed is {"data": ..., "id": ...}, or {"id": ...} with --no-wait, or {"error":
    {"type": ..., "message": ..., "code": ...}}.

    \b
    Examples:
      rpc call add a:=1 b:=2
      rpc call add '{"a": 1, "b": 2}' --timeout 5 --json
      rpc call greet name=Ada --backend rq+redis://127.0.0.1:6379/0
      rpc call report --no-wait --keep 600
      rpc call report --no-wait --at 2030-01-31T18:30
      rpc call whoami --header x-user=ada
      rpc call orders.total count:=3 price:=1.5 --type orders --service-version '>=1.2' --wait 20
      rpc call report --codec msgpack
      rpc call resize --map pictures.jsonl > answers.jsonl
      rpc call tail path=/var/log/app.log --stream
    """
    which = {name: value for name in WHICH if (value := later.pop(name)) is not None}
    if which and queue:
        raise click.UsageError("a service has queues of its own: not with --queue")
    if wait is not None and not which:
        raise click.UsageError("--wait is for a service: say which, by --type or --instance")
    if no_wait and timeout is not None:
        raise click.UsageError("--timeout is for a call that waits: not with --no-wait")
    if given := [f"--{name}" for name, value in later.items() if value is not None and not no_wait]:
        raise click.UsageError(f"{', '.join(given)}: for a call that does not wait: add --no-wait")
    if lines and (words or no_wait or idempotency_key or order_key or headers):
        raise click.UsageError(
            "--map takes its data from the file, and waits: no words, --no-wait, keys or headers"
        )
    if streams and (lines or no_wait or idempotency_key or order_key):
        raise click.UsageError("--stream waits, for one call: not with --map, --no-wait or a key")
    keys: dict[str, Any] = {"idempotency_key": idempotency_key, "order_key": order_key}
    how, data = {"queue": queue, "headers": headers, **keys}, data_of(words)
    with RpcClient(settings=settings, backend=backend, codec=codec) as client:
        client.accepted = client.accepted.reading(TAGGED)
        if timeout is not None:
            client.timeout = timeout
        there = _service(client, which, wait or 0.0) if which else client
        if lines:
            _map(there, name, lines, window, queue)
        elif streams:
            _stream(there, name, data, window, queue, headers)
        elif no_wait:
            _send(there, name, data, {**how, **later})
        else:
            _wait(there, name, data, how)


def _map(there: RpcClient | OneService, name: str, lines: BinaryIO, window: int, queue: str | None) -> None:
    """One line of JSON for each answer; on a terminal, how much of the file is done."""
    data = (_whole(line, f"line {number}") for number, line in enumerate(lines, 1) if line.strip())
    answered = 0
    with _progress(lines, name) as report:
        try:
            for response in pipelined(lambda item: there.submit(name, item, queue=queue), data, window):
                answered += 1
                print_line({"data": response.data, "id": response.id} if json_wanted() else response.data)
                report()
        except (RpcError, click.UsageError):
            click.echo(f"{answered} lines were answered", err=True)
            raise


def _service(client: RpcClient, which: dict[str, str], wait: float) -> OneService:
    """What calls that service."""
    try:
        return OneService(client, client.lookup, client.looking_for(*map(which.get, WHICH)), wait)
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def _stream(
    there: RpcClient | OneService, name: str, data: Any, window: int, queue: str | None, headers: Any
) -> None:
    """One line of JSON for each item, as it comes."""
    with there.stream(name, data, window=window, queue=queue, headers=headers) as items:
        for item in items:
            print_line({"item": item} if json_wanted() else item)
        if items.value is not None:
            print_line({"value": items.value} if json_wanted() else items.value)


@contextmanager
def _bar(label: str) -> Iterator[OnProgress | None]:
    """What to tell how far a job is: a bar is drawn, once there is something to draw, if somebody sees it."""
    if not sys.stderr.isatty():
        yield None
        return
    with ExitStack() as stack:
        bars: list[Any] = []

        def told(progress: Progress) -> None:
            if not bars:
                show: Any = lambda text: text or ""  # noqa: E731
                drawn = click.progressbar(length=1000, label=label, file=sys.stderr, item_show_func=show)
                bars.append(stack.enter_context(drawn))
            bars[0].update(int(1000 * progress.fraction) - bars[0].pos, progress.text)

        yield told


@contextmanager
def _progress(lines: BinaryIO, label: str) -> Iterator[Callable[[], None]]:
    """What to call now and then; it draws a bar if that is of use to somebody."""
    if not (sys.stderr.isatty() and lines.seekable()):
        yield lambda: None
        return
    with click.progressbar(length=os.fstat(lines.fileno()).st_size, label=label, file=sys.stderr) as bar:
        yield lambda: bar.update(lines.tell() - bar.pos)


def _send(there: RpcClient | OneService, name: str, data: Any, how: dict[str, Any]) -> None:
    try:
        id = str(there.call(name, data, **how))
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    print_line({"id": id}) if json_wanted() else click.echo(id)


def _wait(there: RpcClient | OneService, name: str, data: Any, how: dict[str, Any]) -> None:
    with _bar(name) as on_progress:
        response = there.call_and_wait(name, data, on_progress=on_progress, **how)
    answer = {"data": response.data, "id": response.id}
    print_line(answer) if json_wanted() else print_data(response.data)


def data_of(words: tuple[str, ...]) -> Any:
    """What the words say: a dict or a list, None if there are none; UsageError if they make no sense."""
    if not words:
        return None
    try:
        "".join(words).encode()
    except UnicodeEncodeError:
        raise click.UsageError("what is on the command line is not UTF-8") from None
    only = words[0] if len(words) == 1 else ""
    if only == "-":
        with click.open_file("-", "rb") as stdin:
            return _whole(stdin.read(), "stdin")
    if only.startswith(("{", "[")):
        return _whole(only.encode(), "the argument")
    named: dict[str, Any] = {}
    for word in words:
        parts = _WORD.fullmatch(word)
        if parts is None or not parts["key"]:
            raise click.UsageError(f"{word!r} is neither a=TEXT nor b:=JSON, nor is it all of the data")
        if parts["key"] in named:
            raise click.UsageError(f"{parts['key']!r} is given twice")
        text = parts["value"]
        named[parts["key"]] = text if parts["sign"] == "=" else _json(text.encode(), repr(word))
    return named


def _whole(text: bytes, source: str) -> Any:
    data = _json(text, source)
    if not isinstance(data, dict | list):
        raise click.UsageError(f"{source} is neither a JSON object nor an array")
    return data


def _json(text: bytes, source: str) -> Any:
    try:
        return JSON.decode(text)
    except SerializationError as error:
        raise click.UsageError(f"{source}: {error}") from None
