"""`python -m tests.fuzzing`: each target (see `targets`) for some seconds, with atheris, each in a process.
What is found is written down as a file; `python -m tests.fuzzing NAME --input FILE` shows it again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import click

from . import NAMES

LONGEST = 4096
"""Bytes of an input."""


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(NAMES))
@click.option("--seconds", default=10, show_default=True, help="Of each target.")
@click.option("--found", default=".fuzzing", show_default=True, help="The folder of what is found.")
@click.option("--input", "file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def main(names: tuple[str, ...], seconds: int, found: str, file: Path | None) -> None:
    """Fuzz the decoders, or those that are named."""
    if file:
        from .targets import TARGETS

        for name in names:
            TARGETS[name](file.read_bytes())
        return
    Path(found).mkdir(exist_ok=True)
    failed = [name for name in names or NAMES if not _is_fuzzed(name, seconds, Path(found))]
    if failed:
        raise click.ClickException(f"found something in {', '.join(failed)}: see {found}")


def _is_fuzzed(name: str, seconds: int, found: Path) -> bool:
    from .targets import seeds

    with TemporaryDirectory() as corpus:
        for number, seed in enumerate(seeds(name)):
            Path(corpus, str(number)).write_bytes(seed)
        command = [sys.executable, "-m", "tests.fuzzing.one", name, corpus, f"-max_total_time={seconds}"]
        command += [
            f"-artifact_prefix={found}/{name}-",
            f"-max_len={LONGEST}",
            "-timeout=10",
            "-rss_limit_mb=1024",
        ]
        done = subprocess.run(
            [*command, "-print_final_stats=1"], stderr=subprocess.PIPE, text=True, check=False
        )
    ran = [line.rpartition(" ")[2] for line in done.stderr.splitlines() if "number_of_executed_units" in line]
    click.echo(
        f"{name}: {'nothing found' if done.returncode == 0 else 'FOUND'}, {' '.join(ran) or 'no'} inputs"
    )
    if done.returncode:
        click.echo(done.stderr[-4000:], err=True)
    return done.returncode == 0


if __name__ == "__main__":
    main()
