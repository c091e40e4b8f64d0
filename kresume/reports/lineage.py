"""Lists runs with their parents, data and results: the ancestors of one, or every run in a folder.

    print(lineage("runs/"))
    lineage("runs/3-signs").generations[1].path

Checkpoints of other programs from which runs started are the roots. A run that cannot be read is listed with the reason
and hides no other. This imports neither Keras nor TensorFlow nor JAX.
"""

from __future__ import annotations

import contextlib
import gc
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from kresume.addresses import address_of, is_stage, public, resolved
from kresume.checkpoints.files import FileState, compare_files, result_content
from kresume.errors import RunError
from kresume.reports.generation import Generation, Parent, read_generation
from kresume.runs import ASIDE, DAMAGED, RECORD, Run, Unreadable, is_run, number_of, open_run, try_open
from kresume.staging.fetch import here
from kresume.storage import atomic

WIDTH = 120
"""Columns of the text where there is no terminal."""


@dataclass(frozen=True)
class Root(Parent):
    """A checkpoint from which runs started and that is none of the listed runs.

    Its format is `"run"` for a run in another folder.
    """


@dataclass(frozen=True)
class Lineage:
    """Runs and what they started from.

    Attributes:
        generations: the runs, newest first; for a single run it and its ancestors.
        checkpoints: the roots that are none of these runs.
        unreadable: run directories that cannot be read.
    """

    generations: tuple[Generation, ...]
    checkpoints: tuple[Root, ...] = ()
    unreadable: tuple[Unreadable, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Returns the JSON form: `{"runs": [...], "checkpoints": [...], "unreadable": [...]}`, newest first."""
        return {
            "runs": [generation.as_dict() for generation in self.generations],
            "checkpoints": [vars(root) for root in self.checkpoints],
            "unreadable": [vars(each) for each in self.unreadable],
        }

    def __str__(self) -> str:
        return self.text()

    def text(self, *, short: bool = False) -> str:
        """Draws the tree, in the terminal's width.

        Args:
            short: one line per run.
        """
        from kresume.reports.run_tree import draw

        return public(draw(self, shutil.get_terminal_size((WIDTH, 24)).columns, short=short))


def lineage(path: str | Path) -> Lineage:
    """Lists a run and its ancestors, or every run in a folder and in its subfolders, newest first.

    Raises:
        RunError: there is no run at `path` and none in it, or the run at `path` cannot be read.
    """
    path = Path(here(path))
    if is_run(path):
        return lineage_of(open_run(path))
    with _uncollected():
        return _all_in(path)


def lineage_of(run: Run) -> Lineage:
    """Lists a run and its ancestors, newest first."""
    with _uncollected():
        return _ancestors(run)


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Turns Python's garbage collector off: a thousand records hold no cycles, and it would search them."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _all_in(path: Path) -> Lineage:
    """Reads every run in a folder."""
    # A run that a link names too is listed under its own name.
    folders, real = sorted(_run_folders(path), key=os.path.islink, reverse=True), real_paths()
    found = {key: try_open(folder) for key, folder in {real(each): each for each in folders}.items()}
    if not found:
        raise RunError(f"no run at {path} and none in it: give a run's directory or the folder that holds them")
    return join(found)


def _ancestors(run: Run) -> Lineage:
    """Follows a run to its first parent."""
    real = real_paths()
    chain: dict[str, Run | Unreadable] = {real(run.path): run}
    while run.record.parent is not None:
        recorded = _run_of(resolved(run.record.parent.path, run.path))
        opened = {real(recorded): try_open(recorded)} if recorded else {}
        # A parent that was moved is probably beside the run.
        beside = (try_open(folder) for folder in _run_folders(run.path.parent))
        parent = _follow(run, _ByContent(each for each in beside if isinstance(each, Run)), opened, real)
        folder = None if parent.state == "changed" else _run_of(Path(parent.path))
        if folder is None or (key := real(folder)) in chain:
            break
        chain[key] = found = opened.get(key) or try_open(folder)
        if not isinstance(found, Run):
            break
        run = found
    return join(chain)


def join(found: Mapping[str, Run | Unreadable]) -> Lineage:
    """Reads every run with its parent; finds the roots.

    Args:
        found: the runs by their real path.
    """
    runs = {key: each for key, each in found.items() if isinstance(each, Run)}
    unreadable = [each for each in found.values() if isinstance(each, Unreadable)]
    wanted = {key for key, run in runs.items() if not re.search(ASIDE, run.path.name)}
    generations: list[tuple[str, int, Generation]] = []
    roots: dict[tuple[str, str], Root] = {}
    queue, by_content, real = list(wanted), _ByContent(runs.values()), real_paths()
    while queue:
        run = runs[queue.pop()]
        try:
            start = _follow(run, by_content, found, real) if run.record.parent else None
            key = _key_of(start, found, real) if start else ""
            beside = runs.get(key) or (try_open(Path(key)) if key and key not in found else None)
            record = beside.record if isinstance(beside, Run) and start and start.state != "changed" else None
            generation = read_generation(run, start, record)
        except DAMAGED as error:
            unreadable.append(Unreadable(str(run.path), f"{type(error).__name__}: {error}"))
            continue
        generations.append((generation.created, number_of(run.path.name), generation))
        if key in runs and key not in wanted:  # moved aside by --overwrite, but a listed run descends from it
            wanted.add(key)
            queue.append(key)
        if start is not None and (key not in found or start.state == "changed"):
            roots.setdefault((start.path, start.digest), Root(**vars(start)))
    listed = [generation for _, _, generation in sorted(generations, key=lambda each: each[:2], reverse=True)]
    return Lineage(tuple(listed), tuple(roots.values()), tuple(unreadable))


def real_paths() -> Callable[[str | Path], str]:
    """Returns `os.path.realpath` for many paths: it asks the disk about each folder once."""
    folder, current = cache(os.path.realpath), os.getcwd()

    def real(path: str | Path) -> str:
        text = os.path.join(current, path)
        head, name = os.path.split(text)
        if name in {"", ".", ".."} or os.path.islink(text):
            return os.path.realpath(text)
        return os.path.join(folder(head), name)

    return real


def _follow(
    run: Run,
    others: Mapping[str, Run],
    opened: Mapping[str, Run | Unreadable],
    real: Callable[[str | Path], str],
) -> Parent:
    """Returns the parent of a run: where it is now, and whether it still is what it was.

    Args:
        run: a run with a parent.
        others: runs among which to search for a parent that was moved, by the content of their result.
        opened: runs that were read already, by their real path.
        real: from `real_paths`.
    """
    recorded = run.record.parent
    if recorded is None:
        raise RunError(f"{run.path} has no parent")
    path = resolved(recorded.path, run.path)
    if is_stage(path) and not path.exists():
        with contextlib.suppress(RunError):  # then it is missing, as told below
            path = Path(here(address_of(path)))
    found = Parent(_near(path), recorded.format, recorded.step, recorded.digest, "unknown")
    compared = compare_files(path, recorded.files)
    state, reason = compared.state, compared.reason
    if recorded.format == "run":
        parent = opened.get(real(path)) or (try_open(path) if is_run(path) else None)
        state, reason = _of_run(path, run, parent, state, reason)
    elif state == "unknown" and not path.exists() and not path.with_name(f"{path.name}.index").exists():
        state, reason = "missing", "nothing is there any more"
    if state in {"missing", "changed"} and recorded.format == "run":
        contents = [facts.get("sha256") for facts in recorded.files.values()]
        moved = others.get(str(contents[0])) if contents else None
        if moved is not None and compare_files(moved.path, recorded.files).state == "unchanged":
            return replace(found, path=str(moved.path), state="moved", reason=f"it was {_near(path)}")
    return replace(found, state=state, reason=reason)


class _ByContent(Mapping[str, Run]):
    """Finds runs by the SHA-256 of their result's arrays; reads the snapshots' records when first asked."""

    def __init__(self, runs: Iterable[Run]) -> None:
        self._runs = runs
        self._found: dict[str, Run] | None = None

    def _all(self) -> dict[str, Run]:
        if self._found is None:
            self._found = {}
            for run in self._runs:
                if (content := result_content(run)) is not None:
                    self._found[content] = run
        return self._found

    def __getitem__(self, content: str) -> Run:
        return self._all()[content]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())


def _of_run(
    path: Path, child: Run, parent: Run | Unreadable | None, state: FileState, reason: str
) -> tuple[FileState, str]:
    """Compares a parent that is a run, also one whose files were not recorded."""
    recorded = child.record.parent
    if parent is None:
        return "missing", "nothing is there any more" if not path.exists() else "no run is there any more"
    if isinstance(parent, Unreadable):
        return "unknown", f"its {RECORD} cannot be read"
    if parent.record.created > child.record.created:
        return "changed", f"another run is there now, made {shown_time(parent.record.created)}"
    step = parent.result_step()
    total = None if step is None else parent.record.base_step + step
    if state in {"missing", "unknown"} and recorded is not None and total not in {None, recorded.step}:
        return "unknown", f"its snapshot of step {recorded.step or 0:,} is not kept; its result is step {total:,}"
    return state, reason


def shown_time(created: str) -> str:
    """Formats a time as `2026-11-26 14:02`."""
    return created.replace("T", " ")[:16]


def _near(path: Path) -> str:
    """Returns a path relative to the current folder where that is shorter."""
    if is_stage(path):
        return str(path)
    try:
        relative = os.path.relpath(path)
    except ValueError:  # another drive
        return str(path)
    return relative if len(relative) < len(str(path)) else str(path)


def _run_of(path: Path) -> Path | None:
    """Returns the run that a parent's path names: it may be a run's own `model.keras`."""
    return next((folder for folder in (path, path.parent) if is_run(folder)), None)


def _key_of(start: Parent, found: Mapping[str, Any], real: Callable[[str | Path], str]) -> str:
    """Returns the real path of the run that a parent is or belongs to; empty for other checkpoints."""
    path = real(start.path)
    if path in found:
        return path
    folder = _run_of(Path(path))
    return str(folder) if folder else ""


def _run_folders(folder: Path) -> Iterator[Path]:
    """Yields the run directories in a folder, at any depth.

    Runs, hidden folders and links are not searched.
    """
    waiting: list[Path] = [folder]
    while waiting:
        current = waiting.pop()
        try:
            entries: Sequence[os.DirEntry[str]] = sorted(os.scandir(current), key=lambda entry: entry.name)
        except OSError:
            continue
        for entry in entries:
            if entry.name.startswith((".", atomic.TEMPORARY_PREFIX)) or not entry.is_dir():
                continue
            path = current / entry.name
            if os.path.lexists(path / RECORD):
                yield path
            elif not entry.is_symlink():
                waiting.append(path)
