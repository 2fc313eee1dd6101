"""Charts as inline SVG: curves, points and fronts with axes and legend, and intervals for tables.

A chart is a string of HTML that needs no script and no file. Its colours are CSS variables (`--s0` ... `--s7` for
series, `--ink`, `--quiet`, `--hair`) which `fusion/common/html.css` defines for both colour schemes.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 560, 250
LEFT, RIGHT, TOP, BOTTOM = 46, 8, 8, 24  # room around the plot, in the units of WIDTH
COLOURS = 8
DENSE = 60  # points from which a curve is drawn smoothed, over its own faint trace

Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """One curve: its name in the legend and its points, x ascending. Points that are not finite are left out."""

    name: str
    points: Sequence[Point]


def compact(value: float) -> str:
    """A number in at most about five characters: 0.0123, 4.5, 12k, 3.2M."""
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{suffix}"
    if value and abs(value) < 1e-3:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    return f"{value:.3g}"


def ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten) inside [low, high], about `count` of them."""
    raw = (high - low) / count
    power = 10 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten inside [low, high], with 2 and 5 between them where there is room."""
    digits = (1, 2, 5) if high / low < 200 else (1,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    inside = [d * 10.0**p for p in powers for d in digits if low * 0.999 <= d * 10.0**p <= high * 1.001]
    return inside[:: max(1, math.ceil(len(inside) / 8))]


@dataclass(frozen=True)
class _Scale:
    """Maps one axis to the drawing: values low..high to start..end, evenly or by logarithm."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        warp: Callable = math.log if self.log else float
        share = (warp(value) - warp(self.low)) / (warp(self.high) - warp(self.low))
        return self.start + share * (self.end - self.start)

    def ticks(self, count: int) -> list[float]:
        """Where to write numbers; a logarithmic axis too short for round powers is marked like an even one."""
        powers = log_ticks(self.low, self.high) if self.log else []
        return powers if len(powers) > 1 else ticks(self.low, self.high, count)


def _y_scale(values: list[float], log: bool, zero: bool) -> _Scale:
    low, high = min(values), max(values)
    if zero:
        low = min(low, 0.0)
    if log:
        margin = max(high / low, 1.2) ** 0.05
        low, high = low / margin, high * margin
    else:
        margin = (high - low or abs(high) or 1.0) * 0.06
        low, high = (low if zero and low == 0 else low - margin), high + margin
    return _Scale(low, high, HEIGHT - BOTTOM, TOP, log)


def smooth(points: Sequence[Point], buckets: int = 140) -> list[Point]:
    """A moving average over a twenty-fifth of the points, at no more than `buckets` places; it begins and ends half a
    window inside."""
    reach = max(1, len(points) // 50)
    places = range(reach // 2, len(points) - reach // 2, max(1, len(points) // buckets))
    windows = [points[max(0, i - reach) : i + reach + 1] for i in (*places, len(points) - 1)]
    return [(sum(x for x, _ in window) / len(window), sum(y for _, y in window) / len(window)) for window in windows]


def thin(points: Sequence[Point], most: int = 500) -> list[Point]:
    """At most about `most` of the points, evenly chosen, the last among them."""
    stride = math.ceil(len(points) / most)
    return [*points[:-1:stride], points[-1]]


def _path(points: Sequence[Point], x: _Scale, y: _Scale, style: str) -> str:
    places = " L".join(f"{x(a):.1f} {y(b):.1f}" for a, b in points)
    return f'<path class="{style}" d="M{places}"/>'


def _curve(line: Line, colour: str, x: _Scale, y: _Scale, noisy: bool) -> str:
    if len(line.points) >= DENSE:
        trace = _path(thin(line.points), x, y, "trace" if noisy else "curve")
        body = trace + (_path(smooth(line.points), x, y, "curve") if noisy else "")
    else:
        dots = "".join(
            f'<circle class="dot" cx="{x(a):.1f}" cy="{y(b):.1f}" r="2.2"><title>{escape(line.name)} {compact(b)} at '
            f"{compact(a)}</title></circle>"
            for a, b in line.points
        )
        body = _path(line.points, x, y, "curve") + (dots if len(line.points) <= DENSE // 2 else "")
    return f'<g style="--c:{colour}">{body}</g>'


def _axes(x: _Scale, y: _Scale, x_label: str) -> str:
    parts = []
    for value in y.ticks(5):
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y(value) + 3.6:.1f}" text-anchor="end">{compact(value)}</text>')
    labelled = WIDTH - RIGHT - 6 * len(x_label) - 10
    for value in filter(float.is_integer, map(float, x.ticks(7))):
        anchor = "start" if x(value) < LEFT + 4 else "middle"
        if x(value) < labelled:  # the axis' name stands at its end
            parts.append(f'<text x="{x(value):.1f}" y="{HEIGHT - 7}" text-anchor="{anchor}">{compact(value)}</text>')
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 7}" text-anchor="end" class="name">{escape(x_label)}</text>')
    return "".join(parts)


def colours(count: int, ramp: bool = False) -> list[str]:
    """CSS colours for the series of a chart: distinct ones, or an even ramp where their order means something."""
    if not ramp:
        return [f"var(--s{i % COLOURS})" for i in range(count)]
    shares = [round(100 * i / max(1, count - 1)) for i in range(count)]
    return [f"color-mix(in oklab, var(--ramp-end) {share}%, var(--ramp-start))" for share in shares]


def _legend(lines: Sequence[Line], palette: Sequence[str], noisy: bool) -> str:
    """Names and last values (of the smoothed curve, where one is drawn)."""
    parts = []
    for line, colour in zip(lines, palette):
        points = smooth(line.points) if noisy and len(line.points) >= DENSE else line.points
        parts.append(f'<span style="--c:{colour}"><i></i>{escape(line.name)} <b>{compact(points[-1][1])}</b></span>')
    return "".join(parts)


def chart(
    title: str,
    lines: Sequence[Line],
    x_label: str,
    unit: str = "",
    log: bool = False,
    zero: bool = False,
    ramp: bool = False,
    noisy: bool = True,
) -> str:
    """Curves over a common x axis, as an HTML figure.

    The legend gives each curve's last value. unit: what the numbers are, after the title. log: logarithmic y axis,
    where all values are positive. zero: the y axis begins at 0. ramp: colours in an even ramp, for curves whose order
    means something. noisy: smooth a curve of many points. Raises ValueError if there is no point to draw.
    """
    finite = [Line(line.name, [p for p in line.points if all(map(math.isfinite, p))]) for line in lines]
    finite = [line for line in finite if line.points]
    if not finite:
        raise ValueError(f"chart {title!r} has no finite point to draw")
    across = [x for line in finite for x, _ in line.points]
    values = [y for line in finite for _, y in line.points]
    x = _Scale(min(across), max(across) if max(across) > min(across) else min(across) + 1, LEFT, WIDTH - RIGHT)
    y = _y_scale(values, log and min(values) > 0, zero)
    palette = colours(len(finite), ramp)
    curves = "".join(_curve(line, colour, x, y, noisy) for line, colour in zip(finite, palette))
    caption = f"<b>{escape(title)}</b>" + (f" <small>{escape(unit)}</small>" if unit else "")
    return (
        f'<figure class="chart"><figcaption>{caption}<span '
        f'class="legend">{_legend(finite, palette, noisy)}</span></figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(title)}">{_axes(x, y, x_label)}{curves}</svg></figure>'
    )


def side_by_side(*charts: str) -> str:
    """Charts in columns, as many as there is room for."""
    return f'<div class="charts">{"".join(charts)}</div>'


@dataclass(frozen=True)
class Dots:
    """Points of one kind: their name in the legend, each point with what is said of it when it is pointed at, and
    whether they stand back."""

    name: str
    points: Sequence[tuple[float, float, str]]
    faint: bool = False


def scatter(
    title: str, groups: Sequence[Dots], x_label: str, front: Sequence[Point] = (), marks: Mapping[str, Point] = {}
) -> str:
    """Points over a logarithmic x axis, as an HTML figure. front: points, x ascending, joined by steps: the best up to
    each x, of the first group. marks: places with a ring and a name. Raises ValueError if there is no point, or an x
    that is not positive."""
    across, values = (
        [x for dots in groups for x, _, _ in dots.points],
        [y for dots in groups for _, y, _ in dots.points],
    )
    if not across or min(across) <= 0:
        raise ValueError(
            f"chart {title!r} has no point to draw, or one at {min(across, default=0)} of a logarithmic axis"
        )
    x = _Scale(min(across) / 1.1, max(across) * 1.1, LEFT, WIDTH - RIGHT, log=True)
    y = _y_scale([*values, max(values) + 0.1 * (max(values) - min(values))], log=False, zero=False)  # room for names
    palette = colours(len(groups))
    dots = "".join(_dots(group, colour, x, y) for group, colour in zip(groups, palette))
    legend = "".join(
        f'<span style="--c:{colour}"><i></i>{escape(group.name)}</span>' for group, colour in zip(groups, palette)
    )
    steps = _steps(front, x, y, palette[0]) if front else ""
    return (
        f'<figure class="chart"><figcaption><b>{escape(title)}</b><span class="legend">{legend}</span></figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(title)}">{_axes(x, y, x_label)}{steps}{dots}{_marks(marks, x, y)}'
        "</svg></figure>"
    )


def _dots(group: Dots, colour: str, x: _Scale, y: _Scale) -> str:
    circles = "".join(
        f'<circle class="dot" cx="{x(a):.1f}" cy="{y(b):.1f}" '
        f'r="{2 if group.faint else 3.2}"><title>{escape(said)}</title></circle>'
        for a, b, said in group.points
    )
    return f'<g class="{"faint" if group.faint else "plain"}" style="--c:{colour}">{circles}</g>'


def _steps(front: Sequence[Point], x: _Scale, y: _Scale, colour: str) -> str:
    (first, level), *rest = front
    path = f"M{x(first):.1f} {y(level):.1f}" + "".join(f" H{x(a):.1f} V{y(b):.1f}" for a, b in rest) + f" H{x.end}"
    return f'<g style="--c:{colour}"><path class="curve" d="{path}"/></g>'


def _marks(marks: Mapping[str, Point], x: _Scale, y: _Scale) -> str:
    """Rings with the names of all that stand at one place over them."""
    places: dict[Point, list[str]] = {}
    for name, point in marks.items():
        places.setdefault(point, []).append(name)
    parts = []
    for (a, b), names in places.items():
        anchor = "end" if x(a) > WIDTH - 60 else "middle"
        parts.append(f'<circle class="ring" cx="{x(a):.1f}" cy="{y(b):.1f}" r="6.5"/>')
        parts.append(
            f'<text class="mark" x="{x(a):.1f}" y="{y(b) - 11:.1f}" '
            f'text-anchor="{anchor}">{escape(", ".join(names))}</text>'
        )
    return "".join(parts)


def interval(value: float, low: float, high: float, target: float | None = None, top: float = 1.0) -> str:
    """A score between 0 and `top` as a small bar with its confidence interval and, if there is one, its target."""
    x = _Scale(0.0, top, 1.0, 159.0)
    low, value, high = (min(max(v, 0.0), top) for v in (low, value, high))
    mark = "" if target is None else f'<line class="target" x1="{x(target):.1f}" x2="{x(target):.1f}" y1="1" y2="15"/>'
    return (
        '<svg class="interval" viewBox="0 0 160 16" aria-hidden="true"><line class="rail" x1="1" x2="159" y1="8" '
        'y2="8"/>'
        f'{mark}<line class="range" x1="{x(low):.1f}" x2="{x(high):.1f}" y1="8" y2="8"/>'
        f'<circle class="value" cx="{x(value):.1f}" cy="8" r="4"/></svg>'
    )
