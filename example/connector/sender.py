"""Calls what `listener.py` does, and prints what comes back."""

from __future__ import annotations

import sys
from typing import Any

from listener import TOKEN, Thing

from rpc import RpcClient

URL = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:5000"


def show(**values: Any) -> None:
    for name, value in values.items():
        print(f"{name}=", value, type(value))
    print("=" * 26)


with RpcClient(backend=URL) as client:
    friend = client.at(URL)
    print(friend.helloworld("Mr. Developer"))

    show(x=friend.send("/str", "A variable value", key="A keyword variable value"))
    x, y, z = friend.send("/str2", "A variable value", key="A keyword variable value")
    show(x=x, y=y, z=z)
    show(x=friend.send("/int", 2018, key=312))
    show(x=friend.send("/float", 2.018, key=3.12))
    x, y, z = friend.send("/int3", 3.1427, key=1000000000)
    show(x=x, y=y, z=z)

    show(x=friend.send("/list", [12, 34, 45], key=["abc", "zyz"]))
    show(
        x=friend.send("/dict", {"keyword": ["anything"]}, key={"int": 20, "str": "adfafsa", "float": 0.2323})
    )
    x, y, z = friend.send("/list3", {"keyword": ["anything"]}, key=["abc", "zyz"])
    show(x=x, y=y, z=z)

    show(x=friend.send("/None", [12, 34, 45], key=["abc", "zyz"]))
    friend = client.at(URL, token=TOKEN)  # it is sent there, and nowhere else
    values = {"int": 20, "str": "adfafsa", "float": 0.2323}
    show(x=friend.send("/class", {"keyword": ["anything"]}, key=values))
    x, y, z = friend.send("/class2", {"keyword": ["anything"]}, key=values)
    show(x=x, y=y, z=z)
    t1, t2 = Thing("value1"), Thing("value2")
    x, y, z = friend.send("/class3", [t1, t2], key={"t1": t1, "t2": t2, "list": [t1, t2]})
    show(x=x, y=y, z=z)
