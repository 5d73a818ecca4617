"""What becomes of bytes that nobody checks on their way."""

from __future__ import annotations

import random

LENGTHS = 1, 1, 2, 4, 20, 500
"""How many bytes are hit at once."""


def damaged(data: bytes, dice: random.Random) -> bytes:
    """The data with some bytes changed, some of them left out, or some twice there."""
    start = dice.randrange(len(data))
    end = min(len(data), start + dice.choice(LENGTHS))
    part = data[start:end]
    instead = dice.choice(
        [
            dice.randbytes(len(part)),
            bytes(byte ^ 1 << dice.randrange(8) for byte in part),
            bytes(dice.choice(b"0123456789-\r\n$*:+{}\"' ") for _ in part),
            b"",
            part + part,
        ]
    )
    return data[:start] + instead + data[end:]
