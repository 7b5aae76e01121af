"""A scatter plot with a front as SVG text: no script, no font, no other file."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 640, 420
LEFT, RIGHT, TOP, BOTTOM = 78, 24, 44, 58
_COLOURS = {"dense": "#444444", "front": "#1b7837", "behind": "#b0b0b0"}


@dataclass(frozen=True)
class Dot:
    """One model: where it is, what it is called, and whether it is on the front."""

    x: float
    y: float
    label: str
    kind: Literal["dense", "front", "behind"]


@dataclass(frozen=True)
class _Axis:
    """Values as places along a line."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    @property
    def ticks(self) -> list[float]:
        """Round values within the axis, four to ten of them."""
        step = _round_step((self.high - self.low) / 5)
        first = math.ceil(self.low / step - 1e-9)
        return [number * step for number in range(first, math.floor(self.high / step + 1e-9) + 1)]


def plot(dots: Sequence[Dot], *, title: str, across: str, up: str) -> str:
    """Dots over two axes, the dense model and the front marked; dots without a finite place are left out, and said to be."""
    shown = [dot for dot in dots if math.isfinite(dot.x) and math.isfinite(dot.y)]
    x = _axis([dot.x for dot in shown], LEFT, WIDTH - RIGHT)
    y = _axis([dot.y for dot in shown], HEIGHT - BOTTOM, TOP)
    left_out = [f"{dot.label}: {dot.y}" for dot in dots if dot not in shown]
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        'font-family="sans-serif" font-size="12" role="img">',
        f"<title>{escape(f'{title}: {up} against {across}')}</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        _text(LEFT, 24, title + (f" (not drawn: {', '.join(left_out)})" if left_out else ""), anchor="start", size=14),
        *_across(x, across),
        *_upwards(y, up),
        *_front(shown, x, y),
        *(mark for dot in shown for mark in _mark(dot, x(dot.x), y(dot.y))),
        *_legend(shown),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _axis(values: Sequence[float], start: float, end: float) -> _Axis:
    low, high = min(values, default=0.0), max(values, default=1.0)
    room = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
    return _Axis(low - room, high + room, start, end)


def _round_step(rough: float) -> float:
    """The nearest of 1, 2 and 5 times a power of ten that is no less."""
    scale = 10.0 ** math.floor(math.log10(rough))
    return next((scale * times for times in (1.0, 2.0, 5.0) if scale * times >= rough), 10 * scale)


def _across(axis: _Axis, label: str) -> Iterator[str]:
    base = HEIGHT - BOTTOM
    for tick in axis.ticks:
        yield f'<line x1="{axis(tick):.1f}" y1="{TOP}" x2="{axis(tick):.1f}" y2="{base}" stroke="#e6e6e6"/>'
        yield _text(axis(tick), base + 18, f"{tick:.6g}")
    yield f'<line x1="{LEFT}" y1="{base}" x2="{WIDTH - RIGHT}" y2="{base}" stroke="#444444"/>'
    yield _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 16, label, size=13)


def _upwards(axis: _Axis, label: str) -> Iterator[str]:
    for tick in axis.ticks:
        yield f'<line x1="{LEFT}" y1="{axis(tick):.1f}" x2="{WIDTH - RIGHT}" y2="{axis(tick):.1f}" stroke="#e6e6e6"/>'
        yield _text(LEFT - 8, axis(tick) + 4, f"{tick:.6g}", anchor="end")
    yield f'<line x1="{LEFT}" y1="{TOP}" x2="{LEFT}" y2="{HEIGHT - BOTTOM}" stroke="#444444"/>'
    middle = (TOP + HEIGHT - BOTTOM) / 2
    yield f'<g transform="translate(20 {middle:.1f}) rotate(-90)">{_text(0, 0, label, size=13)}</g>'


def _front(dots: Sequence[Dot], x: _Axis, y: _Axis) -> Iterator[str]:
    """The line through the front."""
    places = sorted((x(dot.x), y(dot.y)) for dot in dots if dot.kind == "front")
    if len(places) > 1:
        path = " ".join(f"{across:.1f},{up:.1f}" for across, up in places)
        yield f'<polyline points="{path}" fill="none" stroke="{_COLOURS["front"]}" stroke-width="2"/>'


def _mark(dot: Dot, across: float, up: float) -> Iterator[str]:
    told = f"<title>{escape(f'{dot.label}: {dot.x:.4g} %, {dot.y:.5g}')}</title>"
    if dot.kind == "dense":
        yield (f'<rect class="dense" x="{across - 5:.1f}" y="{up - 5:.1f}" width="10" height="10" fill="{_COLOURS["dense"]}">{told}</rect>')
    else:
        yield f'<circle class="{dot.kind}" cx="{across:.1f}" cy="{up:.1f}" r="5" fill="{_COLOURS[dot.kind]}">{told}</circle>'
    yield _text(across, up - 10, dot.label, size=11)


def _legend(dots: Sequence[Dot]) -> Iterator[str]:
    words = {"front": "on the Pareto front", "behind": "behind it"}
    there = [kind for kind in words if any(dot.kind == kind for dot in dots)]
    for number, kind in enumerate(there):
        up = HEIGHT - BOTTOM - 14 - 18 * number
        yield f'<circle cx="{WIDTH - RIGHT - 148}" cy="{up - 4}" r="5" fill="{_COLOURS[kind]}"/>'
        yield _text(WIDTH - RIGHT - 136, up, words[kind], anchor="start")


def _text(across: float, up: float, words: str, *, anchor: str = "middle", size: int = 12) -> str:
    return f'<text x="{across:.1f}" y="{up:.1f}" text-anchor="{anchor}" font-size="{size}" fill="#222222">{escape(words)}</text>'
