"""Environments of the peers: a virtualenv each, with the pinned packages of `peers/requirements/`."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from .processes import ROOT, SideFailed

REQUIREMENTS = Path(__file__).parent / "peers" / "requirements"
HOME = ROOT / ".peers"


def python_of(peer: str) -> str:
    """The interpreter in the environment of a peer, which is made if it is missing or out of date.

    Raises SideFailed if it cannot be made.
    """
    pinned = (REQUIREMENTS / f"{peer}.txt").read_text()
    wanted = f"{sys.version}\n{pinned}"
    home, made = HOME / peer, HOME / f"{peer}.made"
    python = str(home / "bin" / "python")
    if not made.exists() or made.read_text() != wanted or not home.exists():
        made.unlink(missing_ok=True)
        shutil.rmtree(home, ignore_errors=True)
        _run(sys.executable, "-m", "venv", str(home))
        install = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r")
        _run(python, *install, str(REQUIREMENTS / f"{peer}.txt"))
        made.write_text(wanted)
    return python


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or [
            done.stderr.strip()
        ]
        raise SideFailed(f"not installed: {said[-1]:.200}")
