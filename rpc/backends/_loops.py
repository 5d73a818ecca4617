"""Several loops at once, one of them in the calling thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Thread


def run_together(loops: Sequence[Callable[[], None]], stop: Callable[[], None]) -> None:
    """Run the first loop here and the others in threads, until all have returned. If one raises, `stop` is
    called so that the others end, and its exception is raised."""
    failures: list[BaseException] = []

    def guarded(loop: Callable[[], None]) -> None:
        try:
            loop()
        except BaseException as error:  # raised again below, in the thread that called
            failures.append(error)
            stop()

    threads = [Thread(target=guarded, args=[loop], name="rpc-loop", daemon=True) for loop in loops[1:]]
    for thread in threads:
        thread.start()
    guarded(loops[0])
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
