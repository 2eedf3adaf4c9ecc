"""Curves as SVG within a page: for what is drawn again every few seconds, where matplotlib takes too long."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 340, 220, 44, 10, 12, 30


@dataclass(frozen=True)
class Curve:
    """Points of a series, and how it is drawn: a colour, and dashes as SVG writes them."""

    label: str
    points: Sequence[tuple[float, float]]
    colour: str
    dashes: str = ""


def curves(title: str, series: Sequence[Curve], top: float | None = None) -> str:
    """Return a plot of several series by epoch, from 0 to `top`, or what the points need."""
    points = [point for one in series for point in one.points]
    right = max(2.0, *(x for x, _ in points))
    high = max(y for _, y in points) if top is None else top
    low = min(0.0, *(y for _, y in points))
    high = high if high > low else low + 1.0

    def place(x: float, y: float) -> str:
        across = _LEFT + (x - 1) / (right - 1) * (_WIDTH - _LEFT - _RIGHT)
        return f"{across:.1f},{_HEIGHT - _BOTTOM - (y - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM):.1f}"

    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)} by epoch">']
    for share in (0.0, 0.5, 1.0):
        value = low + share * (high - low)
        x, y = place(1, value).split(",")
        parts.append(f'<path class="grid" d="M{x} {y}H{_WIDTH - _RIGHT}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{float(y) + 4:.1f}" text-anchor="end">{_short(value)}</text>')
    parts.append(f'<text x="{_LEFT}" y="{_HEIGHT - 10}">epoch 1</text>')
    parts.append(f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 10}" text-anchor="end">{right:.0f}</text>')
    for one in series:
        line = " ".join(place(x, y) for x, y in one.points)
        dashes = f' stroke-dasharray="{one.dashes}"' if one.dashes else ""
        parts.append(
            f'<polyline points="{line}" stroke="{one.colour}"{dashes}><title>{escape(one.label)}</title></polyline>'
        )
        if len(one.points) == 1:
            x, y = line.split(",")
            parts.append(f'<circle cx="{x}" cy="{y}" r="2.5" fill="{one.colour}"/>')
    return "".join([*parts, "</svg>"])


def _short(value: float) -> str:
    return f"{value:.3g}" if value == 0 or abs(math.log10(abs(value))) < 4 else f"{value:.0e}"
