"""Where the records of a training go: one interface, one file per sink."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Line:
    """The facts of an epoch, as a line of `metrics.jsonl`."""

    facts: Mapping[str, object]


@dataclass(frozen=True)
class Point:
    """Values of a moment within an epoch; when there is one depends on the clock.

    Attributes:
        step: steps done.
        time: seconds since 1970.
        values: by name.
    """

    step: int
    time: float
    values: Mapping[str, float]


@dataclass(frozen=True)
class Samples:
    """Pictures that are trained on.

    Attributes:
        step: the step from which on they are.
        pictures: `(height, width, 3) uint8`, by group and name.
    """

    step: int
    pictures: Mapping[str, Sequence[tuple[str, np.ndarray]]]


Entry = Line | Point | Samples


class Sink(Protocol):
    """Takes the records of a training.

    The writer's thread calls it. An entry that could not be written is tried again. A sink ignores entries that it has no place
    for.

    Attributes:
        name: its name for the user.
        counted: True if snapshots count its lines, so that one is written only after them.
    """

    name: str
    counted: bool

    def write(self, entry: Entry) -> None:
        """Writes one entry, whole.

        Raises:
            OSError: it could not be written, not even a part of it.
        """

    def keep(self, lines: int, step: int) -> None:
        """Drops what training repeats: all but the first `lines` lines, and what belongs to later steps.

        Args:
            lines: epochs that the snapshot counts.
            step: the step of the snapshot.

        Raises:
            RunError: there are fewer lines, or one is damaged.
            OSError: it could not be read or written.
        """

    def close(self, status: str) -> None:
        """Ends the record of this process.

        Args:
            status: that of the run: `"accepted"`, `"rejected"` or `"interrupted"`.
        """
