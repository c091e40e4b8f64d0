"""Checks how pictures are resized for models that do not record it.

    check_resized(subject, [model], classes=3)    # an option that no model takes is an error
    note = doubt_sampling(model, predicted, manifest, reporter, batch_size=32)    # "--interpolation bilinear fits better: …"

Keras's loader samples by `bilinear`, which skips pixels of larger pictures, and kresume averages areas: the pictures are up to
15 grey levels apart, and a model that is fed with the other ones loses up to ten points (docs/run-directory.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from kresume.errors import UsageError
from kresume.evaluation.against import Predicted, array_input, predict, served_signature
from kresume.evaluation.opening import Served
from kresume.evaluation.probe import PROBE_IMAGES, is_clearly_lower
from kresume.images.manifest import Manifest
from kresume.images.order import permutation
from kresume.images.variation import other_spec
from kresume.models.load import Loaded, Subject
from kresume.reporter import Reporter
from kresume.spelling import option
from kresume.storage import sealed
from kresume.values.decode_spec import DecodeSpec

SHRINKS_MUCH = 2.0
"""Above this factor `bilinear` skips pixels, and its result differs from averages."""
SMALLEST = 1e-7
"""The smallest probability, as in Keras's losses."""


def check_resized(subject: Subject, models: Sequence[Loaded | Served], classes: int) -> None:
    """Raises if a way of resizing was given, but all models record another or decode by themselves.

    Args:
        subject: holds what was given.
        models: the models for which it was given.
        classes: number of classes.

    Raises:
        UsageError: no model takes it.
    """
    ways = {name: way for name in ("resize", "interpolation") if (way := getattr(subject, name)) is not None}
    if ways and not any(_is_resized(model, ways, classes) for model in models):
        named = " and ".join(option(name, way) for name, way in ways.items())
        own = " and ".join(model.subject.checkpoint for model in models)
        raise UsageError(f"{named}: {own} records how pictures are resized, or resizes them itself: leave it out")


def _is_resized(model: Loaded | Served, ways: Mapping[str, str], classes: int) -> bool:
    """Returns True if pictures are resized for a model as the user says."""
    if isinstance(model, Loaded):
        return all(getattr(model.card, name) == way for name, way in ways.items())
    signature, _ = served_signature(model.folder, model.subject, len(model.labels or ()) or classes)
    return signature.input.kind != "bytes" and not (model.folder / sealed.NAME).is_file()


def assumed_spec(model: Loaded | Served, classes: int) -> DecodeSpec | None:
    """Returns how pictures are resized where that is assumed; None where the model or the user says it.

    Args:
        model: the model.
        classes: number of classes.
    """
    if isinstance(model, Loaded):
        return model.spec if model.assumed else None
    if model.subject.interpolation is not None or (model.folder / sealed.NAME).is_file():
        return None
    signature, _ = served_signature(model.folder, model.subject, len(model.labels or ()) or classes)
    return None if signature.input.kind == "bytes" else array_input(model.folder, signature, model.subject)[0]


def doubt_sampling(
    model: Loaded | Served, predicted: Predicted, manifest: Manifest, reporter: Reporter, *, batch_size: int
) -> str:
    """Returns a note if another interpolation than the assumed one fits the images better, beyond chance.

    Args:
        model: the model; only of one whose checkpoint records nothing is something assumed.
        predicted: its predictions of all images.
        manifest: the images.
        reporter: shows progress.
        batch_size: images per prediction.
    """
    spec = None if predicted.labels_alone else assumed_spec(model, len(manifest.classes))
    if spec is None:
        return ""
    heights, widths = (manifest.table.column(name).to_numpy() for name in ("height", "width"))
    if np.median(np.minimum(heights / spec.height, widths / spec.width)) <= SHRINKS_MUCH:
        return ""
    rows = np.sort(permutation(0, 0, len(manifest))[:PROBE_IMAGES])
    sample = Manifest.from_table(manifest.table.take(rows), manifest.classes)
    other = other_spec(spec)
    found = predict(_sampled_by(model, other.interpolation), sample, reporter, batch_size=batch_size, cache="off")
    labels, places = sample.labels, np.arange(len(sample))
    both = (found.probabilities, predicted.probabilities[rows])
    if not is_clearly_lower(*(-np.log(np.maximum(each[places, labels], SMALLEST)) for each in both)):
        return ""
    better, assumed = (100 * float((each.argmax(axis=1) == labels).mean()) for each in both)
    return (
        f"it does not record how its pictures were resized, and {option('interpolation', other.interpolation)} fits them "
        f"better than {spec.interpolation}: {better:.1f} % of {len(rows)} are right, {assumed:.1f} % as they were scored"
    )


def _sampled_by(model: Loaded | Served, interpolation: str) -> Loaded | Served:
    """Returns the model, fed with pictures that are sampled in another way."""
    if isinstance(model, Loaded):
        return replace(model, card=replace(model.card, interpolation=interpolation))
    return replace(model, subject=replace(model.subject, interpolation=interpolation))
