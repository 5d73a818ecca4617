"""Where what is said begins and ends in a stream of chunks: commands and replies of the Redis protocol (RESP
2), frames of AMQP."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

FrameEnd = Callable[[bytes, int], "int | None"]
"""Where the frame that starts there ends; None if it is not complete."""


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame that ended in the chunk that was fed; `start` is its first byte there, negative if it began
    in an earlier one."""

    start: int
    data: bytes


class Frames:
    """Cuts one direction of a connection into frames."""

    def __init__(self, frame_end: FrameEnd) -> None:
        self._end, self._rest = frame_end, b""

    def feed(self, chunk: bytes) -> Iterator[Frame]:
        data, known = self._rest + chunk, len(self._rest)
        at = 0
        while (end := self._end(data, at)) is not None:
            frame = Frame(at - known, data[at:end])
            at = end
            self._rest = data[at:]
            yield frame
        self._rest = data[at:]


def of_redis(data: bytes, start: int) -> int | None:
    """What is no frame ends at once."""
    line_end = data.find(b"\r\n", start)
    if line_end < 0:
        return None
    end, kind = line_end + 2, data[start : start + 1]
    if kind not in b"$*":
        return end
    count = int(data[start + 1 : line_end])
    if kind == b"$":
        end += count + 2 if count >= 0 else 0
        return end if end <= len(data) else None
    for _ in range(count):
        inner = of_redis(data, end)
        if inner is None:
            return None
        end = inner
    return end


def of_amqp(data: bytes, start: int) -> int | None:
    """The greeting is a frame, too."""
    if data[start : start + 4] == b"AMQP":
        end = start + 8
    elif len(data) < start + 7:
        return None
    else:
        end = start + 7 + int.from_bytes(data[start + 3 : start + 7], "big") + 1
    return end if end <= len(data) else None
