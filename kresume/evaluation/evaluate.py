"""Scores a run, a checkpoint or a SavedModel on folders of images: `kresume eval`.

    evaluation = evaluate("runs/2-signs", data=["signdigits/eval"], against="runs/1-signs")
    evaluation.as_dict()["all"]["accuracy"], evaluation.verdicts["all"].p

Every image is predicted once by each model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from kresume import runs
from kresume.checkpoints.read import read_checkpoint
from kresume.checkpoints.run import find_run, named
from kresume.class_names import join_classes, names_of
from kresume.errors import CheckpointError, ImagesError
from kresume.evaluation.against import Predicted, predict
from kresume.evaluation.caches import open_cache
from kresume.evaluation.class_order import describe_order, judge_order
from kresume.evaluation.evaluation import Evaluation
from kresume.evaluation.gates import Gates
from kresume.evaluation.judging import check_conditions, check_gates, failures_of
from kresume.evaluation.measure import by_generation, measure
from kresume.evaluation.opening import Served, keras_model_among, read_model, select_for, served_folder
from kresume.evaluation.own_metrics import OwnMetric, read_metrics
from kresume.images import merging
from kresume.images.collect import Sources, collect, list_sources
from kresume.images.manifest import Manifest
from kresume.images.order import permutation
from kresume.images.scans import remembered
from kresume.images.sources.records import parse_features
from kresume.models.load import Loaded, Subject
from kresume.models.own_code import is_function
from kresume.options.settings import DEFAULTS
from kresume.reporter import Reporter
from kresume.runtimes.signatures import labels_of
from kresume.spelling import as_argument, option, spelled
from kresume.values.decode_spec import DecodeSpec


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
    metric: str | Sequence[str] = (),
    require: str | Sequence[str] = (),
    max_forgetting: float | None = None,
    max_class_drop: float | None = None,
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
        metric: further metrics: names of Keras's, or `FILE.py:FUNCTION`, called as `function(labels, probabilities)` with
            `(images,)` class indices and `(images, classes)` probabilities.
        require: conditions on the scores, for example `"all.accuracy>=0.93"`. Those that fail are in `failed`.
        max_forgetting: by how many points the accuracy on old images may be below that of `against`. Without images that
            the run knows it is judged on all images of classes that `against` has.
        max_class_drop: by how many points the recall of a class may be below that of `against`.
        reporter: shows progress.

    Returns:
        The evaluation; `str()` describes it, `failed` lists the gates that it fails.

    Raises:
        KresumeError: the model or the images cannot be read, or an option is missing or wrong.
    """
    reporter = reporter or Reporter(quiet=True)
    path = _path_of(checkpoint)
    other = _path_of(against) if against is not None else None
    gates = Gates.of(_listed(require), max_forgetting, max_class_drop, unbounded=_listed(metric))
    check_gates(gates, other)
    sources = [data] if isinstance(data, (str, Path)) else list(data)
    shown = tuple(str(source) for source in sources)
    listed = list_sources(reporter, data=shown, features=parse_features(tuple(feature)))
    live = keras_model_among({path: model} | ({other: None} if other not in {None, path} else {}))
    of_keras = any(not is_function(each) for each in _listed(metric))
    select_for(live or (path if of_keras else None), backend, device, reporter)
    metrics = read_metrics(_listed(metric))
    given = Subject(path, model, names_of(classes), pixels, image_size, tuple(imports), map_file, trust, axes)
    opened = read_model(_of_scored(given, other), reporter, listed.classes)
    images = _collect(opened, listed, cache, reporter)
    check_conditions(gates, images.manifest, images.generation, metrics)
    job = _Job(images, shown, batch_size, metrics, reporter)
    own = job.evaluate(opened, scored=True)
    if other is None:
        return replace(own, failed=failures_of(gates, own, None))
    against_it = replace(given, checkpoint=other, **_own(other))
    compared = job.evaluate(read_model(against_it, reporter, images.manifest.classes), scored=False)
    own = replace(own, against=compared)
    return replace(own, failed=failures_of(gates, own, compared, known=images.known))


def _listed(given: str | Sequence[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)


@dataclass(frozen=True)
class _Images:
    """The images of an evaluation.

    Attributes:
        manifest: one row each, in the scored model's classes.
        generation: images with a lower origin are old.
        spec: how they are decoded for the scored model.
        where: `--cache`.
        quarantined: number of files that could not be read.
        known: `(n,) bool`, which images the scored run has.
    """

    manifest: Manifest
    generation: int
    spec: DecodeSpec
    where: str | None
    quarantined: int
    known: np.ndarray


def _of_scored(given: Subject, other: str | None) -> Subject:
    """Returns the model to score.

    With two models, `--pixels` and `--axes` apply to one that does not record them.
    """
    told = given.pixels is not None or given.axes is not None
    if other is not None and told and served_folder(given.checkpoint) is None and _says(given.checkpoint):
        return replace(given, pixels=None, axes=None)
    return given


def _collect(opened: Loaded | Served, listed: Sources, cache: str | None, reporter: Reporter) -> _Images:
    """Reads the images, in the scored model's classes.

    Raises:
        ImagesError: there is a class folder that the model does not know, or an image source cannot be read.
    """
    if isinstance(opened, Served):
        names, spec, run = opened.labels or listed.classes, UNDECODED, None
    else:
        names, spec, run = opened.card.classes, opened.spec, opened.run
    listed = listed.named(names)
    unknown = sorted({found.label for listing in listed for found in listing.files} - set(names))
    if unknown:
        raise ImagesError(
            f"class folders that are not classes of {opened.subject.checkpoint}: {', '.join(unknown)}; its classes are "
            f"{', '.join(names)}"
        )
    store = None if isinstance(opened, Served) else open_cache(spec, cache)
    collected = collect(listed, spec, store, reporter)
    merge = merging.merge(None, collected.data, None, None, classes=names, val_split=None, generation=0)
    manifest, known = _with_origins(merge.manifest, run)
    return _Images(manifest, run.generation if run else 0, spec, cache, len(collected.quarantine), known)


@dataclass(frozen=True)
class _Job:
    """Scores models on the same images.

    Attributes:
        images: the images.
        shown: their sources, for the user.
        batch_size: images per prediction.
        metrics: further metrics.
        reporter: shows progress.
    """

    images: _Images
    shown: tuple[str, ...]
    batch_size: int
    metrics: Sequence[OwnMetric]
    reporter: Reporter

    def evaluate(self, model: Loaded | Served, *, scored: bool) -> Evaluation:
        """Scores a model.

        Args:
            model: from `read_model`.
            scored: False for the model that is compared with.
        """
        images = self.images
        found = predict(model, images.manifest, self.reporter, batch_size=self.batch_size, cache=images.where)
        if scored and isinstance(model, Loaded) and model.subject.classes is None and model.state.card is None:
            chosen = found.task.answers(found.probabilities) if found.chosen is None else found.chosen
            doubt = _doubt(chosen, images.manifest.labels, model.card.classes)
            found = replace(found, note="; ".join(note for note in (found.note, doubt) if note))
        return self._measured(model.subject.checkpoint, found)

    def _measured(self, model: str, found: Predicted) -> Evaluation:
        images = self.images
        broken = np.nonzero(~np.isfinite(found.probabilities).all(axis=1))[0]
        if len(broken):
            name = images.manifest.found(broken[:1])[0].name
            raise CheckpointError(
                f"{model} predicts values that are not numbers for {len(broken):,} of {len(images.manifest):,} images, the "
                f"first is {name}: its weights are broken, or {option('pixels')} are not those that it was trained with; "
                "take an earlier checkpoint"
            )
        measured = measure(found, images.manifest, images.generation, self.metrics, self.reporter)
        notes = [found.note, _trained_on(model, images.manifest)]
        if found.lacks:
            notes.append(f"it does not have {join_classes(found.lacks)}, whose images count as wrong")
        if found.labels_alone and self.metrics:
            notes.append(f"it gives labels without probabilities: {self.metrics[0].name} is not computed")
        return Evaluation(
            named(model),
            self.shown,
            measured.scores,
            images.quarantined,
            "; ".join(note for note in notes if note),
            answers=measured.answers,
            calibration=measured.calibration,
            generations=by_generation(measured.answers, images.known),
            generation=images.generation,
            lacks=found.lacks,
            manifest=images.manifest,
            spec=images.spec,
            cache=images.where,
        )


def _trained_on(model: str, manifest: Manifest) -> str:
    """Returns a note if a run was trained on some of the images, which says little about new ones."""
    run = find_run(model) if served_folder(model) is None else None
    if run is None:
        return ""
    try:
        known = remembered(run.path)
    except ImagesError:  # a model that is compared with needs no table of its images
        return ""
    count = int(np.isin(manifest.sha256s, known.sha256s[~known.is_val]).sum())
    if not count:
        return ""
    return (
        f"it was trained on {count:,} of these {len(manifest):,} images, so it does better on them than on new pictures"
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


def _with_origins(manifest: Manifest, run: runs.Run | None) -> tuple[Manifest, np.ndarray]:
    """Sets origins by content from the run's manifest.

    Images that the run does not have are new.

    Returns:
        The manifest, and `(n,) bool`: which images the run has.
    """
    if run is None:
        return manifest, np.zeros(len(manifest), bool)
    known = remembered(run.path)
    order = np.argsort(known.sha256s)
    found = np.searchsorted(known.sha256s, manifest.sha256s, sorter=order)
    found = order[np.minimum(found, len(order) - 1)]
    has = known.sha256s[found] == manifest.sha256s
    return manifest.with_origins(np.where(has, known.origins[found], run.generation)), has
