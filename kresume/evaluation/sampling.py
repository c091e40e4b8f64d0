"""Checks how pictures are resized for models that do not record it.

    check_resized(subject, [model], classes=3)    # an option that no model takes is an error
    note = doubt_sampling(model, predicted, manifest, reporter, "", batch_size=32)    # "--resize crop fits them better …"

Keras's loader samples by `bilinear`, which skips pixels of larger pictures, and kresume averages areas: the pictures are up to
15 grey levels apart, and a model that is fed with the other ones loses up to ten points (docs/run-directory.md).
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from kresume.errors import UsageError
from kresume.evaluation.against import Predicted, array_input, predict, recorded_card, served_signature
from kresume.evaluation.opening import Served
from kresume.evaluation.probe import CLEAR_ERRORS, PROBE_IMAGES, is_clearly_lower
from kresume.images.manifest import Manifest
from kresume.images.order import permutation
from kresume.images.variation import other_spec
from kresume.models.load import RESIZING, Loaded, Subject, describe_assumed
from kresume.reporter import Reporter
from kresume.spelling import option
from kresume.values.decode_spec import DecodeSpec

SHRINKS_MUCH = 2.0
"""Above this factor `bilinear` skips pixels, and its result differs from averages."""
OBLONG = 1.1
"""Above this factor pictures have another shape than the model's input, so that stretched ones differ from cropped ones."""
OTHER_RESIZES = ("crop", "keraspad")
"""Ways of resizing that Keras's loader has beside stretching."""
ONE_SIDED = 1.64
"""Standard errors by which the numbers of right images must differ: 5 % by chance."""


def check_resized(
    given: Mapping[str, str | None], models: Sequence[Loaded | Served], classes: int, prefix: str = ""
) -> None:
    """Raises if a way of resizing was given, but all models record another or decode by themselves.

    Args:
        given: the options of `RESIZING`, None for one that was not given.
        models: the models for which it was given.
        classes: number of classes.
        prefix: before the options' names, `"against-"` for those of the model that is compared with.

    Raises:
        UsageError: no model takes it.
    """
    ways = {name: way for name, way in given.items() if way is not None}
    if ways and not any(_is_resized(model, ways, classes) for model in models):
        named = " and ".join(option(f"{prefix}{name}", way) for name, way in ways.items())
        own = " and ".join(model.subject.checkpoint for model in models)
        raise UsageError(f"{named}: how pictures are resized for {own} is recorded, or done by the model: leave it out")


def _is_resized(model: Loaded | Served, ways: Mapping[str, str], classes: int) -> bool:
    """Returns True if pictures are resized for a model as the user says."""
    if isinstance(model, Loaded):
        return all(getattr(model.card, name) == way for name, way in ways.items())
    signature, _ = served_signature(model.folder, model.subject, len(model.labels or ()) or classes)
    card = recorded_card(model.folder)
    own = card is None or all(getattr(card, name) == way for name, way in ways.items())
    return signature.input.kind != "bytes" and own


def assumed_spec(model: Loaded | Served, classes: int) -> DecodeSpec | None:
    """Returns how pictures are resized where that is assumed; None where the model or the user says it.

    Args:
        model: the model.
        classes: number of classes.
    """
    subject = model.subject
    if subject.interpolation is not None and subject.resize is not None:
        return None
    if isinstance(model, Loaded):
        return model.spec if model.state.card is None else None
    if recorded_card(model.folder) is not None:
        return None
    signature, _ = served_signature(model.folder, model.subject, len(model.labels or ()) or classes)
    return None if signature.input.kind == "bytes" else array_input(model.folder, signature, model.subject)[0]


def doubt_sampling(
    model: Loaded | Served,
    predicted: Predicted,
    manifest: Manifest,
    reporter: Reporter,
    prefix: str,
    *,
    batch_size: int,
) -> str:
    """Returns a note on the assumed way of resizing: whether another one fits better, beyond chance.

    Empty where nothing is assumed, or the pictures are nearly of the model's size.

    Args:
        model: the model; only of one whose checkpoint records nothing is something assumed.
        predicted: its predictions of all images.
        manifest: the images.
        reporter: shows progress.
        prefix: before the options' names, `"against-"` for those of the model that is compared with.
        batch_size: images per prediction.
    """
    spec = None if predicted.labels_alone else assumed_spec(model, len(manifest.classes))
    if spec is None:
        return ""
    rows = np.sort(permutation(0, 0, len(manifest))[:PROBE_IMAGES])
    sample = Manifest.from_table(manifest.table.take(rows), manifest.classes)
    task, labels = predicted.task, sample.labels

    def right(probabilities: np.ndarray) -> np.ndarray:
        return task.right(task.answers(probabilities), labels)

    best, fitting = predicted.probabilities[rows], spec
    others, silent = _others(spec, model.subject, manifest), Reporter(quiet=True)
    doing = f"trying {len(others)} other ways of resizing on {len(rows)} images"
    with reporter.waiting(doing) if others else contextlib.nullcontext():
        for other in others:
            found = predict(_resized_by(model, other), sample, silent, batch_size=batch_size, cache="off").probabilities
            losses = task.image_losses(found, labels), task.image_losses(best, labels)
            if fits_better(losses, (right(found), right(best)), rivals=len(others)):
                best, fitting = found, other
    ways = [name for name in RESIZING if getattr(fitting, name) != getattr(spec, name)]
    if not ways:
        return describe_assumed(model.subject, spec, prefix) if others else ""
    better, assumed = (100 * float(right(each).mean()) for each in (best, predicted.probabilities[rows]))
    given = " ".join(option(f"{prefix}{name}", getattr(fitting, name)) for name in ways)
    instead = " and ".join(getattr(spec, name) for name in ways)
    return (
        f"it does not record how its pictures were resized, and {given} fits them better than {instead}: {better:.1f} % of "
        f"{len(rows)} are right, {assumed:.1f} % as they were scored"
    )


def fits_better(losses: tuple[np.ndarray, np.ndarray], right: tuple[np.ndarray, np.ndarray], *, rivals: int) -> bool:
    """Returns True if one way of resizing fits the images better than another, beyond chance.

    Its loss must be lower, and it must be right more often (McNemar's test): a loss also falls where an overconfident model
    becomes less sure, by black borders for example.

    Args:
        losses: `(n,)` of the one and of the other.
        right: `(n,) bool` of the one and of the other.
        rivals: how many ways are compared; they share the level of chance.
    """
    from scipy.stats import norm

    gained, lost = int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())
    errors = float(norm.isf(norm.sf(CLEAR_ERRORS) / rivals))
    return is_clearly_lower(*losses, errors) and gained - lost > ONE_SIDED * (gained + lost) ** 0.5


def proportions(heights: np.ndarray, widths: np.ndarray, spec: DecodeSpec) -> tuple[float, float]:
    """Returns by how much pictures are larger, and how much longer or higher, than the input.

    Args:
        heights: `(n,)` in pixels.
        widths: `(n,)` in pixels.
        spec: the size of the model's input.
    """
    down, across = heights / spec.height, widths / spec.width
    smaller = np.minimum(down, across)
    return float(np.median(smaller)), float(np.median(np.maximum(down, across) / smaller))


def _others(spec: DecodeSpec, subject: Subject, manifest: Manifest) -> list[DecodeSpec]:
    """Returns the other ways of resizing that give much other pictures and that nobody has excluded."""
    heights, widths = (manifest.table.column(name).to_numpy() for name in ("height", "width"))
    shrinks_by, oblong = proportions(heights, widths, spec)
    sampled = [spec.interpolation]
    if subject.interpolation is None and shrinks_by > SHRINKS_MUCH:
        sampled.append(other_spec(spec).interpolation)
    fitted = [spec.resize]
    if subject.resize is None and oblong > OBLONG:
        fitted += OTHER_RESIZES
    return [replace(spec, resize=each, interpolation=way) for each in fitted for way in sampled][1:]


def _resized_by(model: Loaded | Served, spec: DecodeSpec) -> Loaded | Served:
    """Returns the model, fed with pictures that are resized in another way."""
    if isinstance(model, Loaded):
        return replace(model, card=replace(model.card, resize=spec.resize, interpolation=spec.interpolation))
    return replace(model, subject=replace(model.subject, resize=spec.resize, interpolation=spec.interpolation))
