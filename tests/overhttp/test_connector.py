"""The example of a connector prints what its model does."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.zeromq import http_places

EXAMPLE = Path(__file__).parent.parent.parent / "example" / "connector"
THING = {"Purpose": "For test only", "empty": None, "name": "test"}
T1, T2 = {**THING, "value": "value1"}, {**THING, "value": "value2"}
VALUES = {"int": 20, "str": "adfafsa", "float": 0.2323}
X = {**THING, "value": {"list": [T1, T2], "t1": T1, "t2": T2}}
Y = {**THING, "value": [T1, T2]}
EXPECTED: list[Any] = [
    "A variable value-A keyword variable value",
    *("A variable value", "A keyword variable value", "A variable value-A keyword variable value"),
    2330,
    5.138,
    *(1000000003.1427, 1000000000000000000, 9.87656329),
    [12, 34, 45, "abc", "zyz"],
    {"dict": {"keyword": ["anything"]}, **VALUES},
    *({"keyword": ["anything"]}, ["abc", "zyz", "other value"], None),
    None,
    {**THING, "value": {"keyword": ["anything"]}},
    *({**THING, "value": VALUES}, {"keyword": ["anything"]}, None),
    *(X, Y, [Y, X]),
]


def test_it_prints_the_same_values_of_the_same_types() -> None:
    url = http_places()
    listener = subprocess.Popen([sys.executable, "listener.py", url], cwd=EXAMPLE)
    try:
        said = subprocess.run(
            [sys.executable, "sender.py", f"{url}?retry_for=30"],
            cwd=EXAMPLE,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        listener.terminate()
        assert listener.wait(30) == 0
    assert said.returncode == 0, said.stderr
    first, *lines = [line for line in said.stdout.splitlines() if not line.startswith("=")]
    assert first == "Welcome Mr. Developer"
    found = [re.fullmatch(r"[xyz]= (.*) <class '(\w+)'>", line) for line in lines]
    assert [each and each[2] for each in found] == [type(value).__name__ for value in EXPECTED]
    values = [each and (each[1] if each[2] == "str" else ast.literal_eval(each[1])) for each in found]
    assert values == EXPECTED
