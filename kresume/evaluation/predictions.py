"""Predicts the classes of pictures that nobody has labelled yet: `kresume predict`.

    found = predict("runs/2-signs", ["inbox/"], top_k=3)
    found.rows[0].label, found.rows[0].score, found.unreadable

Each picture is read and decoded as in training, once, in threads ahead of the model, and dropped after its row is written:
memory does not grow with the number of pictures. Decoded pictures are not kept in the cache, because these are seen once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

import numpy as np

from kresume.addresses import as_address
from kresume.errors import ImagesError, UsageError
from kresume.evaluation.opened import Advance, ModelAnswers, Opened, open_model
from kresume.evaluation.prediction_rows import Row, as_text, format_of, writing
from kresume.images.read_ahead import Read, read_ahead
from kresume.images.sorted_places import check_place
from kresume.images.sorting import SortedFolder
from kresume.images.sources.class_folders import describe_left_out
from kresume.images.sources.records import parse_features
from kresume.images.unlabelled import Asked, list_unlabelled
from kresume.models.load import Subject
from kresume.options.resolve import path_of, several
from kresume.options.settings import DEFAULTS, MIN_SCORE
from kresume.reporter import Reporter
from kresume.runs import Run
from kresume.spelling import as_argument, counted, option, spelled

NAMED = 10
"""Unreadable files that the summary names; every one has a row with the reason."""


@dataclass(frozen=True)
class Predictions:
    """Predictions of one model.

    Attributes:
        model: its path.
        classes: names of its outputs, in order.
        images: pictures that were predicted.
        unreadable: the first pictures that could not be read, each with its reason.
        failures: how many could not be read.
        rows: a row per picture, in the order of the sources; empty if they were written to a file.
        sorted: what was done with the pictures, in words; empty without `sort`.
        notes: notes for the user.
        top_k: how many classes each row has.
    """

    model: str
    classes: tuple[str, ...]
    images: int
    unreadable: tuple[tuple[str, str], ...]
    failures: int
    rows: tuple[Row, ...] = ()
    sorted: str = ""
    notes: tuple[str, ...] = ()
    top_k: int = 1

    @property
    def summary(self) -> tuple[str, ...]:
        """Returns what the command says at its end, in lines."""
        lines = [*self.notes, f"{counted(self.images, 'picture')} predicted by {self.model}"]
        lines += [f"cannot be read: {path}: {reason}" for path, reason in self.unreadable]
        if self.failures > len(self.unreadable):
            lines.append(f"… and {self.failures - len(self.unreadable):,} more; each has a row with the reason")
        return tuple([*lines, self.sorted] if self.sorted else lines)

    def as_dict(self) -> dict[str, Any]:
        """Returns the JSON form."""
        return {
            "model": self.model,
            "classes": list(self.classes),
            "images": self.images,
            "failures": self.failures,
            "rows": [row.as_dict() for row in self.rows],
            "sorted": self.sorted,
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        return as_text(self.rows, self.top_k)


@spelled(as_argument)
def predict(
    checkpoint: str | Path | Run,
    paths: str | Path | Sequence[str | Path],
    *,
    top_k: int = 1,
    output: str | Path | None = None,
    format: str | None = None,
    overwrite: bool = False,
    sort: str | Path | None = None,
    min_score: float = MIN_SCORE,
    link: bool = False,
    model: Any = None,
    classes: Sequence[str] | None = None,
    pixels: str | None = None,
    image_size: int | str | Sequence[int] | None = None,
    axes: str | None = None,
    resize: str | None = None,
    interpolation: str | None = None,
    batch_size: int = DEFAULTS.batch_size,
    backend: str | None = None,
    device: str | None = None,
    imports: str | Path | Sequence[str | Path] = (),
    map_file: str | None = None,
    trust: bool = False,
    feature: str | Sequence[str] = (),
    stream: IO[bytes] | None = None,
    reporter: Reporter | None = None,
) -> Predictions:
    """Predicts the classes of pictures with a run's result, a checkpoint or a SavedModel.

    Args:
        checkpoint: as for `evaluate`.
        paths: pictures, folders at any depth (with or without class folders), lists with a column `path`, tar and zip
            archives, TFRecord files, manifests.
        top_k: how many classes each row has.
        output: a file for the rows, also at an address; it appears when it is complete.
        format: `"csv"`, `"jsonl"` or `"parquet"`; None for the ending of `output`, else `"csv"`.
        overwrite: replace `output`.
        sort: a folder, also at an address, into whose class folders the pictures are copied.
        min_score: the lowest score with which a picture goes into a class folder; others go to `unsure/`.
        link: link the files instead of copying them.
        model: the architecture, for a checkpoint without one: a name as for `--model`, or a Keras model, which stays as it is.
        classes: names of the outputs in order, for a checkpoint that does not record them.
        pixels: the pixel convention, for a checkpoint that does not record it.
        image_size: a number of pixels or `(height, width)`, for a model that accepts any.
        axes: order of the axes of the model's input, if its shape does not determine it.
        resize: how pictures get the model's size, for a checkpoint that does not record it.
        interpolation: how resizing samples pixels, for a checkpoint that does not record it.
        batch_size: images per prediction.
        backend: `"tensorflow"` or `"jax"`.
        device: `"auto"`, `"cpu"`, `"gpu"` or `"tpu"`.
        imports: Python files that register custom objects.
        map_file: YAML that maps the arrays of a PyTorch state dict to variables.
        trust: run the code of the checkpoint's Lambda layers.
        feature: names of TFRecord features, as `--feature` of `train`.
        stream: a binary stream for the rows, as they come, instead of `output`.
        reporter: shows progress.

    Returns:
        The predictions, with a row per picture unless they were written to `output` or `stream`.

    Raises:
        KresumeError: the model or a source cannot be read, no picture can, an option is missing or wrong, or a file exists.
    """
    reporter = reporter or Reporter(quiet=True)
    given = several("paths", paths)
    if not given:
        raise UsageError(f"{option('paths')}: an empty list names no picture")
    kind = format_of(None if output is None else as_address(output), format, overwrite=overwrite)
    _check(top_k, min_score, batch_size, sort, link)
    asked = list_unlabelled(given, reporter, parse_features(several("feature", feature)))
    path = path_of(checkpoint)
    subject = Subject.of(
        path, model=model, classes=classes, pixels=pixels, image_size=image_size, axes=axes, resize=resize,
        interpolation=interpolation, imports=imports, map_file=map_file, trust=trust,
    )  # fmt: skip
    opened = open_model(subject, batch_size=batch_size, reporter=reporter, backend=backend, device=device)
    folder = None
    if sort is not None:
        folder = SortedFolder(sort, opened.classes, link)
        folder.prepare()
    job = _Job(asked, opened, min(top_k, len(opened.classes)), folder, min_score)
    with reporter.progress("predicting", asked.total, "images") as advance:
        rows = job.rows(advance)
        kept: tuple[Row, ...] = ()
        if output is None and stream is None:
            kept = tuple(rows)
        else:
            first = tuple(islice(rows, 1))  # a model that cannot be read leaves no header behind
            with writing(kind, job.top_k, output, stream) as write:
                for row in chain(first, rows):
                    write(row)
    if not job.images:
        raise ImagesError(
            f"none of the {job.failures:,} pictures can be read, the first is {job.unreadable[0][0]}: {job.unreadable[0][1]}"
        )
    notes = (*opened.notes, *describe_left_out(asked.left_out, ", ".join(map(str, given))))
    said = str(folder) if folder is not None else ""
    return Predictions(
        path, opened.classes, job.images, tuple(job.unreadable), job.failures, kept, said, notes, job.top_k
    )


def _check(top_k: int, min_score: float, batch_size: int, sort: str | Path | None, link: bool) -> None:
    if top_k < 1 or batch_size < 1:
        wrong = option("top-k", top_k) if top_k < 1 else option("batch-size", batch_size)
        raise UsageError(f"{wrong}: give a whole number of at least 1")
    if not 0 <= min_score <= 1:
        raise UsageError(f"{option('min-score', min_score)}: give a number from 0 to 1")
    if sort is not None:
        check_place(sort, links=link)
    if link and sort is None:
        raise UsageError(f"{option('link', True)} says how {option('sort', 'FOLDER')} puts pictures there: give both")


class _Job:
    """One pass over the pictures.

    Args:
        asked: the pictures.
        opened: the model.
        top_k: classes per row.
        folder: where to sort them; None for nowhere.
        min_score: the lowest score of a picture in a class folder.
    """

    def __init__(self, asked: Asked, opened: Opened, top_k: int, folder: SortedFolder | None, min_score: float) -> None:
        self.asked = asked
        self.opened = opened
        self.top_k = top_k
        self.folder = folder
        self.min_score = min_score
        self.images = 0
        self.failures = 0
        self.unreadable: list[tuple[str, str]] = []

    def rows(self, advance: Advance) -> Iterator[Row]:
        """Yields the row of each picture, in order, as it is predicted."""
        reads = read_ahead(self.asked.items(), self.opened.spec, keeps_data=self.folder is not None)
        for part in self._parts(reads):
            good = [read for read in part if not read.reason]
            answers = self.opened.answer(good, advance) if good else None
            index = 0
            for read in part:
                if read.reason or answers is None:
                    yield self._unreadable(read, read.reason)
                    continue
                yield self._row(read, answers, index)
                index += 1
            advance(len(part) - len(good))

    def _parts(self, reads: Iterable[Read]) -> Iterator[list[Read]]:
        """Groups pictures for the model; unreadable ones stay in their place."""
        part: list[Read] = []
        good = size = 0
        for read in reads:
            part.append(read)
            if read.reason:
                continue
            good += 1
            size += len(read.data or b"") + (0 if read.picture is None else read.picture.nbytes)
            if good == self.opened.most or size >= self.opened.most_bytes:
                yield part
                part, good, size = [], 0, 0
        if part:
            yield part

    def _row(self, read: Read, answers: ModelAnswers, index: int) -> Row:
        if index in answers.failed:
            return self._unreadable(read, answers.failed[index])
        chosen = int(answers.chosen[index])
        if chosen < 0:
            return self._unreadable(read, "the model chose a class that it does not name")
        self.images += 1
        label = self.opened.classes[chosen]
        score: float | None = None
        top: list[tuple[str, float | None]] = [(label, None)]
        if answers.probabilities is not None:
            values = answers.probabilities[index]
            score = float(values[chosen])
            best = [int(each) for each in np.argsort(-values, kind="stable") if each != chosen]
            top = [(self.opened.classes[each], float(values[each])) for each in [chosen, *best][: self.top_k]]
        if self.folder is not None:
            sure = score is None or score >= self.min_score
            self.folder.put(read, label if sure else None)
        return Row(self.asked.shown(read.item), label, score, tuple(top))

    def _unreadable(self, read: Read, reason: str) -> Row:
        row = Row(self.asked.shown(read.item), "", None, (), reason)
        self.failures += 1
        if len(self.unreadable) < NAMED:
            self.unreadable.append((row.path, reason))
        return row
