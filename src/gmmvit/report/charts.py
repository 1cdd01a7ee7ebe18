"""Line charts as inline SVG in the page's colours."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 460, 270
LEFT, RIGHT, TOP, BOTTOM = 52, 20, 12, 42  # margins around the plot for axis labels
COLOURS = 6  # line colours in the style sheet; further lines repeat them dashed


@dataclass(frozen=True)
class Line:
    """A named line through (x, y) points over a band of (x, low, high); non-finite points are left out."""

    label: str
    points: Sequence[tuple[float, float]]
    band: Sequence[tuple[float, float, float]] = ()

    def finite(self) -> list[tuple[float, float]]:
        return [(x, y) for x, y in self.points if math.isfinite(y)]


def nice_ticks(low: float, high: float, count: int = 5, whole: bool = False) -> list[float]:
    """About `count` round values (steps 1, 2 or 5 times a power of ten) whose ends enclose low..high."""
    span = high - low if high > low else max(abs(high), 1e-9) * 0.1
    rough = span / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(factor for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    if whole:
        step = max(1.0, round(step))
    first = math.floor(low / step + 1e-9)
    last = max(first + 1, math.ceil(high / step - 1e-9))
    return [round(index * step, 12) for index in range(first, last + 1)]


def _number(value: float, percent: bool, step: float) -> str:
    if percent:
        return f"{value * 100:.{0 if step >= 0.0099 else 1 if step >= 0.00099 else 2}f}%"
    return f"{value:g}" if step < 1e-3 else f"{value:.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"


def _axes(
    x_ticks: list[float], y_ticks: list[float], percent: bool, place_x: float, place_y: float, below: str = "epoch"
) -> list[str]:
    """Grid lines and labels; `place_x` and `place_y` are pixels per unit, `below` is the x axis label."""
    parts = []
    step = y_ticks[1] - y_ticks[0]
    for value in y_ticks:
        y = HEIGHT - BOTTOM - (value - y_ticks[0]) * place_y
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        label = _number(value, percent, step)
        parts.append(f'<text x="{LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
    for value in x_ticks:
        x = LEFT + (value - x_ticks[0]) * place_x
        label = f"{value:g}" if below == "epoch" else f"{value:.0%}"
        parts.append(f'<path class="tick" d="M{x:.1f} {HEIGHT - BOTTOM}v5"/>')
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 19}" text-anchor="middle">{label}</text>')
    parts.append(f'<path class="axis" d="M{LEFT} {HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>')
    parts.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{below}</text>')
    return parts


def line_style(index: int) -> str:
    """The CSS classes of a line by its number."""
    return f"s{index % COLOURS}" + (" dashed" if index // COLOURS % 2 else "")


def _legend(lines: Sequence[Line]) -> str:
    keys = "".join(
        f'<li><svg viewBox="0 0 22 8" width="22" height="8" aria-hidden="true"><path class="line {line_style(i)}" '
        f'd="M1 4H21"/></svg>{escape(line.label)}</li>'
        for i, line in enumerate(lines)
    )
    return f'<ul class="legend">{keys}</ul>'


def line_chart(title: str, lines: Sequence[Line], *, percent: bool = False) -> str:
    """A chart over epochs with axes, a legend and a tooltip for every point.

    `percent` shows fractions as percentages. Lines without a finite point stay in the legend; if no line has one, a
    sentence replaces the chart.
    """
    points = [point for line in lines for point in line.finite()]
    heading = f"<figcaption>{escape(title)}</figcaption>"
    if not points:
        return f'<figure class="chart">{heading}<p class="note">No values were recorded.</p></figure>'
    x_low, x_high = min(x for x, _ in points), max(x for x, _ in points)
    x_ticks = [x_low, *(tick for tick in nice_ticks(x_low, x_high, 6, whole=True) if x_low < tick <= x_high)]
    heights = [y for _, y in points] + [y for line in lines for _, *ends in line.band for y in ends]
    y_ticks = nice_ticks(min(heights), max(heights))
    if percent:
        y_ticks = [tick for tick in y_ticks if -1e-9 <= tick <= 1 + 1e-9] if len(y_ticks) > 2 else y_ticks
    plot_width, plot_height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    place_x = plot_width / max(x_high - x_low, 1)
    place_y = plot_height / (y_ticks[-1] - y_ticks[0])
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">']
    parts += _axes(x_ticks, y_ticks, percent, place_x, place_y)

    def place(x: float, y: float) -> tuple[float, float]:
        return LEFT + (x - x_low) * place_x, HEIGHT - BOTTOM - (y - y_ticks[0]) * place_y

    visible = "point" if len(points) <= 40 * len(lines) else "point faint"
    for index, line in enumerate(lines):
        drawn = [place(x, y) for x, y in line.finite()]
        style = line_style(index)
        if line.band:
            ends = [(x, low) for x, low, _ in line.band] + [(x, high) for x, _, high in reversed(line.band)]
            outline = "L".join(f"{place(x, y)[0]:.1f} {place(x, y)[1]:.1f}" for x, y in ends)
            parts.append(f'<path class="band {style}" d="M{outline}Z"/>')
        parts.append(f'<polyline class="line {style}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in drawn)}"/>')
        for (x, y), (epoch, value) in zip(drawn, line.finite(), strict=True):
            shown = f"{value:.2%}" if percent else f"{value:.4g}"
            parts.append(
                f'<circle class="{visible} {style}" cx="{x:.1f}" cy="{y:.1f}" r="3">'
                f"<title>{escape(line.label)}, epoch {epoch:g}: {shown}</title></circle>"
            )
    return f'<figure class="chart">{heading}{_legend(lines)}{"".join(parts)}</svg></figure>'


def reliability_chart(title: str, points: Sequence[tuple[float, float, float, float, int]]) -> str:
    """Accuracy over confidence, both from 0 to 1, with the diagonal where they agree.

    A point is (confidence, accuracy, low and high end of the accuracy's interval, images); its area shows the number of
    images.
    """
    ticks = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    place_x, place_y = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    floor, most = HEIGHT - BOTTOM, max(images for *_, images in points)
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">']
    parts += _axes(ticks, ticks, True, place_x, place_y, "confidence")
    parts.append(f'<path class="axis dashed line" d="M{LEFT} {floor}L{WIDTH - RIGHT} {TOP}"/>')
    for confidence, accuracy, low, high, images in points:
        x, y = LEFT + confidence * place_x, floor - accuracy * place_y
        text = f"confidence {confidence:.1%}, accuracy {accuracy:.1%} ({low:.1%} to {high:.1%}), {images:,} images"
        parts.append(
            f'<path class="line s0" d="M{x:.1f} {floor - low * place_y:.1f}V{floor - high * place_y:.1f}"/>'
            f'<circle class="point s0" cx="{x:.1f}" cy="{y:.1f}" r="{2 + 6 * (images / most) ** 0.5:.1f}">'
            f"<title>{text}</title></circle>"
        )
    return f'<figure class="chart"><figcaption>{escape(title)}</figcaption>{"".join(parts)}</svg></figure>'
