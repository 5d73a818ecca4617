"""Deletes what a side left on a broker that others use, too: `python -m benchmarks.clean MODULE`, in its own
environment."""

from __future__ import annotations

import sys
from importlib import import_module

if __name__ == "__main__":
    import_module(sys.argv[1]).clean()
