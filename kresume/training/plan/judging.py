"""Checks before the first step that a run can be judged by `--monitor`, `--until` and the gates.

check_judging(config, parent, classes)                              # the names of metrics
check_measurable(config, parent, manifest, generation=2)            # images to measure them on
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from kresume.errors import UsageError
from kresume.evaluation.gates import Gates, check_metric, metrics_of, parse_conditions
from kresume.evaluation.verdict import FEWEST
from kresume.images.manifest import Manifest
from kresume.options.resolve import average_of
from kresume.options.settings import DEFAULTS
from kresume.options.table import TrainConfig
from kresume.spelling import counted, option
from kresume.training.plan.parent import Parent

OF_TRAINING = ("loss", "accuracy")
"""Metrics that are averages of an epoch over its training images."""
NOISE = 98.0
"""Half the width of a 95 % interval of an accuracy near 50 %, for one image, in points; more images divide it by their root."""


def gates_of(config: TrainConfig) -> Gates:
    """Returns the gates of a run."""
    return Gates.of(config.require, config.max_forgetting, config.max_class_drop)


def check_judging(config: TrainConfig, parent: Parent | None, classes: Sequence[str]) -> None:
    """Checks that a run has every metric that the options name.

    Args:
        config: the options.
        parent: the checkpoint; None for a new model.
        classes: the class names of the run.

    Raises:
        UsageError: no run has such a metric, a condition has no meaning, or there is no parent to compare with.
    """
    if config.monitor is not None:
        if config.monitor not in metrics_of(classes, epoch=True):
            _check_measured(config.monitor, config.metric or ())
        check_metric(config.monitor, classes, option("monitor", config.monitor), epoch=True)
    for name, given, _ in _conditions(config):
        check_metric(name, classes, given)
    gates = gates_of(config)
    if gates.compares and (parent is None or config.new_head):
        flag = "max-forgetting" if config.max_forgetting is not None else "max-class-drop"
        what = "a new head knows none of its classes" if config.new_head else "a new model has none"
        raise UsageError(f"{option(flag)} compares with the checkpoint of {option('from')}, and {what}")


def _check_measured(monitor: str, metrics: Sequence[str]) -> None:
    """Raises UsageError if a metric of `--metric` is monitored: it is not computed on validation images."""
    for name in metrics:
        if _spelled_alike(name) == _spelled_alike(monitor.removeprefix("val_")):
            raise UsageError(
                f"{option('monitor', monitor)}: {option('metric', name)} is logged for the images of training, which say "
                "nothing about others: monitor val_loss, val_accuracy or all.f1, for example; kresume eval computes it on any"
                " images"
            )


def _spelled_alike(name: str) -> str:
    return name.lower().replace("_", "")


def _conditions(config: TrainConfig) -> Iterator[tuple[str, str, bool]]:
    """Yields each metric of a condition, the option that names it, and True if it is a gate."""
    for flag, texts in (("require", config.require or ()), ("until", (config.until,) if config.until else ())):
        for text in texts:
            for condition in parse_conditions(text, flag):
                yield condition.metric, option(flag, text), flag == "require"


def check_measurable(config: TrainConfig, parent: Parent | None, manifest: Manifest, generation: int) -> None:
    """Checks that there are validation images for all that judges a run.

    Args:
        config: the options.
        parent: the checkpoint; None for a new model.
        manifest: the images.
        generation: that of the run.

    Raises:
        UsageError: there are none, or those for a gate on old images were trained on.
    """
    rows = manifest.val_rows()
    old = rows[manifest.origins[rows] < generation]
    counts = {"old": len(old), "new": len(rows) - len(old), "all": len(rows)}
    by_class = np.bincount(manifest.labels[rows], minlength=len(manifest.classes))
    named = [*_conditions(config)]
    if config.max_forgetting is not None:
        named.append(("old.accuracy", option("max-forgetting", config.max_forgetting), True))
    if config.max_class_drop is not None:
        named.append(("all.accuracy", option("max-class-drop", config.max_class_drop), True))
    named += _judges(config)
    for name, given, is_gate in named:
        subset, _, rest = name.partition(".")
        each = rest.rpartition(".")[0]
        count = (
            int(by_class[manifest.classes.index(each)]) if each in manifest.classes else counts.get(subset, len(rows))
        )
        if not count:
            raise UsageError(
                f"{given}: there are no validation images to measure {name} on: give {option('val', 'PATH')} or "
                f"{option('val-split', 0.1)} (for new images {option('add')}), or another condition (a run's conditions hold "
                "for its children until they give others)"
            )
        if is_gate and subset == "old" and parent is not None and parent.run is None and manifest.seen[old].any():
            raise UsageError(
                f"{given}: {config.from_} was probably trained on {int(manifest.seen[old].sum()):,} of the {len(old):,} old "
                f"validation images, so they cannot show what it forgets: give images that it has not seen with "
                f"{option('val')}, or {option('val-like', 'keras:F:SEED')}"
            )


def chooser(config: TrainConfig) -> str:
    """Returns the metric of the validation images by which `--average auto` chooses."""
    name = config.monitor or DEFAULTS.monitor
    return DEFAULTS.monitor if name in OF_TRAINING else name


def _judges(config: TrainConfig) -> Iterator[tuple[str, str, bool]]:
    """Yields what chooses the result, ends the run or lowers the rate, as `_conditions` does."""
    monitored = config.monitor or DEFAULTS.monitor
    if monitored not in OF_TRAINING:
        if config.monitor is not None:
            yield monitored, option("monitor", config.monitor), False
        elif config.patience is not None:
            yield monitored, option("patience", config.patience), False
    if average_of(config) == "auto":
        yield chooser(config), option("average", "auto"), False
    if config.lr_schedule == "plateau":
        yield DEFAULTS.monitor, option("lr-schedule", "plateau"), False


def describe_noise(manifest: Manifest, generation: int) -> str:
    """Describes how small a difference the validation images can show; empty without any."""
    rows = manifest.val_rows()
    new = int((manifest.origins[rows] == generation).sum())
    if not len(rows):
        return ""
    if len(rows) < FEWEST:
        return f"{counted(len(rows), 'validation image')}: too few to show any difference"
    least, usual = _noise(len(rows))
    words = f"{len(rows):,} validation images: differences under {_points(least)} are noise"
    words += f", under {_points(usual)} they may be" if _points(usual) != _points(least) else ""
    if not 0 < new < len(rows):
        return words
    parts = []
    for name, images in (("old", len(rows) - new), ("new", new)):
        least, usual = _noise(images)
        limits = _points(least, usual) if _points(usual) != _points(least) else _points(least)
        parts.append(f"{name} {images:,}: {limits if images >= FEWEST else 'any difference'}")
    return f"{words} ({'; '.join(parts)})"


def _noise(images: int) -> tuple[float, float]:
    """Returns the points below which a difference is noise, and those below which it may be.

    Fewer than six changed answers always are, even if all of them change alike (`FEWEST`). Others depend on how many answers
    change in both directions.
    """
    least = 100 * FEWEST / images
    return least, max(least, NOISE / images**0.5)


def _points(*points: float) -> str:
    """Formats points: `"4.3 and 15 points"`."""
    return f"{' and '.join(f'{each:.0f}' if each >= 10 else f'{each:.1f}' for each in points)} points"
