"""Says where images have moved: the paths of lists and of recorded images begin in another folder now.

moves = Moves.parse(["/content/drive=/mnt/drive"])
moves.apply("/content/drive/cat/1.jpg", "/data")     # ("/mnt/drive/cat/1.jpg", {"/content/drive"})
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from kresume.errors import UsageError
from kresume.spelling import option
from kresume.storage import locations


@dataclass(frozen=True)
class Moves:
    """Pairs of folders, before and now, as the user gave them."""

    pairs: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, given: Sequence[str] | None) -> Moves:
        """Reads `OLD=NEW` each.

        Raises:
            UsageError: one has another form.
        """
        pairs = []
        for pair in given or ():
            old, equals, new = pair.partition("=")
            if not equals or not old or not new:
                raise UsageError(
                    f"{option('remap', pair)}: give OLD=NEW, for example {option('remap', '/mnt/old=/data/old')}"
                )
            pairs.append((old, new))
        return cls(tuple(pairs))

    @cached_property
    def absolute(self) -> tuple[tuple[str, str, str], ...]:
        """Returns (the folder before as it was given, its absolute path, the absolute path now) of each pair."""
        return tuple((old, locations.absolute(old), locations.absolute(new)) for old, new in self.pairs)

    def apply(self, path: str, folder: str) -> tuple[str, set[str]]:
        r"""Returns where an image of a list is now, and the folders before that were replaced.

        A folder may be spelled as in the list (`C:\photos`, `scans/1`) or by its absolute path.

        Args:
            path: as the list has it.
            folder: the list's folder, from which its paths go out.
        """
        used, path = set(), path.strip().removeprefix("./")
        for old, before, now in self.absolute:
            for spelled, begins in ((path, old), (locations.join(folder, path), before)):
                turned, whole = (text.replace("\\", "/") for text in (spelled, begins.rstrip("/\\")))
                if whole and turned.startswith(f"{whole}/"):
                    path = f"{now}{turned[len(whole) :]}"
                    used.add(old)
                    break
        return path, used


NOTHING = Moves()
"""No image has moved."""
