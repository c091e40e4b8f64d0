"""Decides which pixel values the model is fed and how images are resized.

    feeding = decide_feeding(config, card, model, loss, listing, classes, spec, reporter)
    feeding.pixels, feeding.spec.interpolation

This comes before the prepare pass, because the cache depends on it. A run or a `model.keras` of kresume records its
convention. A foreign checkpoint is scored on up to 256 of its old images; the same scores check the class order.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from kresume.errors import CheckpointError, ImagesError, UsageError
from kresume.evaluation.class_order import best_accuracy, judge_order
from kresume.evaluation.probe import MOST_SHOWN, PROBE_IMAGES, Probe, is_clearly_lower, probe_feedings, promising
from kresume.evaluation.sampling import OBLONG, OTHER_RESIZES, SHRINKS_MUCH, fits_better, proportions
from kresume.images import collect, conventions, inputs
from kresume.images.decode import decode
from kresume.images.headers import Header, read_header
from kresume.images.order import permutation
from kresume.images.sources import Found, Listing
from kresume.options.settings import DEFAULTS
from kresume.options.table import TrainConfig
from kresume.reporter import Reporter
from kresume.spelling import option
from kresume.storage.locations import read_range
from kresume.training.plan import candidates
from kresume.training.plan.label_order import check_order
from kresume.training.plan.torch_mapping import verify_mapping
from kresume.values.card import Card
from kresume.values.decode_spec import DecodeSpec
from kresume.values.input_layout import InputLayout

if TYPE_CHECKING:
    from kresume.models.losses import LossChoice
    from kresume.models.statistics import Statistics

FIRST_LOOK = 64
"""The number of images that suffices to exclude hopeless conventions."""
SURE = 0.7
"""Accuracy on old images from which on moving averages are not doubted."""
STATISTICS_BATCH = 32
MOVING: Statistics = {}
"""Stands for the moving averages as Keras keeps them."""


@dataclass(frozen=True)
class Feeding:
    """How a model is fed.

    Attributes:
        pixels: the pixel convention.
        layout: how the model takes an image.
        spec: size, resizing and interpolation.
        reason: how the convention was found.
        interpolation_reason: which ways of resizing were compared; empty if they are the default, the parent's or requested.
        notes: further notes for the user.
    """

    pixels: str
    layout: InputLayout
    spec: DecodeSpec
    reason: str
    interpolation_reason: str = ""
    notes: tuple[str, ...] = ()


def decide_feeding(
    config: TrainConfig,
    card: Card | None,
    model: Any,
    loss: LossChoice,
    old: Listing | None,
    classes: Sequence[str],
    spec: DecodeSpec,
    layout: InputLayout,
    reporter: Reporter,
    *,
    mapped: bool = False,
    steps: int | None = None,
) -> Feeding:
    """Decides the pixel convention, and how pictures are resized for a foreign checkpoint.

    Args:
        config: `pixels`, `resize` and `interpolation` win if given.
        card: the checkpoint's model card, None if it has none.
        model: holds the checkpoint's weights.
        loss: says what the model's outputs are.
        old: the images that the checkpoint was trained on; None for a new model.
        classes: the class names in the order of the outputs.
        spec: size and resizing, with the interpolation to start from.
        layout: how the model takes an image; for a flat input the axis order is probed like the convention.
        reporter: announces the probe.
        mapped: True if the weights come from another framework; the mapping is accepted only if the model predicts
            correctly.
        steps: how many steps the model was trained; None if unknown.

    Raises:
        UsageError: a new model does not say which pixels it expects, or the convention is unknown.
        CheckpointError: with no convention the checkpoint is right on its old images, or several fit equally well.
        ImagesError: no old image can be read, and nothing else says the convention.
    """
    from kresume.models.pixels import read_convention

    asked = None if config.pixels in {None, "auto"} else str(config.pixels)
    if asked is not None:
        inputs.to_input(asked, layout)  # raises on a typo now, not after the images were read
    if card is not None:
        other = f"{config.from_} records that it was trained on pixels {card.pixels}: {option('pixels', asked)} feeds it others"
        notes = (other,) if asked not in {None, card.pixels} else ()
        return Feeding(asked or card.pixels, layout, spec, "--pixels" if asked else "the parent's", notes=notes)
    shown = read_convention(model)
    stated = asked or shown
    notes = ()
    if asked is not None and shown is not None and conventions.is_louder(shown, asked):
        expects = f"the model's first layers rescale or normalise, as for {shown}, and get much smaller values"
        notes = (f"{option('pixels', asked)}: {expects}",)
    reason = "--pixels" if asked else "from the model's first layers"
    if old is None:
        if stated is None:
            raise UsageError(
                "the model has no layer at its start that shows the pixel values that it expects, such as "
                f"Rescaling(1 / 255): give {option('pixels')} ({conventions.SHOWN_NAMES})"
            )
        return Feeding(stated, layout, spec, reason, notes=notes)
    sample = _sample(old, classes, spec)
    if len(sample.labels) == 0:
        if stated is None:
            raise ImagesError(
                "no old image can be read, so the pixel values that the model expects cannot be found: check "
                f"{option('data')}"
            )
        return Feeding(stated, layout, spec, reason, notes=notes)
    reporter.say(f"finding the pixel values that the model expects on {len(sample.labels)} old images")
    found = _probe(config, model, loss, sample, classes, spec, layout, stated, reason, mapped, steps)
    return replace(found, notes=(*notes, *found.notes))


@dataclass(frozen=True)
class _Sample:
    """Old images of known classes.

    Attributes:
        files: their bytes.
        pictures: `(n, height, width, 3) uint8`, decoded as the spec says.
        labels: `(n,)` class indices.
        shrinks_by: the median factor by which they are larger than the model's input.
        oblong: the median factor by which they are longer or higher than its shape.
    """

    files: list[bytes]
    pictures: np.ndarray
    labels: np.ndarray
    shrinks_by: float
    oblong: float

    def sampled(self, spec: DecodeSpec) -> np.ndarray:
        """Decodes the same images with another spec."""
        with ThreadPoolExecutor(max_workers=(os.cpu_count() or 1) + 1) as pool:
            return np.stack(list(pool.map(lambda data: decode(data, spec), self.files)))


def _sample(old: Listing, classes: Sequence[str], spec: DecodeSpec) -> _Sample:
    """Decodes up to 256 readable old images, the same ones each time."""
    indices = {name: index for index, name in enumerate(classes)}
    known = [found for found in collect.name_numbers(old, classes) if found.label in indices]
    files: list[bytes] = []
    pictures: list[np.ndarray] = []
    labels: list[int] = []
    sides: list[tuple[int, int]] = []
    for index in permutation(0, 0, len(known)):
        if len(files) == PROBE_IMAGES:
            break
        read = _readable(known[int(index)], spec)
        if read is not None:
            data, picture, header = read
            files.append(data)
            pictures.append(picture)
            labels.append(indices[known[int(index)].label])
            sides.append((header.height, header.width))
    stacked = np.stack(pictures) if pictures else np.zeros((0, spec.height, spec.width, 3), np.uint8)
    heights, widths = np.array(sides or [(spec.height, spec.width)]).T
    return _Sample(files, stacked, np.array(labels, np.int32), *proportions(heights, widths, spec))


def _readable(found: Found, spec: DecodeSpec) -> tuple[bytes, np.ndarray, Header] | None:
    try:
        data = read_range(found.path, found.offset, found.length, found.coding)
        header = read_header(data)
        return data, decode(data, spec, header), header
    except (ImagesError, OSError, EOFError):
        return None  # the prepare pass quarantines and names it


def _probe(
    config: TrainConfig,
    model: Any,
    loss: LossChoice,
    sample: _Sample,
    classes: Sequence[str],
    spec: DecodeSpec,
    layout: InputLayout,
    stated: str | None,
    reason: str,
    mapped: bool,
    steps: int | None,
) -> Feeding:
    from kresume.models import statistics
    from kresume.models.pixels import adapted

    source, count, labels = str(config.from_), len(sample.labels), sample.labels
    feedings = candidates.feedings_of(stated, layout, config.axes, grey=conventions.are_grey(sample.pictures))
    if stated is None:
        feedings = candidates.as_adapted(feedings, sample.pictures, adapted(model))
        reason = "as its Normalization was adapted"  # said if one is left
    usual = [way for way, (name, _) in feedings.items() if stated or name in conventions.USUAL]
    twins, louder = candidates.twins(feedings), candidates.louder(feedings)

    def score(ways: Sequence[str], pictures: np.ndarray, averages: Statistics = MOVING, first: int = count) -> Probe:
        fed = {way: partial(inputs.to_input(*feedings[way]), pictures[:first]) for way in ways}
        with statistics.used(model, averages):
            return probe_feedings(model.predict_on_batch, fed, labels[:first], loss.head, usual, twins, louder)

    ways: Sequence[str] = tuple(feedings)
    if len(ways) > 1 and count >= 2 * FIRST_LOOK:
        ways = promising(score(ways, sample.pictures, first=FIRST_LOOK))
    probe, averages, how = score(ways, sample.pictures), MOVING, ""
    if len(feedings) > 1 and (early := statistics.without_beginning(model, steps)):
        # After few steps the moving averages are half of what they began with, and values of another scale may fit them
        # better than the right ones do.
        second = score(tuple(dict.fromkeys([*usual, *ways])), sample.pictures, early)
        if is_clearly_lower(second.image_losses[second.best], probe.image_losses[probe.best]):
            probe, averages, ways = second, early, second.tried
            how = ", without what the moving averages of batch normalisation began with,"
    if len(feedings) == 1 and probe.accuracies[probe.best] < SURE and statistics.normalised_layers(model):
        second, own = _by_statistics_of(sample, model, feedings[ways[0]], partial(score, ways, sample.pictures))
        accuracy, moving = (
            best_accuracy(each.predictions[each.best], labels, len(classes)) for each in (second, probe)
        )
        if accuracy > moving:
            probe, averages = second, own
    # On equal evidence the first one wins: the usual conventions come first.
    found = judge_order({way: probe.predictions[way] for way in ways}, labels, classes)
    fed, asked = "" if len(feedings) == 1 else found.candidate, config.classes is not None
    notes = [check_order(source, found, classes, count, pixels=fed, asked=asked)]
    contenders = probe.fitting if probe.above_chance else ways
    best, spec, compared = _resized(
        config, sample, spec, probe, lambda other: score(contenders, sample.sampled(other), averages)
    )
    if len(feedings) > 1 and best.winner is None:
        raise CheckpointError(_no_winner(source, best, count, _and_axes(feedings)))
    way = str(best.winner) if len(feedings) > 1 else next(iter(feedings))
    pixels, layout = feedings[way]
    if len(feedings) > 1:
        # If the second look had only the winner, show the losers of the first look too.
        reason = f"on {count} old images{how} {(best if len(best.losses) > 1 else probe).table}"
    if mapped:
        reason += f"; {verify_mapping(source, best.predictions[way], labels)}"
    elif not best.above_chance and not (found.doubtful and notes[0]):
        share = 100 * best.accuracies[best.best]
        unknown = f", which therefore do not show the order of its outputs ({option('classes', 'a,b,c')} sets it)"
        notes = [
            *([notes[0]] if asked else []),
            f"{source} is right on {share:.1f} % of {count} old images, no better than chance"
            f"{'' if asked else unknown}",
        ]
    return Feeding(pixels, layout, spec, reason, compared, tuple(note for note in notes if note))


def _resized(
    config: TrainConfig, sample: _Sample, spec: DecodeSpec, probe: Probe, score: Callable[[DecodeSpec], Probe]
) -> tuple[Probe, DecodeSpec, str]:
    """Compares ways of resizing, where they differ much on the images.

    Returns:
        `(the probe of the best, how pictures are decoded for it, what was compared in words)`.
    """
    best, compared = probe, []
    if config.interpolation is None and sample.shrinks_by > SHRINKS_MUCH:
        other = replace(spec, interpolation="bilinear" if spec.interpolation == "area" else "area")
        sampled = score(other)
        compared = [_loss(spec.interpolation, probe), _loss(other.interpolation, sampled)]
        if sampled.losses[sampled.best] < probe.losses[probe.best]:
            best, spec = sampled, other
    free = config.resize is None and spec.resize == DEFAULTS.resize
    if free and sample.oblong > OBLONG:
        stretched = _loss(spec.resize, best)
        for resize in OTHER_RESIZES:
            other = replace(spec, resize=resize)
            sampled = score(other)
            losses = sampled.image_losses[sampled.best], best.image_losses[best.best]
            right = sampled.predictions[sampled.best] == sample.labels, best.predictions[best.best] == sample.labels
            if sampled.above_chance and fits_better(losses, right, rivals=len(OTHER_RESIZES)):
                best, spec = sampled, other
        if spec.resize != DEFAULTS.resize:
            compared += [stretched, _loss(spec.resize, best)]
    return best, spec, ", ".join(compared)


def _loss(name: str, probe: Probe) -> str:
    return f"{name} gives loss {probe.losses[probe.best]:.2f}"


def _by_statistics_of(
    sample: _Sample, model: Any, feeding: tuple[str, InputLayout], score: Callable[[Statistics], Probe]
) -> tuple[Probe, Statistics]:
    """Scores the model with the statistics of batch normalisation that the sample has.

    Moving averages that trail the weights hide what a model has learned, and so a wrong order of its outputs.
    """
    from kresume.models import statistics

    fed = np.asarray(
        inputs.to_input(*feeding)(sample.pictures)
    )  # TensorFlow makes a tensor of its own, which JAX refuses
    size = min(STATISTICS_BATCH, len(fed))
    batches = (fed[start : start + size] for start in range(0, len(fed) - size + 1, size))
    own = statistics.compute_statistics(model, batches)
    return score(own), own


def _no_winner(source: str, probe: Probe, count: int, and_axes: str) -> str:
    if not probe.above_chance:
        return (
            f"{source} is not right on {count} old images with any pixel convention ({probe.table}): check the images, the "
            f"order of the labels and {option('model')}, or give {option('pixels')}{and_axes} to continue anyway"
        )
    fit = probe.fitting[:MOST_SHOWN]
    return (
        f"{'two' if len(probe.fitting) == 2 else 'several'} pixel conventions fit {source} about equally on {count} old images "
        f"({probe.show(fit)}): give the one that it was trained with as {option('pixels')}{and_axes}"
    )


def _and_axes(feedings: Mapping[str, tuple[str, InputLayout]]) -> str:
    """Returns the option to name beside `--pixels` if the axis order was in question."""
    return f" and {option('axes')}" if len({layout for _, layout in feedings.values()}) > 1 else ""
