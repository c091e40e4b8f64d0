"""Exports a model, and compares its predictions with those of the format's own runtime.

The steps are: load, predict, write, predict in that runtime, compare, publish, record.

    result = export("runs/2-flowers", "serving/flowers")
    print(result)                                  # the path, the comparison, how to serve it

If the export differs from the model beyond the tolerance, that is an error and nothing appears at the destination:
everything is written beside it and renamed last. A model server that watches the folder never sees half of a version.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kresume import runs
from kresume.backend import fingerprint, selection
from kresume.checkpoints import snapshot
from kresume.class_names import names_of
from kresume.errors import ExportError, UsageError
from kresume.exports import like as like_models
from kresume.exports import serving
from kresume.exports.elsewhere import write_elsewhere
from kresume.exports.formats import Exporter, find_exporter
from kresume.exports.graph import OnBadImage
from kresume.exports.job import Job, Quantize
from kresume.exports.parity import Parity, compare
from kresume.exports.samples import Samples, gather_samples
from kresume.images import conventions
from kresume.images.sources.records import parse_features
from kresume.models.load import Loaded, Subject, load, select_backend
from kresume.options.settings import EXPORT_FORMAT, ON_BAD_IMAGE, TOP_K
from kresume.reporter import Reporter
from kresume.runtimes.signatures import versions_in
from kresume.spelling import as_argument, spelled
from kresume.storage import atomic

RECORD = "export.json"
FORMAT = 1
TOLERANCES = {"float32": 1e-4, "mixed": 3e-2, "float16": 1e-2, "int8": 0.25}
"""Largest accepted difference of a score, by the number type of the export or the model."""


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
            f"{self.path}: {self.format}, {self.bytes / 1e6:.1f} MB, from {self.source}",
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
    feature: Sequence[str] = (),
    model: str | None = None,
    classes: Sequence[str] | None = None,
    pixels: str | None = None,
    image_size: tuple[int, int] | None = None,
    axes: str | None = None,
    imports: Sequence[str] = (),
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
            make.
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
        model: the architecture, for a checkpoint without one.
        classes: the class names in the order of the outputs, for a checkpoint that does not record them.
        pixels: the pixel convention that the model expects, for a checkpoint that does not record it.
        image_size: `(height, width)` in pixels, for a model that accepts any.
        axes: the order of the axes of the model's input, if its shape does not show it, `"chw"` for example.
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
    path = str(checkpoint.path if isinstance(checkpoint, runs.Run) else checkpoint)
    exporter = find_exporter(format)
    job = Job(
        format=format,
        name=name or Path(directory).absolute().name,
        top_k=top_k,
        embeddings=embeddings,
        on_bad_image=on_bad_image,
        like=str(like) if like is not None else None,
        like_pixels=like_pixels,
        quantize=quantize,
        optimizer=optimizer,
    )
    _check_options(exporter, job, version, prune_keep, overwrite)
    if exporter.versioned and not re.fullmatch(r"[A-Za-z0-9_.-]+", job.name):
        raise UsageError(
            f"{job.name!r} is no name for a served model, which stands in addresses and commands: give --name with letters, "
            "digits, _, . and -"
        )
    destination = _destination(exporter, Path(directory), version, overwrite)
    running = select_backend(path, backend, device)
    names = names_of(classes)
    subject = Subject(path, model, names, pixels, image_size, tuple(imports), map_file, trust, axes)
    loaded = load(subject, anonymous=exporter.for_training)
    for note in (*loaded.notes, *(_left_out(loaded) if exporter.for_training else ())):
        reporter.warn(note)
    sources = [str(data)] if isinstance(data, (str, Path)) else [str(source) for source in data]
    with gather_samples(loaded, sources, reporter, parse_features(tuple(feature))) as samples:
        job = replace(job, files=samples.files[:8], pictures=str(samples.folder / "pictures.npy"))
        old = like_models.examine(Path(job.like), samples, like_pixels) if job.like else like_models.Old()
        job = replace(job, like_pixels=old.pixels, like_logits=old.logits)
        limit = tolerance if tolerance is not None else _tolerance(loaded, job)
        with _replacing(destination) if overwrite else contextlib.nullcontext(), _placed(destination) as temporary:
            reporter.say(f"writing {exporter.called} to {destination}")
            if exporter.needs_tensorflow and running != "tensorflow":
                facts = write_elsewhere(loaded.subject, temporary, job, anonymous=exporter.for_training)
            else:
                with selection.without_native_notes():
                    facts = exporter.write(loaded, temporary, job)
            parity = compare(exporter.predict(temporary, facts, samples), samples, limit)
            if not parity.holds:
                raise ExportError(_difference(parity, destination))
            record = _record(loaded, job, facts, parity, samples, temporary, running)
            atomic.write_json(temporary / RECORD, record)
    notes = ""
    if exporter.versioned:
        notes = f"like: {old.note}\n" * bool(old.note) + serving.write_notes(Path(directory), destination, record)
        if prune_keep is not None:
            removed = prune(Path(directory), prune_keep, destination)
            notes += f"\nremoved: {', '.join(map(str, removed))}" if removed else ""
    failures = _tell_run(loaded, destination, record)
    return ExportResult(str(destination), format, path, parity, record, _size(destination), notes, failures)


@contextlib.contextmanager
def _placed(destination: Path) -> Iterator[Path]:
    """Yields a folder that becomes the destination if the block succeeds.

    Raises:
        ExportError: the disk refuses, or another export made the destination meanwhile.
    """
    try:
        atomic.remove_abandoned(destination.parent)
        with atomic.new_directory(destination) as temporary:
            yield temporary
    except OSError as error:
        if error.errno in {errno.EEXIST, errno.ENOTEMPTY}:
            raise ExportError(f"another export made {destination} meanwhile: run again for the next version") from error
        raise ExportError(
            f"{destination} cannot be written ({error.strerror or error}); nothing was left there: make room, or give another "
            "folder"
        ) from error


@contextlib.contextmanager
def _replacing(destination: Path) -> Iterator[None]:
    """Moves the content of the destination aside, and back again if nothing replaces it."""
    aside = runs.move_aside(destination) if destination.exists() else None
    try:
        yield
    except BaseException:
        if aside is not None and not destination.exists():
            aside.rename(destination)
        raise


def _check_options(exporter: Exporter, job: Job, version: int | None, keep: int | None, overwrite: bool) -> None:
    default = Job()
    always = {"format", "files", "pictures", "name"}
    for option, value in job.as_dict().items():
        if option not in always and option not in exporter.options and value != getattr(default, option):
            raise UsageError(f"--{option.replace('_', '-')} means nothing to --format {job.format}: leave it out")
    if job.like_pixels is not None and job.like is None:
        raise UsageError("--like-pixels says what the clients of --like send: give both")
    if job.like_pixels is not None:
        conventions.to_picture_function(job.like_pixels)
    if not exporter.versioned and (version is not None or keep is not None):
        raise UsageError(f"--version and --prune-keep are of saved-model: --format {job.format} makes one folder")
    if exporter.versioned and overwrite:
        raise UsageError("--overwrite: a version is never written over; leave it out and the next number is taken")
    if (version is not None and version < 1) or (keep is not None and keep < 1):
        raise UsageError("--version and --prune-keep are numbers from 1")


def _destination(exporter: Exporter, directory: Path, version: int | None, overwrite: bool) -> Path:
    """Returns the folder to create.

    Raises:
        UsageError: it exists already, or lies inside a run or a SavedModel.
    """
    inside = next((folder for folder in directory.absolute().parents if runs.is_run(folder)), None)
    if inside is not None or runs.is_run(directory) or (directory / "saved_model.pb").is_file():
        what = f"inside the run {inside}" if inside else "a run" if runs.is_run(directory) else "a SavedModel itself"
        raise UsageError(
            f"{directory} is {what}: give a folder of its own for the exports, for example serving/flowers"
        )
    if not exporter.versioned:
        if directory.exists() and not overwrite and (not directory.is_dir() or any(directory.iterdir())):
            raise UsageError(f"{directory} stands already: give another folder, or --overwrite to move it aside")
        if directory.is_dir() and not any(directory.iterdir()):
            directory.rmdir()
        return directory
    if directory.exists() and not directory.is_dir():
        raise UsageError(f"{directory} is a file: give the folder that holds the model's versions")
    taken = versions_in(directory)
    if version is not None and version in taken:
        raise UsageError(
            f"{directory} has a version {version} already (versions {', '.join(map(str, taken))}); a server may be serving "
            "it: leave --version out for the next free one"
        )
    return directory / str(version if version is not None else max(taken, default=0) + 1)


def _tolerance(loaded: Loaded, job: Job) -> float:
    if job.quantize is not None:
        return TOLERANCES[job.quantize]
    policies = {
        str(getattr(layer.dtype_policy, "compute_dtype", "float32")) for layer in loaded.model._flatten_layers()
    }
    return TOLERANCES["mixed"] if policies & {"float16", "bfloat16"} else TOLERANCES["float32"]


def _difference(parity: Parity, destination: Path) -> str:
    why = []
    if parity.max_difference is not None and parity.max_difference > parity.tolerance:
        why.append(f"a score differs by {parity.max_difference:.2e}, accepted are {parity.tolerance:.2e}")
    if parity.own_difference is not None and parity.own_difference > max(
        parity.tolerance, parity.max_difference or 0.0
    ):
        why.append(f"a score differs by {parity.own_difference:.2e} from the model's own outputs, which add up to 1")
    if parity.clear_disagreements:
        why.append(f"{parity.clear_disagreements:,} of {parity.images:,} pictures get another class")
    if parity.failed:
        why.append(f"it could not read {parity.failed:,} of {parity.images:,} pictures")
    return (
        f"the export differs from the model: {'; '.join(why)}; nothing was left at {destination}. "
        "--tolerance F accepts more"
    )


def _left_out(loaded: Loaded) -> Iterator[str]:
    """Yields descriptions of the compile arguments that a training format loses."""
    from kresume.models.losses import unused_metrics

    loss = loaded.loss.portable()
    if loss.lost:
        yield f"{loss.lost}; the export is compiled with {loss.kind}"
    if names := unused_metrics(loaded.state.compiled, ()):
        yield f"the checkpoint's metrics are not in the export: {', '.join(names)}"


def _record(
    loaded: Loaded,
    job: Job,
    facts: Mapping[str, Any],
    parity: Parity,
    samples: Samples,
    folder: Path,
    backend: str,
) -> dict[str, Any]:
    """Returns the content of `export.json`, which traces a served answer to its images and snapshot."""
    run = loaded.run
    options = {name: value for name, value in job.as_dict().items() if name not in {"files", "pictures"}}
    return {
        "export_format": FORMAT,
        "kresume": fingerprint.package_versions().get("kresume", ""),
        "created": runs.now(),
        "format": job.format,
        "options": options,
        "source": {
            "path": os.path.abspath(loaded.subject.checkpoint),
            "format": loaded.state.format,
            "step": loaded.state.step,
            "digest": snapshot.digest_of(loaded.state.arrays),
            "run": run.path.name if run else None,
            "generation": run.generation if run else None,
            "manifest": run.record.manifest if run else None,
            "averages": loaded.averages,
            "backend": backend,
        },
        "card": loaded.card.as_dict() if loaded.named else None,
        **facts,
        "parity": parity.as_dict(),
        "compared_on": hashlib.sha256(samples.pictures.tobytes()).hexdigest(),
        "files": {
            str(file.relative_to(folder)): {"bytes": file.stat().st_size, "sha256": atomic.sha256_of_file(file)}
            for file in sorted(folder.rglob("*"))
            if file.is_file()
        },
    }


def prune(directory: Path, keep: int, newest: Path) -> list[int]:
    """Removes all but the `keep` versions with the highest numbers, and never the newest export.

    A version is renamed to a name that no server reads before its files are deleted.

    Returns:
        The numbers of the removed versions.
    """
    removed = []
    for number, folder in list(versions_in(directory).items())[:-keep]:
        if folder != newest:
            gone = atomic.temporary_beside(folder)
            folder.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)
            removed.append(number)
    return removed


def _tell_run(loaded: Loaded, made: Path, record: Mapping[str, Any]) -> tuple[str, ...]:
    if loaded.run is None:
        return ()
    try:
        loaded.run.event(
            "exported",
            format=record["format"],
            path=os.path.relpath(made, loaded.run.path),
            step=loaded.state.step,
            digest=hashlib.sha256((made / RECORD).read_bytes()).hexdigest(),
        )
    except OSError as error:
        return (f"the export in {loaded.run.path / 'events.jsonl'}: {error}",)
    return ()


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
