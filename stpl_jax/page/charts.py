"""Charts as SVG that stands in a page: its style sheet gives the colours, so that light and dark both suit."""

import dataclasses
import html
import math

# Units of the drawing, not pixels: the page scales it.
_WIDTH, _HEIGHT = 560, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 66, 34, 14, 60
# Numbers on the horizontal axis that stood closer would run into each other.
_LEAST_TICK_DISTANCE = 44


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
      name: what it shows.
      points: (x, y) in the order of x.
      style: class names that the page's style sheet knows.
      faint: points drawn thin behind the line, such as values before smoothing.
    """

    name: str
    points: tuple[tuple[float, float], ...]
    style: str
    faint: tuple[tuple[float, float], ...] = ()


def line_chart(lines, x_label, y_label, description, x_ticks=None, log_x=False):
    """Draws lines on common axes.

    Args:
      lines: `Line`s; those without points are left out.
      x_label, y_label: what the axes show, with units.
      description: what one who does not see the chart is told.
      x_ticks: values marked on the horizontal axis; None picks round ones.
      log_x: logarithmic horizontal axis; every x is above 0.

    Returns:
      `<svg>` as text; a chart without a point has axes alone.
    """
    points = [p for line in lines for p in (*line.points, *line.faint)]
    xs, ys = [p[0] for p in points] or [0, 1], [p[1] for p in points] or [0, 1]
    x_ticks = round_ticks(min(xs), max(xs), 6) if x_ticks is None else list(x_ticks)
    y_ticks = round_ticks(min(ys), max(ys), 5)
    scale = math.log if log_x else float
    across = _scale(scale(min(*xs, *x_ticks)), scale(max(*xs, *x_ticks)), _LEFT, _WIDTH - _RIGHT)
    down = _scale(y_ticks[0], y_ticks[-1], _HEIGHT - _BOTTOM, _TOP)

    parts = [
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{html.escape(description)}">',
        f"<title>{html.escape(description)}</title>",
    ]
    for value, text in zip(y_ticks, tick_texts(y_ticks), strict=True):
        y = down(value)
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>')
        parts.append(f'<text class="end" x="{_LEFT - 8}" y="{y:.1f}" dy=".34em">{text}</text>')
    bottom = _HEIGHT - _BOTTOM
    free = math.inf
    for value, text in reversed(list(zip(x_ticks, tick_texts(x_ticks), strict=True))):
        x = across(scale(value))
        parts.append(f'<path class="axis" d="M{x:.1f} {bottom}v5"/>')
        if x <= free:
            parts.append(f'<text class="middle" x="{x:.1f}" y="{bottom + 25}">{text}</text>')
            free = x - _LEAST_TICK_DISTANCE
    parts.append(f'<path class="axis" d="M{_LEFT} {bottom}H{_WIDTH - _RIGHT}"/>')
    parts.append(f'<text class="middle" x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{_HEIGHT - 7}">{x_label}</text>')
    middle = (_TOP + bottom) / 2
    parts.append(f'<text class="middle" transform="translate(15 {middle}) rotate(-90)">{y_label}</text>')

    def path(points):
        return "M" + "L".join(f"{across(scale(x)):.1f} {down(y):.1f}" for x, y in points)

    for line in lines:
        if len(line.faint) > 1:
            parts.append(f'<path class="faint {line.style}" d="{path(line.faint)}"/>')
    for line in lines:
        if len(line.points) > 1:
            parts.append(f'<path class="line {line.style}" d="{path(line.points)}"/>')
        # A long curve needs no marks, and one point has nothing else.
        for x, y in line.points if len(line.points) < 20 else ():
            place = f'cx="{across(scale(x)):.1f}" cy="{down(y):.1f}"'
            told = f"{html.escape(line.name)}, {x_label} {number(x)}: {number(y)}"
            parts.append(f'<circle class="dot {line.style}" {place} r="4"><title>{told}</title></circle>')
    return "".join([*parts, "</svg>"])


def scatter_chart(groups, description):
    """Draws points in a square without axes.

    Args:
      groups: (colour, [[x, y], ...]) with x and y from 0 to 1000; later ones lie above.
      description: what one who does not see the chart is told.

    Returns:
      `<svg>` as text.
    """
    # A round dot is a line without length: the shortest way to write it.
    paths = "".join(
        f'<path stroke="{colour}" d="{"".join(f"M{x} {1000 - y}h0" for x, y in points)}"/>'
        for colour, points in groups
        if points
    )
    told = html.escape(description)
    return (
        f'<svg class="scatter" viewBox="-20 -20 1040 1040" role="img" aria-label="{told}"><title>{told}</title>{paths}'
        "</svg>"
    )


def round_ticks(low, high, count):
    """Picks about `count` round values, 1, 2 or 5 times a power of ten apart, that reach from low or below to high."""
    if high <= low:
        low, high = low - 0.5, high + 0.5
    power = 10 ** math.floor(math.log10((high - low) / count))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor * count >= (high - low) * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def tick_texts(values):
    """Writes axis values with as many digits as their distance asks for."""
    gaps = [abs(b - a) for a, b in zip(values, values[1:], strict=False) if b != a]
    digits = max(0, -math.floor(math.log10(min(gaps)) + 1e-9)) if gaps else 2
    return [f"{value:.{digits}f}".replace("-", "−") if float(f"{value:.{digits}f}") else "0" for value in values]


def number(value):
    """A value in words for a reader: three digits that matter."""
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def smoothed(points, window):
    """Running mean over the last `window` values: [(x, y)] to [(x, y)]."""
    out, total = [], 0.0
    for i, (x, y) in enumerate(points):
        total += y - (points[i - window][1] if i >= window else 0)
        out.append((x, total / min(i + 1, window)))
    return tuple(out)


def thinned(points, most):
    """Leaves out points evenly until there are about `most`; the last stays."""
    step = max(1, -(-len(points) // most))
    return tuple(points[::step]) + (() if (len(points) - 1) % step == 0 else (points[-1],))


def _scale(low, high, start, end):
    span = high - low or 1
    return lambda value: start + (value - low) / span * (end - start)
