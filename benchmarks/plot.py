"""Results as a picture: a dot for each side at its ratio to the bare loop, best first, log scale."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from xml.sax.saxutils import escape

from .results import Ratio, Results
from .sides import LOOP

PANELS = (
    ("latency", "p50", "Time of a call: less is better", False),
    ("throughput 64", "rate", "Calls per second, 64 at a time: more is better", True),
    ("drain", "rate", "Waiting jobs done per second: more is better", True),
)
ROW, LABEL, SCALE, RIGHT = 22, 150, 500, 70
WIDTH = LABEL + SCALE + RIGHT


def plot(many: Sequence[Results]) -> str:
    """An SVG of what is in these results; a side that is in several of them is drawn as in the first."""
    parts: list[str] = []
    top = 10
    for phase, key, title, more_is_better in PANELS:
        ratios = _ratios(many, phase, key)
        if ratios:
            ranked = sorted(ratios.items(), key=lambda item: item[1].median, reverse=more_is_better)
            parts += _panel(title, dict(ranked), top)
            top += ROW * (len(ratios) + 2) + 20
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" '
            'font-family="sans-serif" font-size="12" fill="#222">',
            f'<rect width="{WIDTH}" height="{top}" fill="#fff"/>',
            *parts,
            "</svg>\n",
        ]
    )


def _ratios(many: Sequence[Results], phase: str, key: str) -> dict[str, Ratio]:
    found: dict[str, Ratio] = {}
    for results in many:
        for side in results.sides():
            ratio = results.ratio(side, LOOP, phase, key)
            if ratio and side != LOOP:
                found.setdefault(side, ratio)
    return found


def _panel(title: str, ratios: dict[str, Ratio], top: int) -> Iterator[str]:
    low = math.floor(math.log2(min(0.8, *(ratio.low for ratio in ratios.values()))))
    high = math.ceil(math.log2(max(1.25, *(ratio.high for ratio in ratios.values()))))

    def x(value: float) -> float:
        return LABEL + SCALE * (math.log2(value) - low) / (high - low)

    bottom = top + ROW * (len(ratios) + 1)
    yield f'<text x="{LABEL}" y="{top + 14}" font-weight="bold">{escape(title)} (bare loop: 1)</text>'
    for power in range(low, high + 1):
        at, colour = x(2.0**power), "#d33" if power == 0 else "#ddd"
        yield f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{top + ROW}" y2="{bottom}" stroke="{colour}"/>'
        yield f'<text x="{at:.1f}" y="{bottom + 14}" text-anchor="middle" fill="#666">{_tick(power)}</text>'
    for number, (side, ratio) in enumerate(ratios.items()):
        yield from _row(side, ratio, x, top + ROW * (number + 1) + ROW // 2)


def _row(side: str, ratio: Ratio, x: Callable[[float], float], y: int) -> Iterator[str]:
    """A dot at the median, on a line from the least to the greatest ratio of a round."""
    colour = "#087" if side.startswith("rpc") else "#557"
    yield f'<text x="{LABEL - 8}" y="{y + 4}" text-anchor="end">{escape(side)}</text>'
    yield (
        f'<line x1="{x(ratio.low):.1f}" x2="{x(ratio.high):.1f}" y1="{y}" y2="{y}" '
        f'stroke="{colour}" stroke-width="2"/>'
    )
    yield f'<circle cx="{x(ratio.median):.1f}" cy="{y}" r="5" fill="{colour}"/>'
    yield f'<text x="{max(x(ratio.high), x(ratio.median) + 5) + 6:.1f}" y="{y + 4}">{ratio.median:.2f}</text>'


def _tick(power: int) -> str:
    return f"{2**power}" if power >= 0 else f"1/{2**-power}"
