"""Exports a model, and compares its predictions with those of the format's own runtime.

The steps are: load, predict, write, predict in that runtime, compare, publish, record.

    result = export("runs/2-flowers", "serving/flowers")
    print(result)                                  # the path, the comparison, how to serve it

If the export differs from the model beyond the tolerance, that is an error and nothing appears at the destination:
everything is written beside it and renamed last. A model server that watches the folder never sees half of a version.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kresume import runs
from kresume.addresses import public
from kresume.backend import selection
from kresume.errors import ExportError
from kresume.evaluation.class_order import doubt_order
from kresume.exports import like as like_models
from kresume.exports import serving
from kresume.exports.formats import Exporter, check_options, find_exporter
from kresume.exports.graph import OnBadImage
from kresume.exports.job import Job, Quantize
from kresume.exports.parity import Parity, compare, tolerance_of
from kresume.exports.record import RECORD, make_record, tell_run
from kresume.exports.samples import Samples, gather_samples
from kresume.exports.target import Target, placed, prune
from kresume.exports.tensorflow_process import write_by_tensorflow
from kresume.images.sources.records import parse_features
from kresume.models.load import Loaded, Subject, load, select_backend
from kresume.models.unscored import with_statistics
from kresume.options.resolve import path_of, several
from kresume.options.settings import EXPORT_FORMAT, ON_BAD_IMAGE, TOP_K
from kresume.reporter import Reporter
from kresume.spelling import as_argument, in_bytes, option, spelled
from kresume.staging.fetch import here
from kresume.staging.publish import Publication
from kresume.storage import atomic, sealed

WARM_IMAGES = 8
"""Images that a server's warm-up requests may hold."""


@dataclass(frozen=True)
class ExportResult:
    """A finished export.

    Attributes:
        path: the file or folder that was made.
        format: its format.
        source: the run or checkpoint that was exported.
        parity: the comparison with the model.
        record: the content of `export.json`.
        bytes: its size on disk.
        notes: how to use it.
        failures: records that could not be written.
    """

    path: str
    format: str
    source: str
    parity: Parity
    record: Mapping[str, Any]
    bytes: int
    notes: str
    failures: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """Returns 0, or 5 if the export could not be recorded in the run."""
        return 5 if self.failures else 0

    def as_dict(self) -> dict[str, Any]:
        """Returns the JSON form."""
        return {
            "path": self.path,
            "bytes": self.bytes,
            **self.record,
            "failures": list(self.failures),
            "exit_code": self.exit_code,
        }

    def __str__(self) -> str:
        lines = [
            f"{self.path}: {self.format}, {in_bytes(self.bytes)}, from {self.source}",
            f"verified: {self.parity}",
        ]
        lines += [self.notes] * bool(self.notes)
        lines += [f"not written: {failure}" for failure in self.failures]
        return "\n".join(lines)


@spelled(as_argument)
def export(
    checkpoint: str | Path | runs.Run,
    directory: str | Path,
    *,
    format: str = EXPORT_FORMAT,
    version: int | None = None,
    prune_keep: int | None = None,
    top_k: int = TOP_K,
    embeddings: bool = False,
    on_bad_image: OnBadImage = ON_BAD_IMAGE,
    like: str | Path | None = None,
    like_pixels: str | None = None,
    name: str | None = None,
    quantize: Quantize | None = None,
    optimizer: str | None = None,
    tolerance: float | None = None,
    data: str | Path | Sequence[str | Path] = (),
    feature: str | Sequence[str] = (),
    model: Any = None,
    classes: Sequence[str] | None = None,
    pixels: str | None = None,
    image_size: int | str | Sequence[int] | None = None,
    axes: str | None = None,
    resize: str | None = None,
    interpolation: str | None = None,
    imports: str | Path | Sequence[str | Path] = (),
    map_file: str | None = None,
    trust: bool = False,
    backend: str | None = None,
    device: str | None = None,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> ExportResult:
    """Writes a run's result or a checkpoint in another format, and verifies it.

    Args:
        checkpoint: `RUN`, `RUN@last`, `RUN@best`, `RUN@STEP`, a folder of runs, or a checkpoint of any known format.
        directory: for `saved-model` the model's folder, in which the next free version is made; else the folder to
            make. It may be at an address (`gs://`, `s3://`).
        format: `saved-model`, `onnx`, `litert`, `keras`, `tf-checkpoint` or `weights-h5`.
        version: the version's number, for `saved-model`.
        prune_keep: afterwards keep only this many of the newest versions.
        top_k: the number of labels that a served model returns, best first.
        embeddings: add the signature `embed`: the features before the head.
        on_bad_image: `"error"` fails the request; `"flag"` still answers the other images of the request.
        like: a SavedModel whose signatures, names, dtypes and label order are kept.
        like_pixels: the pixel convention of the numbers that its clients send, if its own answers do not show it.
        name: the model's name for the server; default the folder's.
        quantize: `"float16"` or `"int8"`, for `litert`.
        optimizer: its name, for a training format and a checkpoint that does not record it; `NAME:reset` writes a fresh
            one.
        tolerance: the largest accepted difference of a score (0 to 1); default by the number type.
        data: images to compare on, one folder per class; default the run's validation images.
        feature: names of TFRecord features in them, same as `--feature` of `train`.
        model: the architecture, for a checkpoint without one: a name as for `--model`, or a Keras model, which stays as it is.
        classes: the class names in the order of the outputs, for a checkpoint that does not record them.
        pixels: the pixel convention that the model expects, for a checkpoint that does not record it.
        image_size: a number of pixels or `(height, width)`, for a model that accepts any.
        axes: the order of the axes of the model's input, if its shape does not show it, `"chw"` for example.
        resize: how pictures get the model's size, for a checkpoint that does not record it.
        interpolation: how resizing samples pixels, for a checkpoint that does not record it.
        imports: Python files that register custom objects.
        map_file: a YAML file that maps arrays of a PyTorch state dict to variables, same as `--map` of `train`.
        trust: run the code of the checkpoint's Lambda layers.
        backend: `"tensorflow"` or `"jax"`, which runs the model for the comparison; default the run's.
        device: `"auto"`, `"cpu"`, `"gpu"` or `"tpu"`.
        overwrite: move the content of `directory` aside, for the formats without versions.
        reporter: shown progress.

    Returns:
        The finished export and its comparison with the model.

    Raises:
        ExportError: the export differs from the model, or the format cannot hold the model.
        KresumeError: the checkpoint cannot be loaded, or an option is invalid; the message says why.
    """
    reporter = reporter or Reporter(quiet=True)
    path = path_of(checkpoint)
    exporter = find_exporter(format)
    place = Publication(directory)
    job = Job(
        format=format,
        name=name or place.folder.absolute().name,
        top_k=top_k,
        embeddings=embeddings,
        on_bad_image=on_bad_image,
        like=here(like, reporter) if like is not None else None,
        like_pixels=like_pixels,
        quantize=quantize,
        optimizer=optimizer,
    )
    check_options(exporter, job)
    if job.like is not None:
        like_models.folder_of(Path(job.like))  # a wrong path is said before anything is loaded
    target = Target(place.folder, version, prune_keep, overwrite)
    destination = target.find(exporter, format)
    here(path, reporter)
    with selection.loading(reporter):
        running = select_backend(path, backend, device)
    subject = Subject.of(
        path, model=model, classes=classes, pixels=pixels, image_size=image_size, axes=axes, resize=resize,
        interpolation=interpolation, imports=imports, map_file=map_file, trust=trust,
    )  # fmt: skip
    with reporter.waiting(f"reading {path}"):
        loaded = load(subject, anonymous=exporter.for_training)
    loaded = _raw(loaded) if exporter.for_training else with_statistics(loaded, reporter)
    recorded = [loaded.assumed] if loaded.assumed and (loaded.named or not exporter.for_training) else []
    lost = [*_left_out(loaded), *_to_finalize(loaded, format)] if exporter.for_training else []
    for note in (*loaded.notes, *recorded, *lost):
        reporter.warn(note)
    sources = list(several("data", data))
    with ExitStack() as stack:
        with reporter.waiting("predicting pictures to compare on"):
            samples = stack.enter_context(
                gather_samples(loaded, sources, reporter, parse_features(several("feature", feature)))
            )
            job, like_note = _with_samples(job, samples)
        if doubt := _doubt_order(loaded, samples):
            reporter.warn(doubt)
        limit = tolerance if tolerance is not None else tolerance_of(loaded, quantize)
        with placed(destination, overwrite=overwrite) as temporary:
            with reporter.waiting(f"writing {exporter.called} to {destination}", now=True):
                facts = _write(exporter, loaded, job, temporary, running)
            with reporter.waiting("verifying it in its own runtime", now=True):
                parity = compare(exporter.predict(temporary, facts, samples), samples, limit)
            if not parity.holds:
                raise ExportError(
                    f"the export differs from the model: {'; '.join(parity.problems())}; nothing was written to {destination}. "
                    f"{option('tolerance')} accepts larger differences"
                )
            record = sealed.seal(make_record(loaded, job, facts, parity, samples, temporary, running))
            atomic.write_json(temporary / RECORD, record)
    notes = _serving_notes(target, destination, record, like_note) if exporter.versioned else ""
    failures, size = tell_run(loaded, destination, record), _size(destination)
    place.send(reporter)
    return ExportResult(public(str(destination)), format, path, parity, record, size, public(notes), failures)


def _doubt_order(loaded: Loaded, samples: Samples) -> str:
    """Returns a note if labelled images contradict a class order that the checkpoint does not record."""
    known = samples.labels >= 0
    if loaded.state.card is not None or not loaded.named or not known.any():
        return ""
    assumed = loaded.subject.classes is None
    return doubt_order(samples.answers[known], samples.labels[known], samples.classes, "classes", assumed=assumed)[0]


def _raw(loaded: Loaded) -> Loaded:
    """Returns a bare checkpoint with its raw weights, which a training format holds beside their averages."""
    if not loaded.averages or loaded.run is not None:
        return loaded
    from kresume.models.restore import restore

    restore(loaded.model, loaded.state, optimizer=None)
    return replace(loaded, averages=False)


def _with_samples(job: Job, samples: Samples) -> tuple[Job, str]:
    """Adds the warm-up images and the facts about `--like` to the options; returns a note."""
    job = replace(job, files=samples.files[:WARM_IMAGES], pictures=str(samples.folder / "pictures.npy"))
    if job.like is None:
        return job, ""
    old = like_models.examine(Path(job.like), samples, job.like_pixels)
    return replace(job, like_pixels=old.pixels, like_logits=old.logits), old.note


def _write(exporter: Exporter, loaded: Loaded, job: Job, directory: Path, running: str) -> dict[str, Any]:
    """Writes the export into an empty folder, if necessary in a TensorFlow process; returns its facts."""
    if exporter.needs_tensorflow and running != "tensorflow":
        return write_by_tensorflow(loaded.subject, directory, job, anonymous=exporter.for_training)
    with selection.without_native_notes():
        return exporter.write(loaded, directory, job)


def _serving_notes(target: Target, made: Path, record: Mapping[str, Any], like_note: str) -> str:
    """Writes the notes beside the versions, and removes old versions; returns the lines to print."""
    notes = f"like: {like_note}\n" * bool(like_note) + serving.write_notes(target.directory, made, record)
    if target.prune_keep is not None:
        removed = prune(target.directory, target.prune_keep, made)
        notes += f"\nremoved: {', '.join(map(str, removed))}" if removed else ""
    return notes


def _left_out(loaded: Loaded) -> Iterator[str]:
    """Yields descriptions of the compile arguments that a training format loses."""
    from kresume.models.losses import unused_metrics

    loss = loaded.loss.portable()
    if loss.lost:
        yield f"{loss.lost}; the export is compiled with {loss.kind}"
    if names := unused_metrics(loaded.state.compiled, ()):
        yield f"the checkpoint's metrics are not in the export: {', '.join(names)}"


def _to_finalize(loaded: Loaded, format: str) -> Iterator[str]:
    """Yields what a reader of the format must call before the model answers as it did."""
    adapted = [
        layer
        for layer in loaded.model._flatten_layers()
        if type(layer).__name__ == "Normalization" and getattr(layer, "input_mean", None) is None
    ]
    names = [layer.name for layer in adapted]
    if names and format == "tf-checkpoint":
        yield (
            f"after `tf.train.Checkpoint.restore` call `finalize_state()` of the layer {', '.join(names)}: until then "
            "it normalises with the mean 0 and the variance 1"
        )


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
