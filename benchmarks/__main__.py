"""`python -m benchmarks`: `run` measures this library, `peers` others beside it, `concurrency` many calls and
jobs at a time; `publish` shows the results.

Linux alone: what processes cost is read from /proc.
"""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click

from . import tables
from .at_once import CASES
from .concurrency import Amounts, Report, measure
from .environments import python_of
from .phases import KINDS, Sizes, plan
from .plot import plot
from .processes import ROOT, Side, SideFailed
from .results import Results, this_machine
from .runner import Group, run_group
from .sides import HERE, LOOP, NATIVE, NO_BROKER, PEERS, RABBIT

OUT = Path(__file__).parent / "results"
PAGE = ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"

Command = Callable[..., Any]

SOME = click.IntRange(min=1)
option = partial(click.option, show_default=True)
out_option = option("--out", type=click.Path(path_type=Path), default=OUT, help="The folder of the results.")


def _numbers(ctx: click.Context, parameter: click.Parameter, value: str) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in value.split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r} is no list of numbers, such as 1,8,64") from None


def _kinds(ctx: click.Context, parameter: click.Parameter, value: str) -> tuple[str, ...]:
    kinds = tuple(value.split(","))
    if unknown := set(kinds) - set(KINDS):
        raise click.BadParameter(f"{', '.join(sorted(unknown))}: not one of {', '.join(KINDS)}")
    return kinds


def sizes_options(calls: int, rounds: int, jobs: int, only: Sequence[str]) -> Callable[[Command], Command]:
    """The options of both commands that measure, with these defaults."""
    several = click.IntRange(min=2)
    options = [
        option("--calls", type=several, default=calls, help="Calls of a side in a round."),
        option("--rounds", type=SOME, default=rounds, help="The median of their ratios counts."),
        option("--jobs", type=several, default=jobs, help="Jobs to enqueue, and to drain."),
        option("--idle", type=float, default=10.0, help="Seconds to watch an idle worker."),
        option("--connections", type=SOME, default=100, help="Idle clients to weigh."),
        option("--callers", default="1,8,64", callback=_numbers, help="Calls at a time."),
        option("--payloads", default="1,100,1000", callback=_numbers, help="In kB."),
        option("--only", default=",".join(only), callback=_kinds, help="What to measure."),
        out_option,
    ]

    def add(command: Command) -> Command:
        for each in reversed(options):
            command = each(command)
        return command

    return add


@click.group()
def main() -> None:
    """Measure this library beside a loop on bare redis-py, and beside its peers."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started is ended


@main.command()
@sizes_options(1000, 5, 20_000, KINDS)
@click.option(
    "--side",
    "names",
    type=click.Choice([side.name for side in (*HERE, *NO_BROKER)]),
    multiple=True,
    help="Measure this side, and the loop; may be repeated.",
)
def run(out: Path, only: tuple[str, ...], names: tuple[str, ...], **sizes: Any) -> None:
    """Measure this library and rq beside the bare loop."""
    chosen = [side for side in HERE if not names or side.name in (LOOP, *names)]
    chosen += [side for side in NO_BROKER if side.name in names]
    machine, counted = this_machine(), Sizes(**sizes)
    group = run_group(chosen, plan(only, counted), counted.rounds, _say)
    results = Results.of(machine, counted, [group])
    _save(results, out, "bench", tables.by_figure)
    for verdict in tables.verdicts(results):
        print(verdict)
    if any(results.failures()):
        raise SystemExit(1)


@main.command()
@sizes_options(500, 3, 2000, [kind for kind in KINDS if kind != "memory"])
@click.argument("names", nargs=-1, type=click.Choice(list(PEERS)))
def peers(out: Path, only: tuple[str, ...], names: tuple[str, ...], **sizes: Any) -> None:
    """Measure other systems beside this library and the bare loop, in environments of their own."""
    machine, counted = this_machine(), Sizes(**sizes)
    results = Results.of(machine, counted, [])
    for peer in names or PEERS:
        for side in PEERS[peer]:
            results.groups.append(_beside(peer, side, only, counted))
            results.write(out / "peers.json")  # what took minutes is not lost if the next one is interrupted
    _save(results, out, "peers", tables.by_side)
    for verdict in tables.verdicts(results):
        print(verdict)


@main.command()
@option("--in-flight", type=SOME, default=10_000, help="Calls that wait at a time.")
@option("--cancelled", type=SOME, default=20_000, help="Calls, some of which are cancelled.")
@option(
    "--seconds", type=float, default=1.0, help="How long a handler blocks; twice that, a coroutine ticks."
)
@option("--counted", type=SOME, default=200, help="Calls of a round that compute.")
@option("--rounds", type=SOME, default=3, help="Of those; the median of their ratios counts.")
@option("--items", type=SOME, default=100_000, help="Small items of a stream.")
@option("--slow", type=SOME, default=1_000_000, help="Those for a slow consumer.")
@option("--upload", type=SOME, default=1_000_000_000, help="Bytes.")
@option("--open", type=SOME, default=1000, help="Two-way streams at once.")
@option("--records", type=SOME, default=100_000, help="Log records.")
@option("--seed", type=int, default=1, help="Of which calls are cancelled, and when.")
@out_option
@click.argument("cases", nargs=-1, type=click.Choice(list(CASES)))
def concurrency(out: Path, cases: tuple[str, ...], **amounts: Any) -> None:
    """Measure many calls at a time from one process, and many jobs at a time in one worker."""
    report = measure(cases or CASES, Amounts(**amounts), _say)
    report.write(out / "concurrency.json")
    (out / "concurrency.md").write_text(f"{report}\n")
    print(report)
    if report.failed:
        raise SystemExit(1)


@main.command()
@out_option
@option("--page", type=click.Path(path_type=Path, exists=True), default=PAGE, help="Where the tables go.")
def publish(out: Path, page: Path) -> None:
    """Write the last results into the page on performance, and the plot of both next to it. Tables of what
    there are no new results of stay as they are."""
    found = {
        name: Results.read(file) for name in ("bench", "peers") if (file := out / f"{name}.json").exists()
    }
    many = out / "concurrency.json"
    if not (found or many.exists()):
        raise click.ClickException(f"no results in {out}: run `make bench` and `make bench-peers`")
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise click.ClickException(f"{page} has no {BEGIN} … {END}")
    parts = dict(
        re.findall(r"^### (.+)\n\n((?:.|\n)*?)(?=\n\n### |\Z)", rest.partition(END)[0].strip(), re.M)
    )
    picture = page.with_suffix(".svg")
    if len(found) == 2 or (found and not picture.exists()):
        picture.write_text(plot(list(found.values())))
    if "bench" in found:
        parts["Beside the bare loop"] = tables.by_figure(found["bench"])
    if "peers" in found:
        parts["Beside other systems"] = tables.by_side(found["peers"])
    if many.exists():
        parts["Many at a time"] = str(Report.read(many))
    shown = [f"![Ratios to the bare loop]({picture.name})"] if picture.exists() else []
    shown += [f"### {title}\n\n{part}" for title, part in parts.items()]
    page.write_text("\n\n".join([before + BEGIN, *shown, END + after]))


def _beside(peer: str, side: Side, only: tuple[str, ...], sizes: Sizes) -> Group:
    """A peer measured with the loop and ours; what went wrong if it cannot even be installed."""
    try:
        _say(f"the environment of {peer}")
        natively = tuple(one for one in HERE if one.name == NATIVE)
        ours = {"RabbitMQ": RABBIT, "none": NO_BROKER}.get(side.broker, natively)
        loop = [one for one in HERE if one.name == LOOP]
        sides = [*loop, *ours, replace(side, python=python_of(peer))]
    except SideFailed as failure:
        _say(f"{side.name}: {failure}")
        return {"redis": "", "sides": {side.name: {"error": str(failure)}}, "phases": {}}
    return run_group(sides, plan(only, sizes), sizes.rounds, _say)


def _save(results: Results, out: Path, name: str, table: Callable[[Results], str]) -> None:
    results.write(out / f"{name}.json")
    (out / f"{name}.md").write_text(table(results) + "\n")
    (out / f"{name}.svg").write_text(plot([results]))
    print(table(results))


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
