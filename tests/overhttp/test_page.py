"""The page that lists the jobs, in a real browser."""

from __future__ import annotations

import enum
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
import pytest

from rpc import RpcReceiver
from rpc.settings import Settings
from rpc.testing.site import eventually

from .browser import BROWSERS, CONTROL, DRIVERS, ENTER, TAB, Browser, found
from .conftest import PATIENCE, Serve, Site

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("browser")]

EVIL = "</script><script>window.evil = 1</script><img src=x onerror='window.evil = 1'>"


class Size(enum.Enum):
    SMALL = "small"
    LARGE = "large"


@dataclass
class Address:
    street: str
    number: int = 1


def order(
    item: Annotated[str, msgspec.Meta(description="what is wanted", min_length=1)],
    quantity: int = 1,
    size: Size = Size.SMALL,
    to: Address | None = None,
    gift: bool = False,
) -> dict[str, Any]:
    """Order something.

    It is sent by post."""
    where = None if to is None else f"{to.street} {to.number}"
    return {"item": item, "quantity": quantity, "size": size.value, "to": where, "gift": gift}


def fails(why: str = "no reason") -> None:
    raise ValueError(why)


def evil(
    text: Annotated[str, msgspec.Meta(description=EVIL)] = EVIL, choice: Literal[EVIL, "b"] = "b"
) -> str:  # type: ignore[valid-type]
    return text


evil.__doc__ = f"Evil. {EVIL}\n\n{EVIL}"


def at(first: int, /, *rest: int, last: int = 0) -> list[Any]:
    return [first, rest, last]


def anything(request) -> None:  # type: ignore[no-untyped-def]
    request.respond({"sent": request.data})


def count(most: int) -> Iterator[int]:
    yield from range(most)


def add(a: int, b: int) -> int:
    return a + b


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    programs = found(BROWSERS), found(DRIVERS)
    if not all(programs):
        pytest.skip("needs Chromium and chromedriver")
    started = Browser(*map(str, programs))
    yield started
    started.close()


@pytest.fixture
def site(serve: Serve) -> Site:
    jobs = {each.__name__: each for each in (order, fails, evil, at, anything, count, add)}
    jobs["token"] = add  # as an element of the page is called
    tokens = {"token": "open sesame"}
    settings = Settings(timeout=PATIENCE, grace=1, tokens=tokens)
    return serve(RpcReceiver(jobs=jobs, backend="http://127.0.0.1:0", settings=settings))


@pytest.fixture
def page(browser: Browser, site: Site) -> Browser:
    browser.open(f"{site.url}/")
    browser.complaints()
    return browser


def opened(page: Browser, job: str) -> str:
    """The selector of the form of a job, which is opened."""
    page.click(f"#job-{job} summary")
    page.one(f"#job-{job} form")
    return f"#job-{job}"


def test_it_lists_jobs_with_their_types_defaults_and_docs(page: Browser) -> None:
    names = page.run("return [...document.querySelectorAll('summary b')].map(each => each.textContent)")
    assert sorted(names) == ["add", "anything", "at", "count", "evil", "fails", "order", "token"]
    assert "Order something." in page.text("#job-order summary")
    assert page.text("#job-order .type") == "(item, quantity?, size?, to?, gift?) → object"
    assert page.text("#job-count .type") == "(most) → stream of integer"
    assert "wants a token" in page.text("#job-token summary")
    form = opened(page, "order")
    assert page.text(form).startswith("order(item")
    assert "It is sent by post." in page.text(form)
    assert page.text(f"{form} label:nth-of-type(1)").splitlines() == [
        *("item", "string", "what is wanted"),
        "minLength 1",
    ]
    told = "return document.querySelector(arguments[0]).placeholder"
    assert page.run(told, f"{form} [name=quantity]") == "default: 1"
    assert page.text(f"{form} label:nth-of-type(4)").splitlines() == [
        *("to", "Address | null"),
        'like {"street":"","number":1}',
    ]
    choices = "return [...document.querySelectorAll(arguments[0])].map(each => each.value)"
    assert page.run(choices, f"{form} [name=size] option") == ["", '"large"', '"small"']
    page.type("#find", "COUNT")
    visible = "return [...document.querySelectorAll('details:not([hidden])')].map(each => each.id)"
    assert page.run(visible) == ["job-count"]
    assert page.complaints() == []


def test_a_form_is_filled_and_the_result_is_there(page: Browser) -> None:
    form = opened(page, "order")
    page.type(f"{form} [name=item]", 'tea "green"')
    page.type(f"{form} [name=quantity]", "12345678901234567891")
    page.type(f"{form} [name=size]", '"large"')
    page.type(f"{form} [name=to]", '{"street": "Main"}')
    page.type(f"{form} [name=gift]", "true")
    page.click(f"{form} button")
    assert "ms" in page.waits_for(f"{form} output", "done in")
    lines = ["{", '  "item": "tea \\"green\\"",', '  "quantity": 12345678901234567891,', '  "size": "large",']
    assert page.text(f"{form} pre").splitlines() == [*lines, '  "to": "Main 1",', '  "gift": true', "}"]
    assert page.complaints() == []


def test_what_is_not_filled_is_not_sent(page: Browser) -> None:
    form = opened(page, "order")
    page.type(f"{form} [name=item]", f"tea{ENTER}")
    page.waits_for(f"{form} output", "done in")
    result = json.loads(page.text(f"{form} pre"))
    assert result == {"item": "tea", "quantity": 1, "size": "small", "to": None, "gift": False}


def test_it_works_with_the_keyboard_alone(page: Browser) -> None:
    page.run("document.querySelector('#job-add summary').focus()")
    page.press(ENTER)
    page.one("#job-add form")
    for keys in (TAB, "1", TAB, "2", ENTER):
        page.press(keys)
    page.waits_for("#job-add output", "done in")
    assert page.text("#job-add pre") == "3"


def test_errors_are_told(page: Browser) -> None:
    form = opened(page, "fails")
    page.click(f"{form} button")
    assert "ValueError: no reason (-32000)" in page.waits_for(f"{form} output.error", "after")
    form = opened(page, "order")
    page.click(f"{form} button")
    refused = page.waits_for(f"{form} output.error", "after")
    assert refused.startswith("Invalid params")
    assert "item" in refused
    page.type(f"{form} [name=quantity]", "many")
    page.click(f"{form} button")
    page.waits_for(f"{form} output.error", "quantity: not a number")
    assert page.run("return document.activeElement.name") == "quantity"
    form = opened(page, "add")
    page.click(f"{form} button")
    page.waits_for(f"{form} output.error", "a: needed")


def test_a_worker_that_is_gone_is_an_error(browser: Browser, serve: Serve) -> None:
    site = serve(add=lambda: 1)
    browser.open(f"{site.url}/#job-add")
    browser.one("#job-add form")
    site.receiver.stop()
    browser.click("#job-add button")
    browser.waits_for("#job-add output.error", "after")


def test_every_kind_of_parameters_is_sent(page: Browser) -> None:
    form = opened(page, "at")
    page.type(f"{form} [name=first]", "1")
    page.type(f"{form} [name=rest]", "[2, 3]")
    page.type(f"{form} [name=last]", "4")
    page.click(f"{form} button")
    page.waits_for(f"{form} output", "done in")
    assert json.loads(page.text(f"{form} pre")) == [1, [2, 3], 4]
    form = opened(page, "anything")
    page.type(f"{form} [name=data]", '{"x": [1.50, {}]}')
    page.press(CONTROL, ENTER)
    page.waits_for(f"{form} output", "done in")
    assert json.loads(page.text(f"{form} pre")) == {"sent": {"x": [1.5, {}]}}
    page.click(f"{form} [type=checkbox]")
    sent = page.run("return document.querySelector(arguments[0]).value", f"{form} textarea[rows='8']")
    assert json.loads(sent) == {"jsonrpc": "2.0", "id": 1, "method": "anything", "params": {"x": [1.5, {}]}}
    page.run(
        "document.querySelector(arguments[0]).value = arguments[1]",
        f"{form} textarea[rows='8']",
        '{"jsonrpc": "2.0", "id": "mine", "method": "add", "params": [40, 2]}',
    )
    page.click(f"{form} button")
    page.waits_for(f"{form} pre", "42")


def test_a_stream_is_shown_item_by_item(page: Browser) -> None:
    form = opened(page, "count")
    page.type(f"{form} [name=most]", f"3{ENTER}")
    page.waits_for(f"{form} output", "done: 3 items")
    assert page.text(f"{form} pre").splitlines() == ["0", "1", "2"]


def test_a_token_goes_to_the_jobs_that_want_one(page: Browser) -> None:
    form = opened(page, "token")
    for text in "a", "b":
        page.type(f"{form} [name={text}]", "1")
    page.click(f"{form} button")
    page.waits_for(f"{form} output.error", "wants a token")
    page.type("#token", "open sesame")
    page.click(f"{form} button")
    page.waits_for(f"{form} pre", "2")
    page.run("""
        window.headers = [];
        const before = fetch;
        window.fetch = (url, options) => { headers.push(options.headers); return before(url, options); };
    """)
    form = opened(page, "anything")
    page.click(f"{form} button")
    page.waits_for(f"{form} output", "done in")
    assert page.run("return headers") == [{"content-type": "application/json"}]


def test_there_is_no_token_field_where_no_token_is_wanted(browser: Browser, serve: Serve) -> None:
    browser.open(serve(add=add).url)
    browser.one("#job-add")
    assert browser.run("return document.getElementById('tokens').hidden")
    assert browser.run("return document.getElementById('signed').hidden")


def test_hostile_names_texts_and_results_are_no_scripts(page: Browser) -> None:
    form = opened(page, "evil")
    assert EVIL in page.text(form)
    page.click(f"{form} button")
    assert json.loads(page.waits_for(f"{form} pre", "script")) == EVIL
    for job in page.run("return [...document.querySelectorAll('details')].map(each => each.id)"):
        page.run("document.getElementById(arguments[0]).open = true", job)
    assert page.run("return [window.evil, document.images.length]") == [None, 0]
    assert page.complaints() == []


def test_nothing_but_its_own_script_would_run(page: Browser) -> None:
    def refused(script: str) -> object:
        return page.run(f"try {{ {script} }} catch (error) {{ return error.name }}")

    assert refused("document.body.innerHTML = '<b>x</b>'") == "TypeError"  # a text is no TrustedHTML
    assert refused("document.body.setAttribute('onclick', 'window.evil = 1')") == "TypeError"
    assert refused("document.body.append(Object.assign(make('script'), {text: 'evil = 1'}))") == "TypeError"
    page.run("document.body.append(Object.assign(new Image(), {src: 'http://x.example/'}))")
    assert "Content Security Policy" in "".join(page.complaints())


OPENED = """
window.told = [];
const socket = new WebSocket(arguments[0]);
socket.onmessage = (event) => window.told.push(JSON.parse(event.data));
socket.onerror = () => window.told.push("refused");
socket.onopen = () => {
  const say = (message) => socket.send(JSON.stringify({ jsonrpc: "2.0", ...message }));
  say({ id: 1, method: "add", params: [1, 2] });
  say({ id: 2, method: "rpc.stream", params: { method: "count", params: { most: 2 }, credit: 10 } });
};
"""
"""As in docs/http.md."""


def test_a_page_of_the_worker_opens_a_websocket_and_one_of_another_site_does_not(
    browser: Browser, site: Site, serve: Serve
) -> None:
    def told(count: int) -> list[Any]:
        return eventually(
            lambda: said if len(said := browser.run("return window.told")) >= count else None, within=PATIENCE
        )

    socket = f"ws://{site.host}/rpc"
    browser.open(f"{site.url}/health")
    browser.run(OPENED, socket)
    said = sorted(told(4), key=lambda each: ("id" in each, each.get("id", 0)))
    assert [each["params"]["items"] for each in said[:2]] == [[0], [1]]
    assert [(each["id"], each["result"]) for each in said[2:]] == [(1, 3), (2, None)]
    other = serve(add=add)
    browser.open(f"{other.url}/health")
    browser.run(OPENED, socket)
    assert told(1) == ["refused"]
    assert any("403" in each for each in browser.complaints())
