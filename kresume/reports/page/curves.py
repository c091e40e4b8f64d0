"""Collects the curves of a run and of its ancestors, with what happened on the way.

curves = curves_of(source)
curves.epochs[-1].accuracy["old"]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from kresume import runs
from kresume.reports.page.source import Source
from kresume.spelling import counted, in_percent
from kresume.values.record import RunRecord

MOST_ANCESTORS = 6
"""Generations that are drawn before the run."""


@dataclass(frozen=True)
class Epoch:
    """The end of one epoch; `number` 0 is the parent, before the first step.

    Attributes:
        number: counted from 1 in its run.
        at: where it is drawn: 0 is where this run began, ancestors lie to the left.
        step: steps of its run.
        rate: the learning rate at its last step; None if unknown.
        accuracy: on `train`, `old`, `new` and `all` images, where known.
        loss: likewise.
        seconds_per_image: training time; None if unknown.
    """

    number: int
    at: float
    step: int
    rate: float | None
    accuracy: Mapping[str, float]
    loss: Mapping[str, float]
    seconds_per_image: float | None = None


@dataclass(frozen=True)
class Mark:
    """Something that happened at a point of the curves.

    Attributes:
        at: where, in epochs of this run.
        kind: `origin` (images came in), `interruption`, `result` or `trouble`.
        text: what, in words.
    """

    at: float
    kind: Literal["origin", "interruption", "result", "trouble"]
    text: str


@dataclass(frozen=True)
class Stretch:
    """An ancestor's part of the curves: its name, beginning, epochs, and images that it added."""

    name: str
    start: float
    epochs: tuple[Epoch, ...]
    images: int


@dataclass(frozen=True)
class Curves:
    """The curves of a run.

    Attributes:
        epochs: those of the run, the parent first if it was scored.
        before: those of its ancestors, the oldest first; empty if it is compared with another run.
        marks: what happened, by place.
        sets: the sets of images that have curves.
        other: the epochs of the run that it is compared with.
    """

    epochs: tuple[Epoch, ...]
    before: tuple[Stretch, ...] = ()
    marks: tuple[Mark, ...] = ()
    sets: tuple[str, ...] = ("all",)
    other: tuple[Epoch, ...] = ()


def curves_of(source: Source) -> Curves:
    """Returns the curves of a run and of its ancestors."""
    epochs = [_epoch(line, float(line["epoch"])) for line in source.lines]
    start = source.run.record.before
    if start is not None and epochs:
        epochs.insert(0, Epoch(0, 0.0, 0, None, _values(start, "accuracy"), _values(start, "loss")))
    both = any("old" in epoch.accuracy and "new" in epoch.accuracy for epoch in epochs)
    stretches = _stretches(source) if source.other is None else ()
    other = runs.read_metrics(source.other.metrics) if source.other is not None else []
    return Curves(
        tuple(epochs),
        stretches,
        tuple(sorted([*_origins(source, stretches), *_events(source), *_result(source)], key=lambda mark: mark.at)),
        ("old", "new", "all") if both else ("all",),
        tuple(_epoch(line, float(line["epoch"])) for line in other),
    )


def _epoch(line: Mapping[str, Any], at: float) -> Epoch:
    accuracy, loss = _values(line, "accuracy"), _values(line, "loss")
    for values, name in ((accuracy, "accuracy"), (loss, "loss")):
        if isinstance(line.get(name), int | float) and np.isfinite(line[name]):
            values["train"] = float(line[name])
    speed = line.get("images_per_second")
    rate = line.get("lr")
    return Epoch(
        int(line["epoch"]),
        at,
        int(line["step"]),
        None if rate is None else float(rate),
        accuracy,
        loss,
        1 / speed if speed else None,
    )


def _values(scores: Mapping[str, Any], metric: str) -> dict[str, float]:
    split = all((scores.get(name) or {}).get("images") for name in ("old", "new"))
    names = ("old", "new", "all") if split else ("all",)  # else they are the same images as all
    found = {name: (scores.get(name) or {}).get(metric) for name in names}
    return {name: float(value) for name, value in found.items() if value is not None and np.isfinite(value)}


def _stretches(source: Source) -> tuple[Stretch, ...]:
    """Returns the epochs of the ancestors, each before that of its child."""
    found: list[Stretch] = []
    end = 0.0
    for run in source.ancestors[:MOST_ANCESTORS]:
        lines = runs.read_metrics(run.metrics)
        result = run.result_step()
        lines = [line for line in lines if result is None or line["step"] <= result]
        if not lines:
            break
        start = end - len(lines)
        epochs = tuple(_epoch(line, start + line["epoch"]) for line in lines)
        found.insert(0, Stretch(run.path.name, start, epochs, _brought(run.record)))
        end = start
    return tuple(found)


def _brought(record: RunRecord) -> int:
    """Returns how many images came in with a run: all of them unless it has a run as parent."""
    counts = record.images
    extends = record.parent is not None and record.parent.format == "run"
    return int(counts["added"] if extends and "added" in counts else counts.get("total", 0))


def _origins(source: Source, stretches: Sequence[Stretch]) -> list[Mark]:
    """Returns where images came in: at the start of each generation, and while `--watch` looked for more."""
    marks = []
    added = int(source.run.record.images.get("added", 0))
    arrived = 0
    for event in source.run.events("images changed"):
        count, gone = int(event.get("arrived") or 0), len(event.get("left") or ())
        arrived += count
        words = [f"{counted(count, 'image')} came in"] * bool(count) + [f"{gone:,} left"] * bool(gone)
        if words:
            marks.append(Mark(float(event["epoch"]) - 1, "origin", f"epoch {event['epoch']}: {', '.join(words)}"))
    if source.generation and added > arrived:
        marks.append(Mark(0.0, "origin", f"{counted(added - arrived, 'new image', 'comes', 'come')} in"))
    for stretch in stretches:
        if stretch.images:
            marks.append(
                Mark(stretch.start, "origin", f"{stretch.name}: {counted(stretch.images, 'image', 'comes', 'come')} in")
            )
    return marks


def _events(source: Source) -> list[Mark]:
    """Returns interruptions and troubles, where they happened."""
    marks: list[Mark] = []
    why = "the process ended without a word (killed, or the machine went down)"
    for event in source.run.events():
        kind = event.get("event")
        if kind in {"stopped", "failed", "died in native code"}:
            reason = str(event.get("reason", ""))
            why = reason if reason.startswith(str(kind)) else f"{kind}: {reason}".strip(": ")
        elif kind == "continued":
            step = int(event.get("step") or 0)
            at = epoch_at(source.lines, step)
            marks.append(Mark(at, "interruption", f"interrupted, continued at step {step:,}: {why}"))
            why = "the process ended without a word (killed, or the machine went down)"
        elif kind == "continued elsewhere" and marks:
            last = marks[-1]
            changes = ", ".join(map(str, event.get("changes") or ()))
            marks.append(Mark(last.at, "trouble", f"continued elsewhere: {changes}"))
        elif kind in {"snapshot damaged", "not written"}:
            marks.append(Mark(0.0, "trouble", f"{kind}: {event.get('reason', '')}"))
    return marks


def epoch_at(lines: Sequence[Mapping[str, Any]], step: int) -> float:
    """Returns how many epochs were done at a step, with the part of the one that was under way."""
    ends = [0, *(int(line["step"]) for line in lines)]
    return float(np.interp(step, ends, np.arange(len(ends)))) if len(ends) > 1 else 0.0


def _result(source: Source) -> list[Mark]:
    for line in source.lines:
        if line["step"] == source.step:
            which = "the best epoch by the monitor" if source.run.best_step() == source.step else "the last epoch"
            result = source.run.record.result
            share = result.average if result is not None else 0.0
            mixed = (
                f", averaged with {in_percent(share)} of the checkpoint's weights (the curves are without)"
                if share
                else ""
            )
            return [Mark(float(line["epoch"]), "result", f"result: epoch {line['epoch']}, {which}{mixed}")]
    return []
