"""Opens any model that answers pictures with classes: a run, a checkpoint, a SavedModel.

    model = open_model(Subject("runs/2-signs"), batch_size=32, reporter=reporter)
    answers = model.answer(reads, advance)    # of at most `model.most` pictures, which `read_ahead(items, model.spec)` gave
    answers.probabilities, model.classes

A run or checkpoint is a model in this process; a SavedModel runs in a process with TensorFlow alone, through its signature.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from kresume.addresses import is_remote
from kresume.class_names import join_classes
from kresume.errors import UsageError
from kresume.evaluation.against import PART, array_input, describe_signature, pixels_note, served_signature
from kresume.evaluation.opening import Served, keras_model_among, read_model, select_for
from kresume.evaluation.sampling import assumed_spec, check_resized
from kresume.evaluation.served import Prediction, plain_reason, predict_saved_model
from kresume.images import inputs
from kresume.images.read_ahead import Read
from kresume.images.sources.found import Found
from kresume.models.load import Loaded, Subject, describe_assumed
from kresume.reporter import Reporter
from kresume.runtimes.signatures import Signature
from kresume.spelling import option
from kresume.tasks.single_label import SINGLE_LABEL
from kresume.tasks.task import Head
from kresume.values.decode_spec import DecodeSpec

SERVED_IMAGES, SERVED_BYTES = 8192, 256 * 2**20
"""Pictures, and their bytes, that a SavedModel's process answers at once: starting the process takes seconds."""


Advance = Callable[[int], None]
"""Called with the number of pictures that are done."""


@dataclass(frozen=True)
class ModelAnswers:
    """The answers of a model to some pictures.

    Attributes:
        chosen: `(n,)` class indices; -1 where the model could not read the picture, or chose a class of its own.
        probabilities: `(n, classes)`; None if it gives labels without scores.
        failed: index of a picture -> why the model could not read it.
    """

    chosen: np.ndarray
    probabilities: np.ndarray | None
    failed: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Opened:
    """A model that is ready to answer.

    Attributes:
        name: its path.
        classes: names of the outputs, in order.
        spec: how pictures are decoded for it; None if it takes the bytes of files.
        answer: returns its answers to pictures, and says how many are done.
        most: pictures that `answer` takes at once.
        most_bytes: bytes of pictures, or of files, that `answer` takes at once.
        notes: notes for the user on how it was read.
    """

    name: str
    classes: tuple[str, ...]
    spec: DecodeSpec | None
    answer: Callable[[Sequence[Read], Advance], ModelAnswers]
    most: int
    most_bytes: int
    notes: tuple[str, ...] = ()


def open_model(
    subject: Subject,
    *,
    batch_size: int,
    reporter: Reporter,
    backend: str | None = None,
    device: str | None = None,
) -> Opened:
    """Opens a model.

    Args:
        subject: the model, with facts that it does not record.
        batch_size: pictures per prediction of a model in this process.
        reporter: told how a SavedModel is run.
        backend: `"tensorflow"` or `"jax"`; None for the run's, else the default.
        device: `"auto"`, `"cpu"`, `"gpu"` or `"tpu"`.

    Raises:
        KresumeError: it cannot be read, or a fact is missing; the message names the option to give.
    """
    select_for(keras_model_among({subject.checkpoint: subject.model}), backend, device, reporter)
    model = read_model(subject, reporter)
    if isinstance(model, Loaded) or model.labels is not None:
        check_resized(subject.resizing, [model], 0)
    return _served(model, reporter) if isinstance(model, Served) else _live(model, batch_size)


def _live(loaded: Loaded, batch_size: int) -> Opened:
    convert = inputs.to_input(loaded.card.pixels, loaded.card.input)
    head, classes = loaded.loss.head, loaded.card.classes

    def answer(reads: Sequence[Read], advance: Advance) -> ModelAnswers:
        pictures = [np.asarray(read.picture) for read in reads]
        # One shape for every batch: another one would be compiled again.
        padded = np.stack([*pictures, *[pictures[-1]] * (batch_size - len(pictures))])
        outputs = np.asarray(loaded.model.predict_on_batch(np.asarray(convert(padded))))[: len(reads)]
        found = head.probabilities(np.asarray(outputs, np.float64))
        missing = len(classes) - found.shape[1]  # classes that the model has no output for yet
        advance(len(reads))
        found = np.pad(found, ((0, 0), (0, missing))) if missing > 0 else found
        return ModelAnswers(head.task.answers(found), found)

    notes = tuple(note for note in (*loaded.notes, loaded.assumed) if note)
    return Opened(loaded.subject.checkpoint, classes, loaded.spec, answer, batch_size, 2**62, notes)


def _served(served: Served, reporter: Reporter) -> Opened:
    folder, subject, labels = served.folder, served.subject, served.labels
    if labels is None:
        raise UsageError(
            f"{folder} does not record the names of its classes: give them in their order with "
            f"{option('classes', join_classes(('a', 'b', 'c')))}"
        )
    signature, single = served_signature(folder, subject, len(labels))
    reporter.say(
        f"running {folder} with TensorFlow alone, through its {describe_signature(signature)}, up to {SERVED_IMAGES:,} "
        "pictures at a time"
    )
    if signature.input.kind == "bytes":
        return Opened(
            subject.checkpoint,
            labels,
            None,
            lambda reads, advance: _of(_by_bytes(folder, signature, labels, reads, single, advance)),
            SERVED_IMAGES,
            SERVED_BYTES,
        )
    spec, convert, shape, dtype = array_input(folder, signature, subject)

    def answer(reads: Sequence[Read], advance: Advance) -> ModelAnswers:
        with tempfile.TemporaryDirectory(prefix="kresume-") as name:
            path = Path(name) / "images.npy"
            array: Any = np.lib.format.open_memmap(path, "w+", dtype, (len(reads), *shape))
            for start in range(0, len(reads), PART):
                pictures = np.stack([np.asarray(read.picture) for read in reads[start : start + PART]])
                array[start : start + PART] = np.asarray(convert(pictures))
            array.flush()
            del array
            request = {"array": str(path)}
            return _of(predict_saved_model(folder, signature, labels, labels, request, single=single, advance=advance))

    sampled = () if assumed_spec(served, len(labels)) is None else (describe_assumed(subject, spec),)
    notes = (*pixels_note(folder, signature, subject), *sampled)
    return Opened(subject.checkpoint, labels, spec, answer, SERVED_IMAGES, SERVED_BYTES, notes)


def _by_bytes(
    folder: Path,
    signature: Signature,
    labels: tuple[str, ...],
    reads: Sequence[Read],
    single: Head | None,
    advance: Advance,
) -> Prediction:
    """Runs a SavedModel that takes the bytes of files; members of archives are written to files first."""
    with tempfile.TemporaryDirectory(prefix="kresume-") as name:
        files = []
        for index, read in enumerate(reads):
            found = read.item
            if isinstance(found, Found) and found.length < 0 and not found.coding and not is_remote(found.path):
                files.append(found.path)
                continue
            copy = Path(name) / f"picture-{index:06d}"
            copy.write_bytes(read.data or b"")
            files.append(str(copy))
        return predict_saved_model(folder, signature, labels, labels, {"files": files}, single=single, advance=advance)


def _of(prediction: Prediction) -> ModelAnswers:
    scores = prediction.scores
    chosen = prediction.indices if scores is None else SINGLE_LABEL.answers(scores)
    failed = {
        index: f"the model cannot read it ({plain_reason(reason)})" for index, reason in prediction.failed.items()
    }
    return ModelAnswers(np.where(np.isin(np.arange(len(chosen)), list(failed)), -1, chosen), scores, failed)
