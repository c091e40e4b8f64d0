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
from kresume.checkpoints.run import find_run, named, recorded_classes
from kresume.class_names import join_classes, names_of
from kresume.errors import CheckpointError, ImagesError, UsageError
from kresume.evaluation.against import Predicted, predict, renamed_as
from kresume.evaluation.caches import open_cache
from kresume.evaluation.class_order import doubt_order
from kresume.evaluation.evaluation import Evaluation
from kresume.evaluation.gates import Gates
from kresume.evaluation.judging import check_conditions, check_gates, failures_of
from kresume.evaluation.measure import by_generation, measure
from kresume.evaluation.opening import Served, keras_model_among, read_model, select_for, served_folder
from kresume.evaluation.own_metrics import OwnMetric, read_metrics
from kresume.evaluation.sampling import check_resized, doubt_sampling
from kresume.images import merging
from kresume.images.away import read_ever
from kresume.images.collect import Sources, collect, list_sources
from kresume.images.manifest import Manifest
from kresume.images.sources.folder_order import check_one_order
from kresume.images.sources.records import check_features, parse_features
from kresume.models.load import GIVEN, RESIZING, Loaded, Subject
from kresume.models.own_code import is_function
from kresume.options.resolve import path_of, several
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
    cache: str | None = None,
    imports: str | Path | Sequence[str | Path] = (),
    map_file: str | None = None,
    trust: bool = False,
    against: str | Path | runs.Run | None = None,
    against_classes: str | Sequence[str] | None = None,
    against_pixels: str | None = None,
    against_resize: str | None = None,
    against_interpolation: str | None = None,
    feature: str | Sequence[str] = (),
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
        data: folders with one folder per class. Of a source with images for testing (a folder `test/`, rows with the split
            `test`) these alone are scored.
        model: the architecture, for a checkpoint without one: a name as for `--model`, or a Keras model, which stays as it is.
        classes: names of the outputs in order, for a checkpoint that does not record them.
        pixels: the pixel convention, for a checkpoint that does not record it.
        image_size: a number of pixels or `(height, width)`, for a model that accepts any.
        axes: order of the axes of the model's input, if its shape does not determine it, for example `"chw"`.
        resize: how pictures get the model's size, for a checkpoint that does not record it: `"stretch"`, `"crop"`, `"pad"` or
            `"keraspad"`.
        interpolation: how resizing samples pixels, for a checkpoint that does not record it: `"area"`, or `"bilinear"` for
            example, the default of `image_dataset_from_directory`.
        batch_size: images per prediction.
        backend: `"tensorflow"` or `"jax"`.
        device: `"auto"`, `"cpu"`, `"gpu"` or `"tpu"`.
        cache: `"off"`, or the folder of the cache of decoded images.
        imports: Python files that register custom objects.
        map_file: YAML that maps the arrays of a PyTorch state dict to variables, as `--map` of `train`.
        trust: run the code of the checkpoint's Lambda layers.
        feature: names of TFRecord features, as `--feature` of `train`: `encoded=NAME`, `label=NAME`, `text=NAME`.
        against: another model to compare with on the same images; images of classes that it does not have count as
            wrong. `pixels`, `axes`, `resize` and `interpolation` are for whichever of the two does not record or show its own,
            `classes` for both.
        against_classes: names of that model's outputs in order, if they are not `classes`.
        against_pixels: its pixel convention, if it is not `pixels`.
        against_resize: how its pictures get its size, if not as `resize` says.
        against_interpolation: how its pictures are sampled, if not as `interpolation` says.
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
    path = path_of(checkpoint)
    other = path_of(against) if against is not None else None
    metric = several("metric", metric)
    gates = Gates.of(several("require", require), max_forgetting, max_class_drop, unbounded=several("metric", metric))
    check_gates(gates, other)
    theirs = _of_other(other, names_of(against_classes), against_pixels, against_resize, against_interpolation)
    shown = several("data", data)
    if not shown:
        raise UsageError(f"{option('data')}: an empty list names no source")
    features = parse_features(several("feature", feature))
    known = names_of(classes) or recorded_classes(path)
    listed = list_sources(reporter, data=shown, features=features, tests=True, known=known)
    check_features(features, listed)
    given = Subject.of(
        path, model=model, classes=classes, pixels=pixels, image_size=image_size, axes=axes, resize=resize,
        interpolation=interpolation, imports=imports, map_file=map_file, trust=trust,
        yielding=GIVEN[1:] if other is not None else (),
    )  # fmt: skip
    live = keras_model_among({path: given.model} | ({other: None} if other not in {None, path} else {}))
    of_keras = any(not is_function(each) for each in several("metric", metric))
    select_for(live or (path if of_keras else None), backend, device, reporter)
    metrics = read_metrics(several("metric", metric))
    opened = read_model(given, reporter, listed.assumed_order())
    _check_order(opened, listed, given.classes, "classes")
    images = _collect(opened, listed, cache, reporter)
    check_conditions(gates, images.manifest, images.generation, metrics)
    compared = None
    if other is None:
        check_resized(given.resizing, [opened], len(images.manifest.classes))
    else:
        subject = _compared(given, other, theirs)
        compared = renamed_as(read_model(subject, reporter, listed.assumed_order(images.manifest.classes)), opened)
        _check_order(compared, listed, subject.classes, "against-classes")
        _check_used(given, against_pixels, opened, compared)
        _check_resized(given, subject, [opened, compared], len(images.manifest.classes))
    job = _Job(images, shown, batch_size, metrics, reporter)
    own = job.evaluate(opened, assumed=given.classes is None, way="classes")
    if compared is None:
        return replace(own, failed=failures_of(gates, own, None))
    found = job.evaluate(compared, assumed=against_classes is None, way="against-classes")
    own = replace(own, against=found)
    return replace(own, failed=failures_of(gates, own, found, known=images.known))


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
        facts: what merging them found: duplicates, and images under two labels.
        notes: what listing them left out.
    """

    manifest: Manifest
    generation: int
    spec: DecodeSpec
    where: str | None
    quarantined: int
    known: np.ndarray
    facts: merging.MergeFacts
    notes: tuple[str, ...]


def _of_other(other: str | None, *facts: Any) -> dict[str, Any]:
    """Returns what was given for the other model alone: classes, pixels, then those of `RESIZING`.

    Raises:
        UsageError: there is no such model.
    """
    found = {name: fact for name, fact in zip(("classes", "pixels", *RESIZING), facts, strict=True) if fact is not None}
    if found and other is None:
        raise UsageError(
            f"{option(f'against-{next(iter(found))}')} is for the model of {option('against')}: give it, too"
        )
    return found


def _compared(given: Subject, other: str, own: dict[str, Any]) -> Subject:
    """Returns the model to compare with; what was given for both gives way to what it records itself.

    Args:
        given: what was given for both.
        other: the checkpoint.
        own: what was given for this one alone.
    """
    shared = tuple(name for name in GIVEN if name not in own)
    return replace(given, checkpoint=other, model=None, yielding=shared, **own)


def _check_resized(given: Subject, other: Subject, models: Sequence[Loaded | Served], classes: int) -> None:
    """Raises if a way of resizing was given that no model takes, for both or for the other one alone."""
    for name in RESIZING:
        shared = name in other.yielding
        check_resized({name: getattr(given, name)}, models if shared else models[:1], classes)
        if not shared:
            check_resized({name: getattr(other, name)}, models[1:], classes, "against-")


def _check_used(given: Subject, pixels: str | None, *models: Loaded | Served) -> None:
    """Raises if `--pixels` was given for two models that both record or show their own."""
    shown = [model.shows for model in models if isinstance(model, Loaded)]
    if given.pixels is not None and pixels is None and len(shown) == len(models) and None not in shown:
        raise UsageError(
            f"{option('pixels', given.pixels)}: both models record or show what they expect ({', '.join(map(str, shown))}): "
            "leave it out"
        )


def _check_order(opened: Loaded | Served, listed: Sources, given: Sequence[str] | None, way: str) -> None:
    """Raises if the order of a model's outputs is assumed, and the class folders show several."""
    if given is None and listed.data is not None and not _names_outputs(opened):
        check_one_order(listed.data, opened.subject.checkpoint, way)


def _collect(opened: Loaded | Served, listed: Sources, cache: str | None, reporter: Reporter) -> _Images:
    """Reads the images, in the scored model's classes.

    Raises:
        ImagesError: there is a class folder that the model does not know, or an image source cannot be read.
    """
    if isinstance(opened, Served):
        names, spec, run = opened.labels or listed.assumed_order(), UNDECODED, None
    else:
        names, spec, run = opened.card.classes, opened.spec, opened.run
    if {*names} != {*listed.classes}:  # these may be assumed
        listed = listed.knowing(names)
    listed = listed.named(names)
    unknown = sorted({found.label for listing in listed for found in listing.files} - set(names))
    if unknown:
        raise ImagesError(
            f"class folders that are not classes of {opened.subject.checkpoint}: {', '.join(unknown)}; its classes are "
            f"{', '.join(names)}. Take them out of the sources, or score a model that has them with "
            f"{option('against', str(opened.subject.checkpoint))}: there their images count as wrong for this one"
        )
    store = None if isinstance(opened, Served) else open_cache(spec, cache)
    collected = collect(listed, spec, store, reporter, unkept=runs.dropped_by(run) if run else frozenset())
    merge = merging.merge(None, collected.data, None, None, classes=names, val_split=None, generation=0)
    manifest, known = _with_origins(merge.manifest, run)
    generation, broken = run.generation if run else 0, len(collected.quarantine)
    return _Images(manifest, generation, spec, cache, broken, known, merge.facts, collected.notes)


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

    def evaluate(self, model: Loaded | Served, *, assumed: bool, way: str) -> Evaluation:
        """Scores a model.

        Args:
            model: from `read_model`.
            assumed: True if nobody gave this model's class order. It is tested unless the model records it.
            way: the option that gives it.
        """
        images = self.images
        found = predict(model, images.manifest, self.reporter, batch_size=self.batch_size, cache=images.where)
        contradicted = False
        if not _names_outputs(model):
            doubt, contradicted = self._doubt(model, found, way, assumed=assumed)
            found = found.noting(doubt)
        if not contradicted:  # losses in a wrong order say nothing about pictures
            prefix = way.removesuffix("classes")
            doubt = doubt_sampling(model, found, images.manifest, self.reporter, prefix, batch_size=self.batch_size)
            found = found.noting(doubt)
        return self._measured(model.subject.checkpoint, found)

    def _doubt(self, model: Loaded | Served, found: Predicted, way: str, *, assumed: bool) -> tuple[str, bool]:
        """Returns a note on the order of the outputs, and True if the images contradict it."""
        names = self.images.manifest.classes
        own = model.card.classes if isinstance(model, Loaded) else names
        if set(own) != set(names):
            return "", False  # the images cannot show the order of classes that they do not have
        chosen = found.task.answers(found.probabilities) if found.chosen is None else found.chosen
        place = np.array([own.index(name) for name in names])
        return doubt_order(place[chosen], place[self.images.manifest.labels], own, way, assumed=assumed)

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
        notes = [found.note, _trained_on(model, images.manifest), measured.answers.describe_sameness()]
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
            duplicates=images.facts.duplicates,
            conflicts=images.facts.conflicts,
            notes=images.notes,
        )


def _trained_on(model: str, manifest: Manifest) -> str:
    """Returns a note if a run was trained on some of the images, which says little about new ones."""
    run = find_run(model) if served_folder(model) is None else None
    if run is None:
        return ""
    try:
        known = read_ever(run.path, run.record.away)
    except ImagesError:  # a model that is compared with needs no table of its images
        return ""
    count = int(np.isin(manifest.sha256s, known.sha256s[~known.is_val]).sum())
    if not count:
        return ""
    return (
        f"it was trained on {count:,} of these {len(manifest):,} images, so it does better on them than on new pictures"
    )


def _names_outputs(model: Loaded | Served) -> bool:
    """Returns True if a model records the names of its outputs."""
    if isinstance(model, Served):
        return labels_of(model.folder) is not None
    return model.state.card is not None or (model.subject.classes is None and bool(model.state.records.get("classes")))


UNDECODED = DecodeSpec(64, 64)
"""A placeholder for the size of a SavedModel, which decodes by itself: files are only hashed and their headers read."""


def _with_origins(manifest: Manifest, run: runs.Run | None) -> tuple[Manifest, np.ndarray]:
    """Sets origins by content from the run's manifest.

    Images that neither the run nor an earlier generation recorded are new.

    Returns:
        The manifest, and `(n,) bool`: which images they recorded.
    """
    if run is None:
        return manifest, np.zeros(len(manifest), bool)
    known = read_ever(run.path, run.record.away)
    order = np.argsort(known.sha256s)
    found = np.searchsorted(known.sha256s, manifest.sha256s, sorter=order)
    found = order[np.minimum(found, len(order) - 1)]
    has = known.sha256s[found] == manifest.sha256s
    return manifest.with_origins(np.where(has, known.origins[found], run.generation)), has
