"""Gets a model's predictions for images in a manifest, in the scored model's classes.

    found = predict(read_model(Subject("serving/flowers"), reporter), manifest, reporter, batch_size=32, cache=None)
    score(found.task, found.probabilities, manifest.labels, ..., answers=found.chosen)

The model may be a run, a checkpoint, or a SavedModel (which runs in a process with only TensorFlow, through its
own signature). It may have other classes. An image counts as wrong if it is assigned to a class that the scored model
does not have, or if the model does not have its class.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from kresume.class_renames import renamed
from kresume.errors import UsageError
from kresume.evaluation import keras_facts
from kresume.evaluation.caches import open_cache
from kresume.evaluation.opening import Served
from kresume.evaluation.renamed_since import renames_between
from kresume.evaluation.served import Prediction, plain_reason, predict_saved_model
from kresume.images import conventions, inputs
from kresume.images.manifest import Manifest
from kresume.images.reader import PictureReader, as_files
from kresume.models.load import Loaded, Subject
from kresume.options.settings import DEFAULTS
from kresume.reporter import Reporter
from kresume.runtimes.signatures import Signature, read_signatures
from kresume.spelling import counted, option
from kresume.storage import atomic, sealed
from kresume.tasks.one_class import as_shares
from kresume.tasks.single_label import SINGLE_LABEL
from kresume.tasks.task import Head, Task
from kresume.values.card import Card
from kresume.values.decode_spec import DecodeSpec
from kresume.values.input_layout import InputLayout, read_layout

PART = 64


@dataclass(frozen=True)
class Predicted:
    """Predictions of images, in the classes of the scored model.

    Attributes:
        task: judges the predictions.
        probabilities: `(n, classes)`; 0 for a class that the other model does not have.
        chosen: `(n,)` the predicted classes; -1 for one that the scored model does not have. None for those that the
            probabilities give.
        confidences: `(n,)` the probabilities of the predicted classes; None for those that `probabilities` has.
        labels_alone: True if the model gives labels without scores, so there is no loss.
        note: a note for the user, or an empty string.
        lacks: classes of the scored model that this one does not have.
    """

    task: Task
    probabilities: np.ndarray
    chosen: np.ndarray | None = None
    confidences: np.ndarray | None = None
    labels_alone: bool = False
    note: str = ""
    lacks: tuple[str, ...] = ()

    def noting(self, note: str) -> Predicted:
        """Returns the predictions with a further note, which may be empty."""
        return replace(self, note="; ".join(each for each in (self.note, note) if each))


def predict(
    model: Loaded | Served, manifest: Manifest, reporter: Reporter, *, batch_size: int, cache: str | None
) -> Predicted:
    """Predicts every image of a manifest with a model.

    Args:
        model: from `read_model`.
        manifest: the images, in the scored model's classes.
        reporter: shows progress.
        batch_size: images per prediction.
        cache: `"off"`, or the folder of the cache of decoded images.

    Raises:
        KresumeError: the model cannot be run, or a fact of a SavedModel is missing.
    """
    if isinstance(model, Served):
        return _served(model, manifest, reporter)
    from kresume.evaluation.live import LiveScorer  # imports Keras, which selects the backend

    loaded = model
    reader = PictureReader(manifest, loaded.spec, open_cache(loaded.spec, cache))
    scorer = LiveScorer(loaded.model, reader, manifest, loaded.card, loaded.loss, batch_size, loaded.generation)
    with reporter.progress(f"scoring {loaded.subject.checkpoint}", len(manifest), "images") as advance:
        probabilities = scorer.probabilities(np.arange(len(manifest)), advance)
    index_of = {name: index for index, name in enumerate(manifest.classes)}
    to_ours = np.array([index_of.get(name, -1) for name in loaded.card.classes])
    known = to_ours >= 0
    ours = np.zeros((len(manifest), len(manifest.classes)))
    ours[:, to_ours[known]] = probabilities[:, known]
    chosen = scorer.task.answers(probabilities)
    confidences = probabilities[np.arange(len(manifest)), chosen]
    lacks = tuple(name for name in manifest.classes if name not in loaded.card.classes)
    return Predicted(scorer.task, ours, to_ours[chosen], confidences, note="; ".join(loaded.notes), lacks=lacks)


def renamed_as(other: Loaded | Served, scored: Loaded | Served) -> Loaded | Served:
    """Returns a model whose classes are named as in the scored one, if a run between them renamed some."""
    if isinstance(other, Served) or isinstance(scored, Served) or other.subject.classes is not None:
        return other
    names = renames_between(other.run, scored.run)
    return replace(other, card=replace(other.card, classes=renamed(other.card.classes, names))) if names else other


def recorded_card(folder: Path) -> Card | None:
    """Returns the card of a SavedModel that kresume exported; None for one of another program."""
    record = folder / sealed.NAME
    if not record.is_file():
        return None
    card = atomic.read_json(record).get("card")
    return Card.from_dict(card) if card else None


def served_size(folder: Path, signature: Signature) -> tuple[DecodeSpec, str, InputLayout]:
    """Returns decoding, pixel convention and input layout of a SavedModel with array input.

    Raises:
        UsageError: neither its signature nor its `export.json` records the size.
    """
    card = recorded_card(folder)
    if card is not None:
        sent = atomic.read_json(folder / sealed.NAME).get("sent")
        return card.spec, str(sent or card.pixels), signature.input.layout(card.image_size, card.input)
    layout = signature.input.layout()
    size = signature.input.size(layout)
    if size is None:
        raise UsageError(
            f"{folder} accepts pictures of any size and does not record the size that it was trained on: give "
            f"{option('image-size')}"
        )
    return DecodeSpec(*size), "", layout


def served_signature(folder: Path, subject: Subject, classes: int) -> tuple[Signature, Head | None]:
    """Returns the signature of a SavedModel to run, and how it answers if that may be one number.

    Raises:
        UsageError: the signature does not tell the class of an image, or only one class is named.
    """
    if classes < 2:
        raise UsageError(
            f"{folder}: only one class is named; give the names of all, in the order of its outputs, with "
            f"{option('classes', 'a,b')}. A single output is the score of the second of two"
        )
    signature = next(iter(read_signatures(folder, classes).values()))
    if not signature.answers_classes:
        raise UsageError(
            f"the signature {signature.name} of {folder} gives neither scores nor labels of {classes} classes, so it does not "
            f"tell the class of a picture: its outputs are {', '.join(output.name for output in signature.outputs)}"
        )
    return signature, keras_facts.read_facts(folder, subject, signature).head if signature.may_be_single else None


def describe_signature(signature: Signature) -> str:
    """Describes which signature, and which of several outputs, gives the scores."""
    scores = signature.output("scores")
    told = scores is not None and signature.output("other") is not None
    return f"signature {signature.name}{f', output {scores.name}' if told and scores else ''}"


def _served(served: Served, manifest: Manifest, reporter: Reporter) -> Predicted:
    folder, subject, labels = served.folder, served.subject, served.labels
    signature, single = served_signature(folder, subject, len(labels or manifest.classes))
    rows = np.arange(len(manifest))
    how = f"running {folder} on {len(rows):,} images with TensorFlow alone, through its {describe_signature(signature)}"
    reporter.say(how)
    with reporter.progress(f"scoring {subject.checkpoint}", len(rows), "images") as advance:
        if signature.input.kind == "bytes":
            with tempfile.TemporaryDirectory(prefix="kresume-") as name:
                files = as_files(manifest.found(rows), Path(name))
                prediction = predict_saved_model(
                    folder, signature, labels, manifest.classes, {"files": files}, single=single, advance=advance
                )
        else:
            prediction = _by_numbers(folder, signature, labels, subject, manifest, rows, single, advance)
    notes = list(pixels_note(folder, signature, subject))
    if labels is None:
        notes.append(
            f"it does not record the order of its classes; this order is assumed: {', '.join(manifest.classes)}"
        )
    if prediction.failed:
        row, reason = next(iter(prediction.failed.items()))
        path = manifest.found(np.array([row]))[0].name
        notes.append(
            f"{counted(len(prediction.failed), 'image')} that it could not read "
            f"{'counts' if len(prediction.failed) == 1 else 'count'} as wrong ({path}: {plain_reason(reason)})"
        )
    probabilities = prediction.scores
    alone = probabilities is None
    if probabilities is None:
        probabilities = np.zeros((len(rows), len(manifest.classes)))
        known = prediction.indices >= 0
        probabilities[rows[known], prediction.indices[known]] = 1.0
    lacks = tuple(name for name in manifest.classes if labels is not None and name not in labels)
    if labels is None or set(labels) == set(manifest.classes):  # else the sum lacks the scores of other classes
        probabilities = as_shares(probabilities)
    return Predicted(
        SINGLE_LABEL, probabilities, prediction.indices, prediction.confidences, alone, "; ".join(notes), lacks
    )


def _by_numbers(
    folder: Path,
    signature: Signature,
    labels: Sequence[str] | None,
    subject: Subject,
    manifest: Manifest,
    rows: np.ndarray,
    single: Head | None,
    advance: Callable[[int], None],
) -> Prediction:
    """Runs a SavedModel that expects pictures or values as arrays."""
    spec, convert, array_shape, dtype = array_input(folder, signature, subject)
    reader = PictureReader(manifest, spec, open_cache(spec, None))
    with tempfile.TemporaryDirectory(prefix="kresume-") as name:
        path = Path(name) / "images.npy"
        array = np.lib.format.open_memmap(path, "w+", dtype, (len(rows), *array_shape))
        for start in range(0, len(rows), PART):
            array[start : start + PART] = np.asarray(convert(reader(rows[start : start + PART])))
        array.flush()
        return predict_saved_model(
            folder, signature, labels, manifest.classes, {"array": str(path)}, single=single, advance=advance
        )


def pixels_note(folder: Path, signature: Signature, subject: Subject) -> Iterator[str]:
    """Yields a note if only the first operations of a SavedModel's graph show which numbers it expects."""
    pixels = signature.input.pixels
    if pixels is not None and subject.pixels is None and recorded_card(folder) is None:
        yield (
            f"pixels {pixels} are assumed, because its first operations scale such values down; {option('pixels')} says "
            f"otherwise, bgr-{pixels} for example"
        )


def array_input(
    folder: Path, signature: Signature, subject: Subject
) -> tuple[DecodeSpec, Callable[[np.ndarray], Any], tuple[int, ...], str]:
    """Finds what a SavedModel expects that takes pictures or values as arrays.

    Returns:
        `(how pictures are decoded, function from `(n, height, width, 3) uint8` to the model's input, shape of one input,
        dtype)`.

    Raises:
        UsageError: the size or the pixel convention is neither recorded nor given.
    """
    card = recorded_card(folder)
    if card is None and subject.image_size is not None:
        spec, pixels = _asked(subject, subject.image_size), ""
        layout = signature.input.layout(subject.image_size)
    else:
        spec, pixels, layout = served_size(folder, signature)
    if card is not None:
        _check_recorded(subject, folder, spec, pixels if signature.input.kind == "values" else "")
    else:
        spec = _asked(subject, (spec.height, spec.width))
    if subject.axes is not None:
        layout = read_layout(layout.shape((spec.height, spec.width)), (spec.height, spec.width), subject.axes)[0]
    found = pixels
    if signature.input.kind == "values" and not found and (subject.pixels is None or "pixels" in subject.yielding):
        found = keras_facts.read_facts(folder, subject, signature).pixels or ""
    pixels = found if card is not None and found else subject.choose("pixels", found)
    # The size of its first factor does not show the order of the channels: whatever else says the pixels wins.
    pixels = pixels or signature.input.pixels or ""
    if signature.input.kind == "values" and not pixels:
        raise UsageError(
            f"{folder} expects pixel values as numbers and does not record which: give {option('pixels')}, one of "
            f"{conventions.SHOWN_NAMES}"
        )
    kind = signature.input.dtype if signature.input.kind == "values" else "uint8"
    convert = inputs.to_input("0-255" if kind == "uint8" else pixels, layout)
    dtype = kind if kind in {"uint8", "float16", "float64"} else "float32"
    return spec, convert, layout.shape((spec.height, spec.width)), dtype


def _check_recorded(subject: Subject, folder: Path, spec: DecodeSpec, pixels: str) -> None:
    """Raises if a fact was given, for this model alone, that contradicts what its export records.

    Raises:
        UsageError: it does.
    """
    size = (spec.height, spec.width)
    if subject.image_size not in {None, size} and not subject.yielding:
        given = option("image-size", "x".join(map(str, subject.image_size or ())))
        raise UsageError(f"{folder} records that its pictures are {size[0]}x{size[1]}: leave {given} out")
    if pixels and subject.pixels not in {None, pixels} and "pixels" not in subject.yielding:
        raise UsageError(f"{folder} records that it expects {pixels}: leave {option('pixels', subject.pixels)} out")


def _asked(subject: Subject, size: tuple[int, int]) -> DecodeSpec:
    """Returns how pictures are decoded for a model that does not record it."""
    return DecodeSpec(*size, subject.resize or DEFAULTS.resize, subject.interpolation or DEFAULTS.interpolation)
