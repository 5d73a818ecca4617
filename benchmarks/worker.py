"""The serving process of a side: `python -m benchmarks.worker MODULE`, in the side's own environment.

It ends when its stdin does, along with all that it started: nothing outlives a run, however that ends.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from importlib import import_module


def end_with_stdin() -> None:
    os.read(0, 1)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    threading.Thread(target=end_with_stdin, daemon=True).start()
    import_module(sys.argv[1]).serve()
