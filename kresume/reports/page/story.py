"""Tells what was restored, what was changed, and how to make the run again."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kresume import runs
from kresume.class_renames import describe_renames, read_renames
from kresume.reports.differences import compare_runs
from kresume.reports.generation import Change
from kresume.reports.page.source import Source
from kresume.spelling import counted
from kresume.storage import atomic
from kresume.values.record import RunRecord

MOST_HASHED = 500_000_000
"""Bytes of a model up to which its digest is computed; hashing more takes seconds."""


@dataclass(frozen=True)
class Fact:
    """A line of the page: a name and a text; `code` sets the text as code that can be copied."""

    name: str
    text: str
    code: bool = False


@dataclass(frozen=True)
class Story:
    """Tells what a run restored and changed, and how to repeat it.

    Attributes:
        restored: facts about what came from the parent.
        changed: facts about what the run decided.
        differences: options that differ from the parent's, or the other run's.
        against: the name of the run that they are compared with; empty without one.
        notes: notes of the plan.
        reproduce: the command, versions and digests.
    """

    restored: tuple[Fact, ...]
    changed: tuple[Fact, ...]
    differences: tuple[Change, ...]
    against: str
    notes: tuple[str, ...]
    reproduce: tuple[Fact, ...]


def story_of(source: Source) -> Story:
    """Returns what was restored, changed and recorded."""
    record = source.run.record
    against = source.other or (source.ancestors[0] if source.ancestors else None)
    return Story(
        _restored(source),
        _changed(source),
        _differences(source),
        against.path.name if against is not None else "the checkpoint" if record.parent else "",
        tuple(record.notes),
        _reproduce(source),
    )


def _facts(*rows: tuple[str, str]) -> tuple[Fact, ...]:
    return tuple(Fact(name, text) for name, text in rows if text)


def _restored(source: Source) -> tuple[Fact, ...]:
    record = source.run.record
    if record.parent is None:
        return _facts(("model", "a new one: nothing was restored"))
    step = f", step {record.parent.step:,}" if record.parent.step is not None else ""
    start = source.own.start if source.own is not None else None
    state = f"{start.state}{f' ({start.reason})' if start.reason else ''}" if start is not None else ""
    return _facts(
        ("from", f"{record.parent.path} ({record.parent.format}{step})"),
        ("its files since then", state),
        ("variables", record.restored or "not recorded by the version that made this run"),
        ("optimizer", f"{record.plan.optimizer}, at its update {record.iterations:,}"),
        ("classes", f"{len(record.card.classes)} ({record.plan.classes_reason})"),
        ("pixels", f"{record.card.pixels} ({record.plan.pixels_reason})"),
    )


def _more_steps(record: RunRecord) -> str:
    """Returns how many steps there were, if images that came while it trained made more than were planned."""
    done = record.result.step if record.result is not None else 0
    return f" as planned; {done:,} steps with the images that came" if done > record.amount.steps else ""


def _changed(source: Source) -> tuple[Fact, ...]:
    record = source.run.record
    amount, images = record.amount, record.images
    size = "x".join(map(str, record.card.image_size))
    added = f"{images.get('added', 0):,} added, {images.get('total', 0):,} in all" if record.parent else ""
    return _facts(
        ("images", added),
        ("new classes", ", ".join(record.new_classes)),
        ("renamed classes", describe_renames(read_renames(record.options.get("rename")))),
        ("rate", str(record.rate)),
        (
            "amount",
            f"{counted(amount.epochs, 'epoch')}, {counted(amount.steps, 'step')} of {amount.batch_size} "
            f"({amount.reason}){_more_steps(record)}",
        ),
        ("loss", record.plan.loss),
        ("image size", f"{size}, {record.card.resize}, {record.card.interpolation}"),
        ("frozen layers", "some; see the command" if record.freezing is not None else ""),
        ("sampling", "balanced by class" if record.balance == "class" else ""),
        ("gates", "; ".join(f"failed: {failure}" for failure in record.failed)),
    )


def _differences(source: Source) -> tuple[Change, ...]:
    """Returns what differs from the parent, or from the other run."""
    if source.other is None:
        return source.own.changes if source.own is not None else ()
    found = compare_runs(source.other.path, source.run.path)
    images = found.images
    counted = (
        ()
        if images is None
        else (
            Change("images", images.before, images.after),
            Change("images that only one of them has", images.removed, images.added),
        )
    )
    return (*counted, *found.decisions, *found.options, *found.versions)


def _reproduce(source: Source) -> tuple[Fact, ...]:
    run, record = source.run, source.run.record
    print_ = record.fingerprint
    packages: Mapping[str, Any] = print_.get("packages") or {}
    machine = ", ".join(
        str(part)
        for part in (
            print_.get("cpu"),
            f"{print_.get('devices', 1)} {print_.get('device', '')}",
            f"{print_.get('threads')} threads",
        )
        if part
    )
    extend = f"kresume train --from {shlex.quote(str(run.path))} --add FOLDER"
    facts = [
        Fact("command", record.command, code=True),
        *([Fact("extend it", extend, code=True)] if run.status == "accepted" else []),
        *_facts(
            ("kresume", record.kresume),
            ("python", str(print_.get("python", ""))),
            ("packages", ", ".join(f"{name} {version}" for name, version in packages.items() if name != "kresume")),
            ("backend", record.backend),
            ("machine", machine),
            ("seed", str(record.seed)),
            ("created", record.created),
            ("finished", record.finished),
        ),
    ]
    digests = [
        ("parent's arrays (SHA-256)", record.parent.digest if record.parent else ""),
        ("table of images (SHA-256)", record.manifest),
        ("model.keras (SHA-256)", _digest(run)),
    ]
    return (*facts, *(Fact(name, text, code=True) for name, text in digests if text))


def _digest(run: runs.Run) -> str:
    try:
        small = run.model.is_file() and run.model.stat().st_size <= MOST_HASHED
        return atomic.sha256_of_file(run.model) if small else ""
    except OSError:
        return ""
