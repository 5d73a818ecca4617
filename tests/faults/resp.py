"""Where the commands and replies of the Redis protocol (RESP 2) begin and end in a stream of chunks."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame that ended in the chunk that was fed; `start` is its first byte there, negative if it began
    in an earlier one."""

    start: int
    data: bytes


class Frames:
    """Cuts one direction of a connection into frames."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, chunk: bytes) -> Iterator[Frame]:
        data, known = self._rest + chunk, len(self._rest)
        at = 0
        while (end := frame_end(data, at)) is not None:
            frame = Frame(at - known, data[at:end])
            at = end
            self._rest = data[at:]
            yield frame
        self._rest = data[at:]


class Counted:
    """Both directions of a connection: which commands were sent, and which of them were answered."""

    def __init__(self) -> None:
        self._up, self._down = Frames(), Frames()
        self.sent: deque[int] = deque()
        """Numbers of the commands that have no reply yet."""

    def commands(self, chunk: bytes) -> Iterator[Frame]:
        return self._up.feed(chunk)

    def replies(self, chunk: bytes) -> Iterator[Frame]:
        return self._down.feed(chunk)


def frame_end(data: bytes, start: int) -> int | None:
    """Where the frame that starts there ends; None if it is not complete. What is no frame ends at once."""
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
        inner = frame_end(data, end)
        if inner is None:
            return None
        end = inner
    return end
