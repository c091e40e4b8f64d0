"""Lays out small charts, which the templates draw as SVG in the colours of the page.

chart = line_chart("accuracy", "Accuracy", "%", series, curves, scale=100)
chart.lines[0].path, chart.y_ticks, chart.hover
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from kresume.reports.page.curves import Curves, Epoch
from kresume.reports.page.headline import Change
from kresume.reports.page.shift import Measure

WIDTH, HEIGHT = 460, 240
LEFT, RIGHT, TOP, BOTTOM = 46, 58, 22, 30
ANCESTORS_SHARE = 0.36
"""Part of the width that earlier generations get."""
LABEL_GAP = 13
"""Smallest distance between two labels at the right edge, in units of the drawing."""
CHARACTER = 8.0
"""Width of a character, to judge if a name fits."""
SHORTEST_NAME = 4
BADGE = 16
"""Width of the number of a mark."""

Value = Callable[[Epoch], float | None]


@dataclass(frozen=True)
class Tick:
    """A mark on an axis: where, and its text."""

    at: float
    text: str


@dataclass(frozen=True)
class Line:
    """One curve.

    Attributes:
        key: names its colour.
        name: its label.
        path: of the run itself.
        earlier: paths of its ancestors, or of the run that it is compared with.
        dots: centres of its points, of the run itself.
        label_at: height of its label; None if the run has no value.
    """

    key: str
    name: str
    path: str
    earlier: tuple[str, ...]
    dots: tuple[tuple[float, float], ...]
    label_at: float | None


@dataclass(frozen=True)
class Hover:
    """The values at one epoch: where, the title and the value of each curve as text."""

    at: float
    title: str
    values: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True)
class ChartMark:
    """A vertical line with a number: where, its kind and number, and where the number is."""

    at: float
    kind: str
    number: int
    badge: float


@dataclass(frozen=True)
class Chart:
    """A line chart over the epochs."""

    key: str
    title: str
    about: str
    lines: tuple[Line, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    marks: tuple[ChartMark, ...]
    hover: tuple[Hover, ...]
    start: float
    zero: float | None = None


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Returns about `count` round numbers that span `low` to `high`."""
    span = max(high - low, 1e-12)
    raw = span / max(count - 1, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    span = (high - low) or 1.0
    return lambda value: round(start + (value - low) / span * (end - start), 1)


def x_scale(curves: Curves) -> Callable[[float], float]:
    """Returns the position of an epoch; earlier generations share the left part of the chart."""
    right = WIDTH - RIGHT
    last = max([1.0, *(epoch.at for epoch in (*curves.epochs, *curves.other))])
    if not curves.before:
        return _scale(0.0, last, LEFT, right)
    border = LEFT + ANCESTORS_SHARE * (right - LEFT)
    early, late = _scale(curves.before[0].start, 0.0, LEFT, border), _scale(0.0, last, border, right)
    return lambda at: early(at) if at < 0 else late(at)


def line_chart(
    key: str,
    title: str,
    curves: Curves,
    series: Mapping[str, tuple[str, Value]],
    show: Callable[[float], str],
    *,
    with_zero: bool = False,
) -> Chart | None:
    """Lays out one chart.

    Args:
        key: its name in the page.
        title: its heading.
        curves: the epochs.
        series: for each curve, by the name of its colour, a label and a function that returns its value.
        show: formats a value.
        with_zero: True keeps 0 in the scale, with a line.

    Returns:
        None if no curve has a value.
    """
    every = [*curves.epochs, *curves.other, *(epoch for stretch in curves.before for epoch in stretch.epochs)]
    values = [value for _, get in series.values() for epoch in every if (value := get(epoch)) is not None]
    if not values:
        return None
    low, high = min(values), max(values)
    low, high = (min(low, 0.0), max(high, 0.0)) if with_zero else (low, high)
    pad = 0.0 if high > low else abs(high) * 0.1 or 0.1
    ticks = nice_ticks(low - pad, high + pad)
    low, high = min(ticks[0], low), max(ticks[-1], high)
    across, up = x_scale(curves), _scale(low, high, HEIGHT - BOTTOM, TOP)

    def points(epochs: Sequence[Epoch], get: Value) -> list[tuple[float, float]]:
        return [(across(epoch.at), up(value)) for epoch in epochs if (value := get(epoch)) is not None]

    lines = []
    for name, (label, get) in series.items():
        own = points(curves.epochs, get)
        faint = [*(stretch.epochs for stretch in curves.before), curves.other]
        earlier = [_path(past) for epochs in faint if (past := points(epochs, get))]
        if own or earlier:
            lines.append(Line(name, label, _path(own), tuple(earlier), tuple(own), own[-1][1] if own else None))
    hover = [
        Hover(
            across(epoch.at),
            f"epoch {epoch.number}" if epoch.number else "before",
            tuple(
                (name, label, show(found)) for name, (label, get) in series.items() if (found := get(epoch)) is not None
            ),
        )
        for epoch in curves.epochs
    ]
    return Chart(
        key,
        title,
        _about(title, curves, series, show),
        tuple(_with_labels_apart(lines)),
        _x_ticks(curves, across),
        tuple(Tick(up(tick), show(tick)) for tick in ticks),
        _marks(curves, across),
        tuple(hover),
        across(0.0),
        up(0.0) if with_zero else None,
    )


def _marks(curves: Curves, across: Callable[[float], float]) -> tuple[ChartMark, ...]:
    """Places the marks; a number that would cover another one moves to the right."""
    found: list[ChartMark] = []
    for number, mark in enumerate(curves.marks, 1):
        at = across(mark.at)
        badge = max(at, found[-1].badge + BADGE) if found else at
        found.append(ChartMark(at, mark.kind, number, round(badge, 1)))
    return tuple(found)


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in points) if points else ""


def _with_labels_apart(lines: Sequence[Line]) -> list[Line]:
    """Moves labels at the right edge so that none covers another."""
    labelled = sorted((line for line in lines if line.label_at is not None), key=lambda line: line.label_at or 0.0)
    places: list[float] = []
    for line in labelled:
        wanted = line.label_at or 0.0
        places.append(max(wanted, places[-1] + LABEL_GAP) if places else wanted)
    over = max((places[-1] if places else 0.0) - (HEIGHT - BOTTOM), 0.0)
    for index in range(len(places) - 1, -1, -1):  # from below, pushed up as far as needed
        most = places[index + 1] - LABEL_GAP if index + 1 < len(places) else places[index] - over
        places[index] = min(places[index], most)
    moved = {line.key: place for line, place in zip(labelled, places, strict=True)}
    return [Line(line.key, line.name, line.path, line.earlier, line.dots, moved.get(line.key)) for line in lines]


def _x_ticks(curves: Curves, across: Callable[[float], float]) -> tuple[Tick, ...]:
    last = max((epoch.number for epoch in (*curves.epochs, *curves.other)), default=0)
    step = max(1, math.ceil(last / (5 if curves.before else 8)))
    ticks = [Tick(across(float(number)), str(number)) for number in range(0, last + 1, step)]
    for stretch in curves.before:
        start, end = across(stretch.start), across(stretch.start + len(stretch.epochs) - 1e-6)
        room = int((end - start - 14) / CHARACTER)
        if room >= SHORTEST_NAME or room >= len(stretch.name):
            ticks.append(Tick(round((start + end) / 2, 1), shorten(stretch.name, room)))
    return tuple(ticks)


def shorten(text: str, most: int) -> str:
    """Cuts a text to a number of characters, with an ellipsis in the middle."""
    if len(text) <= most:
        return text
    head = (most - 1) * 2 // 3
    return f"{text[:head]}…{text[len(text) - (most - 1 - head) :]}"


def _about(title: str, curves: Curves, series: Mapping[str, tuple[str, Value]], show: Callable[[float], str]) -> str:
    """Returns the chart in words: first and last value of each curve."""
    parts = []
    for label, get in series.values():
        values = [found for epoch in curves.epochs if (found := get(epoch)) is not None]
        if values:
            parts.append(f"{label} from {show(values[0])} to {show(values[-1])}")
    return f"{title} over {max(len(curves.epochs), 1)} points: {'; '.join(parts)}"


def charts_of(curves: Curves) -> tuple[Chart, ...]:
    """Returns the charts of a run: accuracy, loss, gap and rate; none without epochs."""
    if not curves.epochs:
        return ()

    def metric(field: str, name: str) -> Value:
        return lambda epoch: getattr(epoch, field).get(name)

    def gap(name: str) -> Value:
        def value(epoch: Epoch) -> float | None:
            train, other = epoch.accuracy.get("train"), epoch.accuracy.get(name)
            return None if train is None or other is None else train - other

        return value

    shown = ("train", *curves.sets)
    accuracy = {name: (name, metric("accuracy", name)) for name in shown}
    loss = {name: (name, metric("loss", name)) for name in shown}
    charts = (
        line_chart("accuracy", "Accuracy", curves, accuracy, lambda value: f"{100 * value:.4g} %"),
        line_chart("loss", "Loss", curves, loss, lambda value: f"{value:.3g}"),
        line_chart(
            "gap",
            "Gap: training minus validation accuracy, in points",
            curves,
            {name: (name, gap(name)) for name in curves.sets},
            lambda value: f"{100 * value:+.3g}" if value else "0",
            with_zero=True,
        ),
        line_chart(
            "rate",
            "Learning rate at the end of each epoch",
            curves,
            {"rate": ("rate", lambda epoch: epoch.rate)},
            "{:.3g}".format,
        ),
    )
    return tuple(chart for chart in charts if chart is not None)


@dataclass(frozen=True)
class Bars:
    """Two overlaid histograms as paths, in a drawing of `width` by `height`."""

    old: str
    new: str
    low: str
    high: str
    old_median: float
    new_median: float


BARS_WIDTH, BARS_HEIGHT = 240, 84


def histogram(measure: Measure) -> Bars:
    """Lays out the histograms of a measure."""
    most = max((*measure.old, *measure.new, 1e-9))
    across = _scale(measure.edges[0], measure.edges[-1], 0, BARS_WIDTH)
    up = _scale(0.0, most, BARS_HEIGHT, 4)

    def steps(shares: Sequence[float]) -> str:
        corners = [f"M0 {BARS_HEIGHT}"]
        for index, share in enumerate(shares):
            corners.append(f"V{up(share):g}H{across(measure.edges[index + 1]):g}")
        return "".join([*corners, f"V{BARS_HEIGHT}Z"])

    ends = [f"{value:,.{measure.digits}f}{measure.unit}" for value in (measure.edges[0], measure.edges[-1])]
    old, new = (min(max(across(value), 0), BARS_WIDTH) for value in measure.medians)
    return Bars(steps(measure.old), steps(measure.new), ends[0], ends[1], old, new)


@dataclass(frozen=True)
class Whisker:
    """The interval of a difference, in percent of the width of an axis that all sets share."""

    zero: float
    low: float
    middle: float
    high: float


def whiskers(changes: Sequence[Change]) -> dict[str, Whisker]:
    """Lays out the intervals of the differences on one axis."""
    known = {change.name: change.verdict for change in changes if change.verdict is not None and change.images}
    ends = [end for verdict in known.values() for end in (verdict.low, verdict.high, 0.0)]
    if not ends:
        return {}
    low, high = min(ends), max(ends)
    pad = (high - low) * 0.06 or 0.01
    at = _scale(low - pad, high + pad, 0, 100)
    return {
        name: Whisker(at(0.0), at(verdict.low), at(verdict.difference), at(verdict.high))
        for name, verdict in known.items()
    }
