"""Small charts as inline SVG: positions in per cent and text in CSS pixels, so that they fit any width unscaled.

Colours are CSS classes of the page, which has a light and a dark form. Text that comes from data is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

Floats = npt.NDArray[np.float64]
LEFT, RIGHT = 7.0, 98.0  # the plot's edges, per cent of the width


def _svg(height: int, label: str, inner: Sequence[Markup], css: str = "chart") -> Markup:
    head = Markup('<svg class="{}" width="100%" height="{}" role="img" aria-label="{}">').format(css, height, label)
    return head + Markup("").join(inner) + Markup("</svg>")


def bar(parts: Sequence[tuple[str, float]], whole: float, label: str, height: int = 22) -> Markup:
    """One horizontal bar of parts (css class, size) in a row, `whole` being its full width."""
    at, shapes = 0.0, []
    for css, size in parts:
        width = 100 * size / whole if whole else 0.0
        if width > 0:
            shapes.append(_rect(css, at, 0, max(width, 0.15), height))
        at += width
    return _svg(height, label, shapes, "chart bar")


def _rect(css: str, x: float, y: float, width: float, height: float) -> Markup:
    shape = '<rect class="{}" x="{:.3f}%" y="{:.1f}" width="{:.3f}%" height="{:.1f}"/>'
    return Markup(shape.format("{}", x, y, width, height)).format(css)


def _line(css: str, x1: float, y1: float, x2: float, y2: float) -> Markup:
    shape = '<line class="{}" x1="{:.3f}%" y1="{:.1f}" x2="{:.3f}%" y2="{:.1f}"/>'
    return Markup(shape.format("{}", x1, y1, x2, y2)).format(css)


def _text(css: str, x: float, y: float, words: str, anchor: str = "middle") -> Markup:
    shape = '<text class="{}" x="{:.3f}%" y="{:.1f}" text-anchor="{}">{}</text>'
    return Markup(shape.format("{}", x, y, anchor, "{}")).format(css, words)


def minus(text: str) -> str:
    """A number with a real minus sign."""
    return text.replace("-", "\N{MINUS SIGN}")


def ticks(low: float, high: float, about: int = 6) -> list[float]:
    """Round numbers within [low, high], about as many as asked for."""
    if not high > low:
        return [low]
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * min((1, 2, 5, 10), key=lambda m: abs(m * power - rough))
    return [round(i * step, 12) for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def number(value: float) -> str:
    """A tick's label."""
    return minus(f"{value:g}")


def histogram(
    values: Mapping[str, Floats], cuts: Sequence[tuple[str, str, float]], x_label: str, y_label: str
) -> Markup:
    """A stacked histogram: css class -> values, and cuts (css class, words, position) as lines across it."""
    everything = np.concatenate([*values.values(), np.zeros(0)])
    everything = everything[np.isfinite(everything)]
    if not len(everything):
        return Markup("")
    low, high = float(everything.min()), float(everything.max())
    low, high = (low, high) if high > low else (low - 0.5, high + 0.5)
    bins = int(np.clip(2 * len(everything) ** 0.5, 16, 60))
    edges = np.linspace(low, high, bins + 1)
    counts = {css: np.histogram(v[np.isfinite(v)], edges)[0] for css, v in values.items()}
    top = float(np.sum(list(counts.values()), axis=0).max())
    height, floor, ceiling = 300, 246.0, 46.0

    def x(value: float) -> float:
        return LEFT + (RIGHT - LEFT) * (value - low) / (high - low)

    def y(count: float) -> float:
        return floor - (floor - ceiling) * count / top

    shapes = [_line("grid", LEFT, y(t), RIGHT, y(t)) for t in ticks(0, top, 4)]
    shapes += [_text("tick", LEFT - 0.8, y(t) + 4, f"{t:,.0f}", "end") for t in ticks(0, top, 4)]
    below = np.zeros(bins)
    for css, count in counts.items():
        for i in np.flatnonzero(count).tolist():
            wide = x(edges[i + 1]) - x(edges[i])
            span = y(below[i]) - y(below[i] + count[i])
            shapes.append(_rect(css, x(edges[i]) + wide * 0.04, y(below[i] + count[i]), wide * 0.92, span))
        below += count
    shapes += [_text("tick", x(t), floor + 18, number(t)) for t in ticks(low, high, 6)]
    shapes.append(_line("axis", LEFT, floor, RIGHT, floor))
    if low < 0 < high:
        shapes.append(_line("zero", x(0), ceiling, x(0), floor))
    for row, (css, words, at) in enumerate(sorted(cuts, key=lambda c: c[2])):
        anchor = "start" if x(at) < 30 else "end" if x(at) > 70 else "middle"
        shapes += [_line(f"cut {css}", x(at), 20 + 16 * (row % 2), x(at), floor)]
        shapes += [_text(f"cut-label {css}", x(at), 15 + 16 * (row % 2), words, anchor)]
    shapes.append(_text("axis-label", (LEFT + RIGHT) / 2, height - 14, x_label))
    shapes.append(_text("axis-label", 0, 30, y_label, "start"))
    return _svg(height, f"Histogram: {y_label} by {x_label}", shapes)


def interval(value: float, low: float | None, high: float | None, reach: float, css: str, label: str) -> Markup:
    """A difference as a dot with its interval, where there is one, on an axis from -reach to reach."""

    def x(v: float) -> float:
        return 50 + 46 * max(-1.0, min(1.0, v / reach)) if reach else 50.0

    shapes = [_line("zero", 50, 0, 50, 24)]
    if low is not None and high is not None:
        shapes.append(_line(f"whisker {css}", x(low), 12, x(high), 12))
    dot = Markup('<circle class="{}" cx="{}%" cy="12" r="4.5"/>').format(css, f"{x(value):.3f}")
    return _svg(24, label, [*shapes, dot], "chart interval")


def signed(value: float, reach: float, label: str) -> Markup:
    """A bar from the middle to the right, or to the left where the value is negative, on an axis from -reach to
    reach."""
    width = 50 * min(1.0, abs(value) / reach) if reach else 0.0
    css = "selected" if value > 0 else "harmful"
    return _svg(16, label, [_rect(css, 50 - width * (value < 0), 2, width, 12), _line("zero", 50, 0, 50, 16)])


Point = tuple[float, float | None, float | None]  # value, and its interval's ends where there is one


def lines(labels: Sequence[str], series: Mapping[str, Sequence[Point | None]], y_label: str) -> Markup:
    """Values over nights: css class -> a point for each label, or None where there is none, joined by lines."""
    values = [v for points in series.values() for p in points if p is not None for v in p if v is not None]
    if not values or not labels:
        return Markup("")
    low, high = min(values), max(values)
    low, high = (low, high) if high > low else (low - abs(low) * 0.1 - 1e-6, high + abs(high) * 0.1 + 1e-6)
    height, floor, ceiling = 220, 176.0, 30.0

    def x(i: int) -> float:
        return LEFT + (RIGHT - LEFT) * (i + 0.5) / len(labels)

    def y(value: float) -> float:
        return floor - (floor - ceiling) * (value - low) / (high - low)

    shapes = [_line("grid", LEFT, y(t), RIGHT, y(t)) for t in ticks(low, high, 4)]
    shapes += [_text("tick", LEFT - 0.8, y(t) + 4, number(t), "end") for t in ticks(low, high, 4)]
    every = -(-len(labels) // 10)  # more dates than ten would run into one another
    shapes += [_text("tick", x(i), floor + 18, label) for i, label in enumerate(labels) if i % every == 0]
    for css, points in series.items():
        before: tuple[float, float] | None = None
        for i, point in enumerate(points):
            if point is None:
                continue
            value, down, up = point
            if down is not None and up is not None:
                shapes.append(_line(f"whisker {css}", x(i), y(down), x(i), y(up)))
            if before is not None:
                shapes.append(_line(css, *before, x(i), y(value)))
            before = x(i), y(value)
            shapes.append(_dot(css, *before))
    shapes.append(_text("axis-label", 0, 15, y_label, "start"))
    return _svg(height, f"{y_label}, by night", shapes)


def _dot(css: str, x: float, y: float) -> Markup:
    return Markup('<circle class="{}" cx="{}%" cy="{}" r="3.5"/>').format(css, f"{x:.3f}", f"{y:.1f}")
