"""What data looks like on a terminal, and where there is none."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys

import pytest

DATA = {"a": [1, -2.5e30, None, True], 'k"e:y': "x\x1b\x9b\u202e: {1}", "empty": {}}
PRINT = f"from rpc.cli.output import print_data; print_data({DATA!r})"


def on_a_terminal(code: str, **env: str) -> str:
    """What this Python code shows on a terminal."""
    ours, its = pty.openpty()
    with subprocess.Popen([sys.executable, "-c", code], stdout=its, env={**os.environ, **env}) as process:
        os.close(its)
        shown = b""
        try:
            while more := os.read(ours, 65536):
                shown += more
        except OSError:  # how Linux says that the other side has closed it
            pass
        os.close(ours)
    assert process.returncode == 0
    return shown.decode().replace("\r\n", "\n")


def test_on_a_terminal_data_is_indented_and_coloured() -> None:
    shown = on_a_terminal(PRINT)
    plain = re.sub(r"\x1b\[\d*m", "", shown)
    assert plain != shown
    assert "\n  " in plain
    assert json.loads(plain) == DATA


def test_a_key_does_not_look_like_a_text() -> None:
    shown = on_a_terminal("from rpc.cli.output import print_data; print_data({'a': 'a'})")
    key, text = re.findall(r'(\x1b\[\d+m)"a"', shown)
    assert key != text


@pytest.mark.parametrize("kept", ["\x1b]", "\x9b", "\u202e"])
def test_data_cannot_steer_the_terminal(kept: str) -> None:
    assert kept not in on_a_terminal(PRINT)


def test_no_color_is_honoured() -> None:
    shown = on_a_terminal(PRINT, NO_COLOR="1")
    assert "\x1b" not in shown
    assert "\n  " in shown


def test_elsewhere_data_is_one_line() -> None:
    said = subprocess.run([sys.executable, "-c", PRINT], capture_output=True, text=True, check=True).stdout
    assert said.count("\n") == 1
    assert json.loads(said) == DATA
