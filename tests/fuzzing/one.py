"""One target, until its time is over: `python -m tests.fuzzing.one NAME` and what libFuzzer takes."""

from __future__ import annotations

import logging
import sys

import atheris

with atheris.instrument_imports(include=["rpc"]):
    from . import targets

if __name__ == "__main__":
    logging.getLogger("rpc").setLevel(logging.CRITICAL)
    name = sys.argv.pop(1)
    atheris.Setup(sys.argv, targets.TARGETS[name])
    atheris.Fuzz()
