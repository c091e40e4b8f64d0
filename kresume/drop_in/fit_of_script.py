"""Tells the fits of one script apart that share a folder of backups.

    this = this_fit(base, calling_lines())
    this.wrote(other)                  # True if the backup that `other` left is one of this fit
    ended(base, this)                  # fit returned

A script may call `fit` several times: first the head, then all layers; or once for each fold of a cross-validation. Killed
in the second fit and run again, its first `fit` must not restore what the second one left. So a backup records the lines of
code that made its callback, from the script down, how many fits had ended by then at these lines, and how many in all.

A notebook runs a cell again without a new process, so its fits are counted anew in each cell that is run.
"""

from __future__ import annotations

import hashlib
import json
import linecache
import sys
import sysconfig
import textwrap
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

FITS = "fits"
"""Folder, in the folder of backups, of those that belong to other fits than the first."""
_PATHS = [*(Path(path) for path in sysconfig.get_paths().values()), Path(__file__).parent.parent]
LIBRARIES = tuple({str(form) for path in _PATHS for form in (path, path.resolve())} - {sys.prefix, sys.base_prefix})
PROCESS = uuid.uuid4().hex
"""Names this process. Its number would not do: in a container the next one may have the same."""


@dataclass(frozen=True)
class Fit:
    """A call of `fit` in a script.

    Attributes:
        lines: `(file name, line of code)` of each call that led to the callback, the script's first. Empty if unknown.
        number: 1 for the first fit at these lines, 2 for the next.
        order: 1 for the first fit of this script with this folder.
        process: the process that runs it.
    """

    lines: tuple[tuple[str, str], ...]
    number: int
    order: int
    process: str

    def as_dict(self) -> dict[str, Any]:
        """Returns the record for `fit.json`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Fit:
        """Reads the record of `as_dict`."""
        lines = tuple((str(file), str(line)) for file, line in record["lines"])
        return cls(lines, int(record["number"]), int(record["order"]), str(record["process"]))

    def wrote(self, other: Fit) -> bool:
        """Returns True if the backup of another process's fit is one of this fit.

        A script may have been edited since: where its lines are gone, the order decides.
        """
        if self.process == other.process or not (self.lines and other.lines):
            return True
        if self.number != other.number:
            return False
        return self.lines == other.lines or (self.order == other.order and not _still_there(other.lines))

    def doubt(self, other: Fit, folder: str) -> str:
        """Returns a line for the user if `wrote` is only probable; else an empty string."""
        if self.process == other.process or self.lines == other.lines or not (self.lines and other.lines):
            return ""
        return (
            f"{folder}: its backup is of {other.describe()}, which the code does not have now: it is taken for the backup of "
            f"{self.describe()}. If that is another training, give each a folder of its own"
        )

    def way_to(self, other: Fit) -> str:
        """Returns how to continue the other fit, if one line is called from two; else an empty string."""
        if not (self.lines and other.lines) or self.lines == other.lines or self.lines[-1] != other.lines[-1]:
            return ""
        pairs = zip(self.lines, other.lines, strict=False)
        here, there = next(
            ((one[1], two[1]) for one, two in pairs if one != two), (self.lines[0][1], other.lines[0][1])
        )
        return f". To continue that one, call it by the same line, `{there}`, not by `{here}`"

    def describe(self) -> str:
        """Describes the fit by the last line that led to it."""
        line = textwrap.shorten(self.lines[-1][1], 60, placeholder="…") if self.lines else "an unknown line"
        return f"`{line}`" + (f", fit number {self.number} there" if self.number > 1 else "")

    @property
    def name(self) -> str:
        """Returns a name for a folder, which is the same in every process."""
        return hashlib.sha256(json.dumps([self.lines, self.number]).encode()).hexdigest()[:12]


_ended: dict[Path, list[tuple[int | None, Fit]]] = {}
"""The fits of this process that returned, with the number of the notebook's cell, by folder."""


def this_fit(base: Path, lines: tuple[tuple[str, str], ...]) -> Fit:
    """Returns the fit that begins next.

    Args:
        base: the folder of backups that the script names.
        lines: see `Fit`.
    """
    cell = _cell()
    before = [fit for number, fit in _ended.get(base.resolve(), []) if number == cell]
    return Fit(lines, 1 + sum(fit.lines == lines for fit in before), 1 + len(before), PROCESS)


def of_this_process(left: Mapping[str, Any]) -> bool:
    """Returns True if a fit of this process left a record of `fit.json`."""
    return bool(left.get("fit") and left["fit"]["process"] == PROCESS)


def ended(base: Path, fit: Fit) -> None:
    """Records that a fit returned."""
    _ended.setdefault(base.resolve(), []).append((_cell(), fit))


def calling_lines() -> tuple[tuple[str, str], ...]:
    """Returns the lines of the user's code that are being called, the script's first.

    A launcher may have code without a file, which is left out. Empty if that of the callback itself has none.
    """
    lines: list[tuple[str, str]] = []
    for frame in _frames():
        path = frame.f_code.co_filename
        linecache.checkcache(path)
        text = linecache.getline(path, frame.f_lineno, frame.f_globals).strip()
        if text:
            lines.append((Path(path).name, text))
        elif not lines:
            return ()  # typed into a console: nothing to compare
    return tuple(reversed(lines))


def _frames() -> Iterator[FrameType]:
    """Yields the frames of the user's code, the innermost first."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if not frame.f_code.co_filename.startswith((*LIBRARIES, "<frozen")):
            yield frame
        frame = frame.f_back


def _still_there(lines: tuple[tuple[str, str], ...]) -> bool:
    """Returns True if the code still has all these lines."""
    paths = {frame.f_code.co_filename for frame in _frames()}
    paths |= {getattr(module, "__file__", None) or "" for module in list(sys.modules.values())}
    paths |= {path for path in linecache.cache if not Path(path).is_file()}  # cells of a notebook
    names = {name for name, _ in lines}
    code: dict[str, set[str]] = {}
    for path in paths:
        if (name := Path(path).name) in names:
            code.setdefault(name, set()).update(line.strip() for line in linecache.getlines(path))
    return all(line in code.get(name, ()) for name, line in lines)


def _cell() -> int | None:
    """Returns the number of the notebook's cell that runs; None outside a notebook."""
    module = sys.modules.get("IPython")
    shell = module.get_ipython() if module is not None else None
    return None if shell is None else int(shell.execution_count)
