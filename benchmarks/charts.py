"""Line charts as small SVG files, the same bytes for the same rows wherever they are made."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 620, 300
LEFT, RIGHT, TOP, BOTTOM = 52, 190, 34, 44  # margins; the legend stands in the right one
COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#111111",
)  # told apart by colour-blind eyes
STEPS = 4
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Chart:
    """Lines over batch sizes, or over what `x_label` says; `level` is a dashed line to compare with.

    Attributes:
        x_ticks: Where x is labelled; at every point if empty. The picture spans them.
        logarithmic: Whether x is.
        y_from: Where y starts.
    """

    title: str
    y_label: str
    lines: Mapping[str, Points]
    level: float | None = None
    x_label: str = "images in a batch"
    x_ticks: Sequence[float] = ()
    logarithmic: bool = True
    y_from: float = 0.0

    def svg(self) -> str:
        xs = self.x_ticks or sorted({x for points in self.lines.values() for x, _ in points})
        highest = max(y for points in self.lines.values() for _, y in points)
        top = _round_up(max(highest, self.level or 0))
        scale = _Scale(xs[0], xs[-1], self.y_from, top, self.logarithmic)
        parts = [*self._frame(scale, xs), *self._lines(scale)]
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" '
            f'height="{HEIGHT}" font-family="sans-serif" font-size="11" fill="#444">\n'
            f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>\n' + "\n".join(parts) + "\n</svg>\n"
        )

    def _frame(self, scale: "_Scale", xs: Sequence[float]) -> list[str]:
        right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
        parts = [
            f'<text x="{LEFT}" y="18" font-size="13" fill="#111">{escape(self.title)}</text>',
            f'<text x="{(LEFT + right) / 2:.0f}" y="{HEIGHT - 10}" text-anchor="middle">'
            f"{escape(self.x_label)}</text>",
            f'<text transform="translate(13 {(TOP + bottom) / 2:.0f}) rotate(-90)" text-anchor="middle">'
            f"{escape(self.y_label)}</text>",
        ]
        for step in range(STEPS + 1):
            value = scale.bottom + (scale.top - scale.bottom) * step / STEPS
            y = scale.y(value)
            parts.append(f'<path d="M{LEFT} {y}H{right}" stroke="#ddd"/>')
            parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
        parts += [
            f'<text x="{scale.x(x)}" y="{bottom + 16}" text-anchor="middle">{_short(x)}</text>' for x in xs
        ]
        if self.level is not None:
            parts.append(
                f'<path d="M{LEFT} {scale.y(self.level)}H{right}" stroke="#888" stroke-dasharray="4 3"/>'
            )
        return parts

    def _lines(self, scale: "_Scale") -> list[str]:
        parts = []
        for place, (name, points) in enumerate(self.lines.items()):
            colour, y = COLOURS[place % len(COLOURS)], TOP + 8 + 18 * place
            path = " ".join(f"{scale.x(a)},{scale.y(b)}" for a, b in sorted(points))
            parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
            parts += [
                f'<circle cx="{scale.x(a)}" cy="{scale.y(b)}" r="3" fill="{colour}"/>' for a, b in points
            ]
            start = WIDTH - RIGHT + 12
            parts.append(f'<path d="M{start} {y}h16" stroke="{colour}" stroke-width="2"/>')
            parts.append(f'<text x="{start + 22}" y="{y + 4}">{escape(name)}</text>')
        return parts


@dataclass(frozen=True)
class _Scale:
    """From values to places in the picture, to a tenth of a pixel."""

    low: float
    high: float
    bottom: float
    top: float
    logarithmic: bool

    def x(self, value: float) -> float:
        along, span = self._from_low(value), self._from_low(self.high) or 1.0
        return round(LEFT + 14 + (WIDTH - RIGHT - LEFT - 28) * along / span, 1)

    def y(self, value: float) -> float:
        height = (HEIGHT - BOTTOM - TOP) * (value - self.bottom) / (self.top - self.bottom)
        return round(HEIGHT - BOTTOM - height, 1)

    def _from_low(self, value: float) -> float:
        return math.log(value / self.low) if self.logarithmic else value - self.low


def _short(value: float) -> str:
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def _round_up(value: float) -> float:
    """Return the next of 1, 1.2, 1.6, 2, 3, 4, 6, 8 times a power of ten: steps of it read well."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(power * step for step in (1, 1.2, 1.6, 2, 3, 4, 6, 8, 10) if power * step >= value)
