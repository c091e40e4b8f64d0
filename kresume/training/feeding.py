"""What the model is fed: which pixel values, sampled how. Decided before the prepare pass, because the cache depends on it.

    feeding = decide_feeding(config, card, model, loss, listing, classes, spec, reporter)
    feeding.pixels, feeding.spec.interpolation

A run and a `model.keras` of kresume say it themselves. A foreign checkpoint is scored on up to 256 of its old images; the
same look checks the order of the labels.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from kresume.checkpoints.state import Card
from kresume.config import TrainConfig
from kresume.errors import CheckpointError, ImagesError, UsageError
from kresume.evaluation.probe import Probe, explain_any, probe_feedings
from kresume.images import conventions, inputs, merging
from kresume.images.decode import DecodeSpec, Header, decode, read_header
from kresume.images.order import permutation
from kresume.images.places import read_range
from kresume.images.sources import Found, Listing
from kresume.input_layout import InputLayout, alternatives
from kresume.progress import Reporter
from kresume.training.label_order import check_order
from kresume.training.verify import verify_mapping

if TYPE_CHECKING:
    from kresume.models.losses import LossChoice

PROBE_IMAGES = 256
SHRINKS_MUCH = 2.0
"""Above this factor bilinear sampling skips pixels, and looks other than averaging."""


@dataclass(frozen=True)
class Feeding:
    """What a model is fed.

    Attributes:
        pixels: the convention.
        layout: how it takes a picture.
        spec: size, resizing and interpolation.
        reason: how the pixels were found.
        interpolation_reason: how the interpolation was found; empty where it is the default, the parent's or asked for.
        notes: what else a person should know.
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
) -> Feeding:
    """Decides the pixel convention and, for a foreign checkpoint whose pictures shrink much, the interpolation.

    Args:
        config: `pixels` and `interpolation` win where they are given.
        card: what the checkpoint says of itself.
        model: holds the checkpoint's weights.
        loss: what its outputs are.
        old: the images that the checkpoint was trained on; None for a new model.
        classes: names of the outputs in their order.
        spec: size and resizing, with the interpolation to begin from.
        layout: how the model takes a picture; of a row of numbers the order of its axes is found like the convention.
        reporter: told of the probe.
        mapped: the weights came from another framework, by a mapping that counts once the model has been right.

    Raises:
        UsageError: a new model that does not say what it eats, or a convention that is none.
        CheckpointError: no way of feeding makes the checkpoint right on its old images, or two do.
    """
    from kresume.models.pixels import read_convention

    asked = None if config.pixels in {None, "auto"} else str(config.pixels)
    if asked is not None:
        inputs.to_input(asked, layout)  # a typo is refused now, not after the images were read
    if card is not None:
        return Feeding(asked or card.pixels, layout, spec, "--pixels" if asked else "the parent's")
    told = asked or read_convention(model)
    reason = "--pixels" if asked else "the model's first layers say so"
    if old is None:
        if told is None:
            raise UsageError(
                "the model has no Rescaling or Normalization in front, so nobody can tell what it eats: give --pixels "
                f"{conventions.SAID}"
            )
        return Feeding(told, layout, spec, reason)
    sample = _sample(old, classes, spec)
    if len(sample.labels) == 0:
        if told is None:
            raise ImagesError("no old image can be read, so nothing can show what the model eats: see --data")
        return Feeding(told, layout, spec, reason)
    reporter.say(f"probing what the model eats on {len(sample.labels)} old images")
    return _probe(config, model, loss, sample, classes, spec, layout, told, reason, mapped)


@dataclass(frozen=True)
class _Sample:
    files: list[bytes]
    labels: np.ndarray
    shrinks_by: float

    def pictures(self, spec: DecodeSpec) -> np.ndarray:
        with ThreadPoolExecutor(max_workers=(os.cpu_count() or 1) + 1) as pool:
            return np.stack(list(pool.map(lambda data: decode(data, spec), self.files)))


def _sample(old: Listing, classes: Sequence[str], spec: DecodeSpec) -> _Sample:
    """Up to 256 old images that can be decoded, the same ones each time."""
    places = {name: place for place, name in enumerate(classes)}
    known = [found for found in merging.name_numbers(old, classes) if found.label in places]
    files: list[bytes] = []
    labels: list[int] = []
    factors: list[float] = []
    for index in permutation(0, 0, len(known)):
        if len(files) == PROBE_IMAGES:
            break
        read = _readable(known[int(index)], spec)
        if read is not None:
            data, header = read
            files.append(data)
            labels.append(places[known[int(index)].label])
            factors.append(min(header.height / spec.height, header.width / spec.width))
    return _Sample(files, np.array(labels, np.int32), float(np.median(factors)) if factors else 1.0)


def _readable(found: Found, spec: DecodeSpec) -> tuple[bytes, Header] | None:
    try:
        data = read_range(found.path, found.offset, found.length, found.coding)
        header = read_header(data)
        decode(data, spec, header)
    except (ImagesError, OSError, EOFError):
        return None  # the prepare pass sets it aside, by name
    return data, header


def _probe(
    config: TrainConfig,
    model: Any,
    loss: LossChoice,
    sample: _Sample,
    classes: Sequence[str],
    spec: DecodeSpec,
    layout: InputLayout,
    told: str | None,
    reason: str,
    mapped: bool,
) -> Feeding:
    feedings = _feedings(told, layout, config.axes)
    count = len(sample.labels)
    compares = config.interpolation is None and sample.shrinks_by > SHRINKS_MUCH
    probes: dict[str, Probe] = {}
    for interpolation in ("area", "bilinear") if compares else (spec.interpolation,):
        pictures = sample.pictures(replace(spec, interpolation=interpolation))
        ways = {way: partial(inputs.to_input(*fed), pictures) for way, fed in feedings.items()}
        probes[interpolation] = probe_feedings(model.predict_on_batch, ways, sample.labels, loss.outputs)
    chosen = min(probes, key=lambda name: probes[name].losses[probes[name].best])
    probe = probes[chosen]
    source = config.from_
    hint = explain_any(probe, sample.labels, classes)
    if hint is not None and config.classes is None:
        best = max(probe.accuracies.values())
        way, proposed = hint
        predicted, fed = probe.predictions[way], "" if len(feedings) == 1 else way
        check_order(str(source), predicted, sample.labels, classes, proposed, assumed=best, pixels=fed)
    if len(feedings) > 1 and probe.winner is None:
        if probe.above_chance:
            raise CheckpointError(
                f"two pixel conventions fit {source} about equally on {count} old images ({probe.table}): say which one it "
                f"was trained with by --pixels{_and_axes(feedings)}"
            )
        raise CheckpointError(
            f"no pixel convention makes {source} right on {count} old images ({probe.table}): wrong images, wrong label "
            f"order, or another --model? Give --pixels{_and_axes(feedings)} to go on regardless"
        )
    way = str(probe.winner) if len(feedings) > 1 else next(iter(feedings))
    pixels, layout = feedings[way]
    notes: tuple[str, ...] = ()
    found = f"on {count} old images {probe.table}" if len(feedings) > 1 else reason
    if mapped:
        found += f"; {verify_mapping(str(source), probe.predictions[way], sample.labels)}"
    elif not probe.above_chance:
        share = 100 * probe.accuracies[probe.best]
        notes = (f"{source} is right on {share:.1f} % of {count} old images, no better than chance",)
    compared = ", ".join(f"{name} gives loss {each.losses[each.best]:.2f}" for name, each in probes.items())
    return Feeding(
        pixels,
        layout,
        replace(spec, interpolation=chosen),
        found,
        compared if compares else "",
        notes,
    )


def _feedings(told: str | None, layout: InputLayout, axes: str | None) -> dict[str, tuple[str, InputLayout]]:
    """Returns the ways of feeding a model that are tried: (convention, layout) by what a user would have to say."""
    layouts = (layout,) if axes is not None else alternatives(layout)
    usual = tuple(name for name in conventions.names_for(layout.channels) if name in conventions.USUAL)
    names = (told,) if told else usual
    return {
        name if each == layouts[0] else f"{name} with --axes {each.axes}": (name, each)
        for each in layouts
        for name in names
    }


def _and_axes(feedings: Mapping[str, tuple[str, InputLayout]]) -> str:
    """Returns the option beside `--pixels` where the order of the axes was in question."""
    return " and --axes" if len({layout for _, layout in feedings.values()}) > 1 else ""
