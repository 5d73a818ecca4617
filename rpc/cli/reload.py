"""`--reload` of a worker: one worker process after another, each with the code as it is by then.

This process runs none of the user's code: what Python has imported it would keep.
"""

from __future__ import annotations

import logging
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from ..errors import not_installed

logger = logging.getLogger(__name__)

RELOAD = "--reload"
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def run_and_reload(directory: Path, command: Sequence[str]) -> None:
    """Run a worker's command, without its --reload, and again after each change of a .py file below
    `directory`; returns when a signal has stopped it. Raises Unsupported without watchfiles."""
    try:
        from watchfiles import PythonFilter, watch
    except ImportError:
        raise not_installed(RELOAD, "reload") from None
    worker = _Worker([word for word in command if word != RELOAD])
    before = {number: signal.signal(number, worker.forward) for number in SIGNALS}
    try:
        worker.start()
        for changes in watch(directory, watch_filter=PythonFilter(), stop_event=worker):
            names = sorted({Path(name).name for _, name in changes})
            logger.info("%s changed: starting again", ", ".join(names))
            worker.restart()
    finally:
        worker.wait()
        for number, handler in before.items():
            signal.signal(number, handler)


class _Worker:
    """A process that serves, and is replaced. To watchfiles it is the event that ends the watching."""

    def __init__(self, command: list[str]) -> None:
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = False

    def start(self) -> None:
        # A session of its own: Ctrl-C in the terminal would reach it twice, and the second signal is final.
        self._process = subprocess.Popen(self._command, start_new_session=True)  # noqa: S603
        if self._stopped:  # a signal came while there was no process to forward it to
            self._process.terminate()

    def restart(self) -> None:
        if self._process:
            self._process.terminate()
        self.wait()
        if not self._stopped:
            self.start()

    def wait(self) -> None:
        if self._process:
            self._process.wait()

    def forward(self, number: int, frame: FrameType | None) -> None:
        """Signal handler: the worker does what it does at this signal."""
        self._stopped = True
        if self._process:
            self._process.send_signal(number)

    def is_set(self) -> bool:
        return self._stopped
