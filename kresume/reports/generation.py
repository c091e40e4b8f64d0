"""Reads one run as a generation of a lineage: its parent, what was added and changed, its results.

    generation = read_generation(open_run("runs/2-signs"), parent)
    generation.changes, generation.scores["after"], generation.versions

Nothing but JSON is read, so a thousand runs take less than a second. A line of `metrics.jsonl` or `events.jsonl` that
is damaged is left out.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from kresume.checkpoints.files import FileState
from kresume.class_renames import in_options, read_renames
from kresume.lock import is_alive, read_holder
from kresume.options.settings import DEFAULTS
from kresume.runs import Run
from kresume.storage.model_folders import versions_in
from kresume.values.record import RunRecord

NOT_COMPARED = frozenset(
    {
        "from_", "or_new", "data", "add", "val", "out", "overwrite", "take_over", "snapshot_every", "keep", "backend", "device",
        "devices", "exact", "cache", "cache_limit", "watch", "trust", "epochs", "steps", "lr", "lr_scale", "lr_schedule",
        "warmup_steps", "optimizer", "loss", "batch_size", "image_size", "pixels", "resize", "interpolation", "classes", "grow",
        "balance", "bn_stats", "drop", "remap", "feature", "partial", "imports", "map", "map_out", "tensorboard", "trial",
        "rename", "mlflow", "on_missing", "profile", "coordinator", "num_processes", "process_id", "without",
    }
)  # fmt: skip
"""Options that say where a run is and how it goes on, or whose effect is recorded as a decision."""
SUBSETS = ("all", "old", "new")


@dataclass(frozen=True)
class Change:
    """One difference between a run and its parent, or between two runs.

    Attributes:
        name: an option (`"--augment"`) or a decision (`"rate"`).
        before: its value in the parent.
        after: its value in the run.
    """

    name: str
    before: Any
    after: Any

    def __str__(self) -> str:
        return f"{self.name} {shown(self.before)} -> {shown(self.after)}"


@dataclass(frozen=True)
class Version:
    """An export of a run.

    Attributes:
        format: `"saved-model"`, `"onnx"` ...
        path: the folder.
        version: its number for a model server; None for a format without versions.
        step: the step that was exported.
        digest: SHA-256 of its `export.json`.
        state: `"there"`, `"newest"` (the version that a server loads), `"replaced"` by another export, or `"gone"`.
    """

    format: str
    path: str
    version: int | None
    step: int | None
    digest: str
    state: Literal["there", "newest", "replaced", "gone"]

    def __str__(self) -> str:
        number = "" if self.version is None else f" (version {self.version}{', the newest' * (self.state == 'newest')})"
        return f"{self.format} {self.path}{number}" + (f", {self.state}" if self.state in {"gone", "replaced"} else "")


@dataclass(frozen=True)
class Parent:
    """The checkpoint that a run started from.

    Attributes:
        path: where it is now, as far as is known.
        format: the reader's name; `"run"` for a run.
        step: its step, None if unknown.
        digest: SHA-256 of its arrays when the run was made.
        state: `"unchanged"`, `"changed"`, `"missing"`, `"moved"` or `"unknown"`.
        reason: what differs, or empty.
    """

    path: str
    format: str
    step: int | None
    digest: str
    state: FileState
    reason: str = ""


@dataclass(frozen=True)
class Generation:
    """One run of a lineage. The first fields are those that earlier versions printed.

    Attributes:
        path: the run's directory.
        generation: 0 for a first training, the parent's plus one otherwise.
        status: `"accepted"`, `"rejected"`, `"running"` (a process trains it now) or `"interrupted"`.
        created: when it was made, ISO 8601.
        parent: the name of its parent; empty for a new model.
        images: all images of its manifest.
        added: images that are new in it.
        classes: the number of classes.
        epochs: whole epochs that are done.
        before: the parent's accuracy on all validation images, from 0 to 1; None for a new model.
        accuracy: the accuracy on all validation images.
        old: the accuracy on old validation images.
        new: the accuracy on new validation images.
        rate: the peak of the learning rate.
        exports: format and path of each export.
        finished: when it was finished; empty until then.
        kresume: the version that made it.
        backend: `"tensorflow"` or `"jax"`.
        command: the command that made it.
        step: the step of the result, or the last one that was scored.
        average: share of its parent's weights in the result; 0 for the weights as they were trained.
        planned: epochs that it plans.
        start: the checkpoint that it started from; None for a new model.
        sources: what `--add` and `--val` named, and `--data` for a run without a parent or without `--add`.
        train: images that train.
        validation: images that validate.
        relabelled: images with another label than recorded.
        left_out: images of its parent, a run, that it has no more: dropped or gone.
        new_classes: names of the classes that it added.
        renamed: the new names of its parent's classes, by the old ones.
        changes: what differs from the parent; of a new model, or one of another program, what was given.
        scores: `{"before": {...}, "after": {...}}`, each with `all`, `old` and `new`; None if nothing was scored.
        failed: the gates that the result failed.
        manifest: digest of the images that it began with.
        versions: its exports.
        trained_by: host and process id of the process that trains it now; empty if none does.
    """

    path: str
    generation: int
    status: str
    created: str
    parent: str
    images: int
    added: int
    classes: int
    epochs: int
    before: float | None
    accuracy: float | None
    old: float | None
    new: float | None
    rate: float | None
    exports: tuple[str, ...]
    finished: str
    kresume: str
    backend: str
    command: str
    step: int | None
    average: float
    planned: int
    start: Parent | None
    sources: tuple[str, ...]
    train: int
    validation: int
    relabelled: int
    left_out: int
    new_classes: tuple[str, ...]
    renamed: Mapping[str, str]
    changes: tuple[Change, ...]
    scores: Mapping[str, Mapping[str, Any] | None]
    failed: tuple[str, ...]
    manifest: str
    versions: tuple[Version, ...]
    trained_by: str

    def as_dict(self) -> dict[str, Any]:
        """Returns the JSON form."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            **{name: list(value) if isinstance(value, tuple) else value for name, value in values.items()},
            "start": vars(self.start) if self.start else None,
            "changes": [vars(change) for change in self.changes],
            "versions": [vars(version) for version in self.versions],
        }


def read_generation(run: Run, start: Parent | None, parent: RunRecord | None) -> Generation:
    """Reads a run.

    Args:
        run: the run.
        start: the checkpoint that it started from.
        parent: the record of the parent, if it is a run that can be read.
    """
    record = run.record
    epochs, last = _scored(run)
    after = record.result.scores if record.result else last
    trained_by = _process_of(run) if record.status == "running" else ""
    versions = _versions(run)
    return Generation(
        path=str(run.path),
        generation=run.generation,
        status="interrupted" if record.status == "running" and not trained_by else record.status,
        created=record.created,
        parent=Path(record.parent.path).name if record.parent else "",
        images=int(record.images.get("total", 0)),
        added=int(record.images.get("added", 0)),
        classes=len(record.card.classes),
        epochs=epochs,
        before=_accuracy(record.before, "all"),
        accuracy=_accuracy(after, "all"),
        old=_accuracy(after, "old"),
        new=_accuracy(after, "new"),
        rate=record.rate.peak,
        exports=tuple(f"{version.format} {version.path}" for version in versions),
        finished=record.finished,
        kresume=record.kresume,
        backend=record.backend,
        command=record.command,
        step=record.result.step if record.result else int(last.get("step", 0)) if last else None,
        average=record.result.average if record.result else 0.0,
        planned=record.amount.epochs,
        start=start,
        sources=_sources(record.given, first=record.parent is None),
        train=int(record.images.get("train", 0)),
        validation=int(record.images.get("validation", 0)),
        relabelled=int(record.merged.get("relabels_count", 0)),
        left_out=_left_out(parent, record),
        new_classes=tuple(record.new_classes),
        renamed=read_renames(record.options.get("rename")),
        changes=tuple(_changes(parent, record)),
        scores={"before": _subsets(record.before), "after": _subsets(after)},
        failed=tuple(record.failed),
        manifest=record.manifest,
        versions=versions,
        trained_by=trained_by,
    )


def _left_out(parent: RunRecord | None, record: RunRecord) -> int:
    return max(0, int(parent.images.get("total", 0)) - int(record.images.get("old", 0))) if parent is not None else 0


def _sources(given: Mapping[str, Any], *, first: bool) -> tuple[str, ...]:
    """Returns the sources of new images, without those of old ones; images of `--val` are new, too.

    All images of a first training are new.
    """
    data = given.get("data") if first or not given.get("add") else ()
    named = [*(data or ()), *(given.get("add") or ()), *(given.get("val") or ())]
    return tuple(dict.fromkeys(map(str, named)))


def shown(value: Any) -> str:
    """Formats a value of an option or decision."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if value is None:
        return "not given"
    if isinstance(value, (list, tuple)):
        return " ".join(str(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def flag_of(name: str) -> str:
    """Returns the flag of an option.

    The table of options is not loaded: that would take longer than reading a hundred runs.
    """
    return {"from_": "--from", "imports": "--import"}.get(name, f"--{name.replace('_', '-')}")


def decisions(record: RunRecord) -> dict[str, Any]:
    """Returns what a run decided, given or not, by name."""
    card, rate = record.card, record.rate
    return {
        "rate": rate.peak,
        "schedule": rate.schedule,
        "optimizer": record.optimizer.class_name,
        "loss": record.loss.kind,
        "batch size": record.amount.batch_size,
        "image size": "x".join(map(str, card.image_size)),
        "pixels": card.pixels,
        "resize": card.resize,
        "interpolation": card.interpolation,
        "balance": record.balance or record.options.get("balance") or DEFAULTS.balance,
        "statistics": record.statistics,
        "backend": record.backend,
    }


def compare_options(one: RunRecord, other: RunRecord, names: frozenset[str] = NOT_COMPARED) -> list[Change]:
    """Lists the options that differ between two runs, an option that was not given with its default.

    Args:
        one: a run.
        other: another run.
        names: options to leave out.
    """
    found = []
    # A run without this option has its parent's model, whatever built that.
    inherits = (
        {"model"} if any(each.parent is not None and "model" not in each.options for each in (one, other)) else set()
    )
    # Layers that the parent froze and did not thaw stay frozen without the option.
    stays = {"freeze", "unfreeze_at"} - set(other.options) if other.parent is not None else set()
    for name in sorted({*one.options, *other.options} - names - inherits - stays):
        default = None if name == "monitor" else getattr(DEFAULTS, name, None)  # used only where something monitors
        before, after = one.options.get(name, default), other.options.get(name, default)
        if (before or None) != (after or None):
            found.append(Change(flag_of(name), before, after))
    return found


def _changes(parent: RunRecord | None, record: RunRecord) -> list[Change]:
    if parent is None:
        rate = record.rate
        return [Change("rate", rate.checkpoint, rate.peak)] if rate.checkpoint not in {None, rate.peak} else []
    before, after = decisions(parent), decisions(record)
    found = [Change(name, before[name], value) for name, value in after.items() if before[name] != value]
    renames = read_renames(record.options.get("rename"))
    return found + compare_options(replace(parent, options=in_options(parent.options, renames)), record)


def _subsets(scores: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Returns the scores of all, old and new images, without those of each class."""
    return {name: scores[name] for name in SUBSETS if isinstance(scores.get(name), Mapping)} or None if scores else None


def _accuracy(scores: Mapping[str, Any] | None, subset: str) -> float | None:
    value = ((scores or {}).get(subset) or {}).get("accuracy")
    return None if value is None else float(value)


def _scored(run: Run) -> tuple[int, dict[str, Any]]:
    """Returns the number of epochs in `metrics.jsonl`, and the last line of an unfinished run."""
    try:
        lines = run.metrics.read_bytes().split(b"\n")
    except OSError:
        return 0, {}
    whole = [line for line in lines if line.startswith(b"{") and line.endswith(b"}")]
    if run.finished or not whole:
        return len(whole), {}
    try:
        last = json.loads(whole[-1])
    except ValueError:
        return len(whole) - 1, {}
    return len(whole), last if isinstance(last, dict) else {}


def _process_of(run: Run) -> str:
    """Returns host and process id of the process that trains a run; empty if none does."""
    try:
        holder = read_holder(run.path)
    except OSError:
        return ""
    alive = holder is not None and is_alive(holder, host=socket.gethostname())
    return f"pid {holder['pid']} on {holder['host']}" if holder is not None and alive else ""


def _versions(run: Run) -> tuple[Version, ...]:
    found = []
    for event in run.events("exported"):
        if not isinstance(event.get("path"), str):
            continue
        path = Path(os.path.normpath(run.path / event["path"]))
        number = int(path.name) if event.get("format") == "saved-model" and path.name.isdecimal() else None
        digest = str(event.get("digest", ""))
        facts = (number, event.get("step"), digest, _state_of(path, number, digest))
        found.append(Version(str(event.get("format")), str(path), *facts))
    return tuple(found)


def _state_of(path: Path, number: int | None, digest: str) -> Literal["there", "newest", "replaced", "gone"]:
    try:
        record = (path / "export.json").read_bytes()
    except OSError:
        return "replaced" if path.exists() else "gone"
    if digest and hashlib.sha256(record).hexdigest() != digest:
        return "replaced"
    if number is None:
        return "there"
    return "newest" if number == _newest(str(path.parent), path.parent.stat().st_mtime_ns) else "there"


@lru_cache(maxsize=64)
def _newest(folder: str, mtime_ns: int) -> int:
    """Returns the highest version in a server's folder, listed once for all of its versions."""
    return max(versions_in(Path(folder)), default=0)
