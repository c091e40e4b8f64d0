"""Scores a run or a checkpoint on folders of images: `kresume eval`.

    evaluation = evaluate("runs/2-signs", data=["signdigits/eval"])
    evaluation.as_dict()["all"]["accuracy"]

Every image is predicted once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from kresume import runs
from kresume.backend.selection import loading
from kresume.checkpoints.read import read_checkpoint
from kresume.checkpoints.run import find_run
from kresume.class_names import join_classes, names_of
from kresume.errors import ImagesError
from kresume.evaluation.against import answers_of, served_folder
from kresume.evaluation.caches import open_cache
from kresume.evaluation.class_order import describe_order, judge_order
from kresume.evaluation.keras_facts import has_keras_model
from kresume.evaluation.score import score
from kresume.images import merging
from kresume.images.cache import Cache
from kresume.images.collect import Sources, collect, list_sources
from kresume.images.manifest import Manifest
from kresume.images.order import permutation
from kresume.images.reader import PictureReader
from kresume.images.scans import remembered
from kresume.images.sources.records import parse_features
from kresume.models.load import Loaded, Subject, load, select_backend
from kresume.options.settings import DEFAULTS
from kresume.reporter import Reporter
from kresume.runtimes.signatures import labels_of
from kresume.spelling import as_argument, option, spelled
from kresume.tasks.task import Task
from kresume.values.decode_spec import DecodeSpec


@dataclass(frozen=True)
class Evaluation:
    """Scores of one model on one set of images.

    Attributes:
        model: the path of the scored model.
        data: the sources of the images.
        scores: `{"all": {...}, "old": {...}, "new": {...}, "classes": {NAME: {...}}}`.
        quarantined: number of files that could not be read.
        note: a note for the user on how the model was scored, or an empty string.
        against: the scores of another model on the same images, if requested.
    """

    model: str
    data: tuple[str, ...]
    scores: Mapping[str, Any]
    quarantined: int
    note: str = ""
    against: Evaluation | None = None

    def as_dict(self) -> dict[str, Any]:
        """Returns the JSON form that `eval --json` prints."""
        facts = {
            **self.scores,
            "model": self.model,
            "data": list(self.data),
            "quarantined": self.quarantined,
        }
        if self.note:
            facts["note"] = self.note
        return facts if self.against is None else {**facts, "against": self.against.as_dict()}

    def __str__(self) -> str:
        lines = [f"{self.model} on {', '.join(self.data)}"]
        lines += [f"  {line}" for line in self._lines()]
        if self.quarantined:
            lines.append(f"  {self.quarantined:,} files could not be read")
        if self.note:
            lines.append(f"  note: {self.note}")
        if self.against is not None:
            lines += ["", str(self.against), "", *_differences(self.against, self)]
        return "\n".join(lines)

    def _lines(self) -> list[str]:
        lines = []
        for name in ("all", "old", "new"):
            subset = self.scores[name]
            if subset["images"]:
                loss = "no loss (labels only)" if subset["loss"] is None else f"loss {subset['loss']:.4f}"
                lines.append(
                    f"{name:<5}{100 * subset['accuracy']:6.1f} %  of {subset['images']:,} images, {loss}, f1 {subset['f1']:.3f}"
                )
        width = max(len(name) for name in self.scores["classes"])
        for name, facts in self.scores["classes"].items():
            if facts["images"]:
                lines.append(f"{name:<{width}}  recall {100 * facts['recall']:5.1f} %  of {facts['images']:,}")
        return lines


def _differences(before: Evaluation, after: Evaluation) -> list[str]:
    """Lists the changes from one evaluation to another, in percentage points."""

    def line(name: str, metric: str, old: float, new: float) -> str:
        return f"  {name}  {metric} {100 * old:5.1f} % -> {100 * new:5.1f} %  ({100 * (new - old):+.1f} points)"

    lines = [f"{before.model} -> {after.model}"]
    for name in ("all", "old", "new"):
        if after.scores[name]["images"]:
            lines.append(line(name, "accuracy", before.scores[name]["accuracy"], after.scores[name]["accuracy"]))
    for name, facts in after.scores["classes"].items():
        if facts["images"] and facts["recall"] != before.scores["classes"][name]["recall"]:
            lines.append(line(name, "recall", before.scores["classes"][name]["recall"], facts["recall"]))
    return lines


@spelled(as_argument)
def evaluate(
    checkpoint: str | Path | runs.Run,
    data: str | Path | Sequence[str | Path],
    *,
    model: str | None = None,
    classes: Sequence[str] | None = None,
    pixels: str | None = None,
    image_size: tuple[int, int] | None = None,
    axes: str | None = None,
    batch_size: int = DEFAULTS.batch_size,
    backend: str | None = None,
    device: str | None = None,
    cache: str | None = None,
    imports: Sequence[str] = (),
    map_file: str | None = None,
    trust: bool = False,
    against: str | Path | runs.Run | None = None,
    feature: Sequence[str] = (),
    reporter: Reporter | None = None,
) -> Evaluation:
    """Scores a run's result, a checkpoint or a SavedModel on images.

    Args:
        checkpoint: `RUN`, `RUN@last`, `RUN@best`, `RUN@STEP`, a checkpoint of any known format, or a SavedModel (or the
            folder of its versions), which runs with only TensorFlow through its own signature.
        data: folders with one folder per class.
        model: the architecture, for a checkpoint without one.
        classes: names of the outputs in order, for a checkpoint that does not record them.
        pixels: the pixel convention, for a checkpoint that does not record it.
        image_size: `(height, width)` in pixels, for a model that accepts any.
        axes: order of the axes of the model's input, if its shape does not determine it, for example `"chw"`.
        batch_size: images per prediction.
        backend: `"tensorflow"` or `"jax"`.
        device: `"auto"`, `"cpu"`, `"gpu"` or `"tpu"`.
        cache: `"off"`, or the folder of the cache of decoded images.
        imports: Python files that register custom objects.
        map_file: YAML that maps the arrays of a PyTorch state dict to variables, as `--map` of `train`.
        trust: run the code of the checkpoint's Lambda layers.
        feature: names of TFRecord features, as `--feature` of `train`: `encoded=NAME`, `label=NAME`, `text=NAME`.
        against: another model to compare with on the same images; images of classes that it does not have count as
            wrong.
        reporter: shows progress.

    Raises:
        KresumeError: the model or the images cannot be read, or an option is missing or wrong.
    """
    reporter = reporter or Reporter(quiet=True)
    path = _path_of(checkpoint)
    other = _path_of(against) if against is not None else None
    sources = [data] if isinstance(data, (str, Path)) else list(data)
    shown = tuple(str(source) for source in sources)
    listed = list_sources(reporter, data=shown, features=parse_features(tuple(feature)))
    if (live := _with_keras(path, other, model)) is not None:
        with loading(reporter):
            select_backend(live, backend, device)
    given = Subject(path, model, names_of(classes), pixels, image_size, tuple(imports), map_file, trust, axes)
    with reporter.waiting(f"reading {path}"):
        loaded = _load(given, other, listed.classes) if served_folder(path) is None else None
    images = _collect(given, loaded, listed, cache, reporter)
    compared = None
    if other is not None:
        compared = _score_other(replace(given, checkpoint=other, **_own(other)), images, shown, batch_size, reporter)
    if loaded is None:
        own = _score_other(given, images, shown, batch_size, reporter)
    else:
        own = _score_loaded(loaded, images, shown, batch_size, reporter)
    return replace(own, against=compared)


@dataclass(frozen=True)
class _Images:
    """The images of an evaluation.

    Attributes:
        manifest: one row each, in the scored model's classes.
        generation: images with a lower origin are old.
        spec: how they are decoded for the scored model.
        cache: the cache of decoded pictures; None if it is off, or for a SavedModel.
        where: `--cache`, for the other model.
        quarantined: number of files that could not be read.
    """

    manifest: Manifest
    generation: int
    spec: DecodeSpec
    cache: Cache | None
    where: str | None
    quarantined: int

    def score(self, task: Task, probabilities: np.ndarray, answers: np.ndarray | None = None) -> dict[str, Any]:
        """Computes the scores of predictions, see `kresume.evaluation.score.score`."""
        manifest = self.manifest
        return score(
            task,
            probabilities,
            manifest.labels,
            origins=manifest.origins,
            generation=self.generation,
            classes=manifest.classes,
            answers=answers,
        )


def _load(given: Subject, other: str | None, listed: Sequence[str]) -> Loaded:
    """Loads the model to score. `--pixels` and `--axes` apply to a model that does not record them."""
    if other is not None and (given.pixels is not None or given.axes is not None) and _says(given.checkpoint):
        given = replace(given, pixels=None, axes=None)
    return load(given, fallback_classes=listed)


def _collect(given: Subject, loaded: Loaded | None, listed: Sources, cache: str | None, reporter: Reporter) -> _Images:
    """Reads the images, in the scored model's classes.

    Raises:
        ImagesError: there is a class folder that the model does not know, or an image source cannot be read.
    """
    if loaded is not None:
        names, spec, run = loaded.card.classes, loaded.spec, loaded.run
    else:
        folder = served_folder(given.checkpoint)
        names = given.classes or (labels_of(folder) if folder else None) or listed.classes
        spec, run = UNDECODED, None
    listed = listed.named(names)
    unknown = sorted({found.label for listing in listed for found in listing.files} - set(names))
    if unknown:
        raise ImagesError(
            f"class folders that are not classes of {given.checkpoint}: {', '.join(unknown)}; its classes are "
            f"{', '.join(names)}"
        )
    store = open_cache(spec, cache) if loaded is not None else None
    collected = collect(listed, spec, store, reporter)
    merge = merging.merge(None, collected.data, None, None, classes=names, val_split=None, generation=0)
    manifest = _with_origins(merge.manifest, run)
    return _Images(manifest, run.generation if run else 0, spec, store, cache, len(collected.quarantine))


def _score_other(
    subject: Subject, images: _Images, shown: tuple[str, ...], batch_size: int, reporter: Reporter
) -> Evaluation:
    """Scores a SavedModel, or the model that is compared with."""
    answers = answers_of(subject, images.manifest, reporter, batch_size=batch_size, cache=images.where)
    scores = images.score(answers.task, answers.probabilities, answers.indices)
    return Evaluation(subject.checkpoint, shown, answers.completed(scores), images.quarantined, answers.note)


def _score_loaded(
    loaded: Loaded, images: _Images, shown: tuple[str, ...], batch_size: int, reporter: Reporter
) -> Evaluation:
    """Scores a model that Keras runs."""
    from kresume.evaluation.live import LiveScorer  # imports Keras, which selects the backend

    manifest = images.manifest
    source = PictureReader(manifest, images.spec, images.cache)
    scorer = LiveScorer(loaded.model, source, manifest, loaded.card, loaded.loss, batch_size, images.generation)
    with reporter.progress("scoring", len(manifest), "images") as advance:
        probabilities = scorer.probabilities(np.arange(len(manifest)), advance)
    notes = [*loaded.notes]
    if loaded.subject.classes is None and loaded.state.card is None:
        notes.append(_doubt(scorer.task.answers(probabilities), manifest.labels, loaded.card.classes))
    return Evaluation(
        loaded.subject.checkpoint,
        shown,
        images.score(scorer.task, probabilities),
        images.quarantined,
        "; ".join(note for note in notes if note),
    )


def _doubt(predicted: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> str:
    """Returns a note if the sorted class folders may not be the outputs' order."""
    sample = permutation(0, 0, len(labels))[:DOUBTED]
    predicted, labels = predicted[sample], labels[sample]
    found = judge_order({"": predicted}, labels, classes)
    if found.order is not None:
        better = describe_order(found, classes, f"{len(labels)} images")
        given = option("classes", join_classes(found.order))
        return f"its outputs are not in the order of the sorted class folders: {better}: give {given}"
    if found.doubtful:
        return (
            "it does not name its outputs, and these images do not show whether the sorted class folders are their order: "
            f"give the order with {option('classes', 'a,b,c')}"
        )
    return ""


DOUBTED = 512
"""Number of images on which the class order is tested; with a thousand classes, all images would take minutes."""
UNDECODED = DecodeSpec(64, 64)
"""A placeholder for the size of a SavedModel, which decodes by itself: files are only hashed and their headers read."""


def _path_of(checkpoint: str | Path | runs.Run) -> str:
    return str(checkpoint.path if isinstance(checkpoint, runs.Run) else checkpoint)


def _with_keras(path: str, other: str | None, model: str | None) -> str | None:
    """Returns the path of a model that needs Keras, or None.

    That is the first model that Keras runs, else the first SavedModel with a Keras model to read facts from.
    """
    both = {path: model, **({other: None} if other is not None and other != path else {})}
    folders = {each: served_folder(each) for each in both}
    asked = (each for each, folder in folders.items() if folder is not None and has_keras_model(folder, both[each]))
    return next((each for each, folder in folders.items() if folder is None), None) or next(asked, None)


def _says(path: str) -> bool:
    """Returns True if a checkpoint records its pixel convention."""
    return find_run(path) is not None or read_checkpoint(path).card is not None


def _own(other: str) -> dict[str, Any]:
    """Returns the options to clear for the other model: it records these facts itself."""
    folder = served_folder(other)
    if folder is not None:
        return {"model": None, **({"classes": None} if labels_of(folder) else {})}
    return (
        {"model": None, "classes": None, "pixels": None, "axes": None}
        if read_checkpoint(other).card is not None
        else {}
    )


def _with_origins(manifest: Manifest, run: runs.Run | None) -> Manifest:
    """Sets origins by content from the run's manifest.

    Images that the run does not have are new.
    """
    if run is None:
        return manifest
    known = remembered(run.path)
    order = np.argsort(known.sha256s)
    found = np.searchsorted(known.sha256s, manifest.sha256s, sorter=order)
    found = order[np.minimum(found, len(order) - 1)]
    origins = np.where(known.sha256s[found] == manifest.sha256s, known.origins[found], run.generation)
    return manifest.with_origins(origins)
