"""Decides which images leave a run for good: by `--drop`, now or in an earlier run.

dropped = known_dropped(config, parent, remembered)         # before any file is read: their pixels are not written
dropped = dropped.found(remembered, data, add, val)         # after: also new images that a line names by path
dropped.forget(cache)                                       # removes from the cache what it holds of them
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from kresume.images import corrections
from kresume.images.cache import Cache
from kresume.images.collect import Sources
from kresume.images.manifest import Manifest
from kresume.images.merging import MergeFacts
from kresume.images.prepare import Prepared
from kresume.images.sources.moves import Moves
from kresume.options.table import TrainConfig
from kresume.runs import dropped_by
from kresume.spelling import counted, option
from kresume.training.plan.parent import Parent


@dataclass(frozen=True)
class Dropped:
    """Images that a run leaves out for good.

    Attributes:
        file: the file of `--drop`; None without.
        lines: its lines.
        before: SHA-256s of images that an earlier run dropped.
        named: SHA-256s of images that the lines name.
        nowhere: lines that match no image.
    """

    file: str | None
    lines: corrections.Drop
    before: frozenset[str]
    named: frozenset[str]
    nowhere: tuple[str, ...] = ()

    @property
    def hashes(self) -> frozenset[str]:
        """Returns the SHA-256s of all of them."""
        return self.named | self.before

    def found(self, recorded: Manifest | None, *prepared: Prepared | None) -> Dropped:
        """Returns the same with the images that the lines name among those that are recorded and given."""
        named, nowhere = corrections.hashes_in(self.lines, recorded, *prepared)
        return replace(self, named=frozenset(named), nowhere=tuple(nowhere))

    def removed(self, parent: Parent | None) -> int:
        """Counts the images that the parent still has, or keeps as away, and that the lines name."""
        ever = parent.ever if parent is not None and self.named else None
        return 0 if ever is None else int(np.isin(ever.sha256s, np.array(sorted(self.named), "S64")).sum())

    def forget(self, cache: Cache | None) -> int:
        """Removes them from a cache; returns how many of those that the lines name were in it.

        An image of an earlier run may be there again: another command or an older version decoded a copy.
        """
        if cache is None or not self.hashes:
            return 0
        return len(corrections.forget(cache, self.hashes) & self.named)

    def describe(self, facts: MergeFacts, forgotten: int | None) -> list[str]:
        """Returns notes on what is dropped now, what was before, and lines without an image.

        Args:
            facts: of the merge.
            forgotten: the result of `forget`; None for a plan, which forgets nothing.
        """
        notes = []
        if self.lines:
            now = len(facts.dropped_sha256s & self.named)
            cached = f", {forgotten:,} of them from the cache" if forgotten is not None else ""
            notes.append(f"{counted(now, 'image')} dropped ({option('drop')}){cached}")
        if self.nowhere:
            without = f"{counted(len(self.nowhere), 'line')} of {option('drop', self.file)} without an image"
            notes.append(f"{without}; {corrections.first_of(self.nowhere)}")
        return notes + self.describe_earlier(facts)

    def describe_earlier(self, facts: MergeFacts) -> list[str]:
        """Returns a note on images that were given and that an earlier run dropped."""
        count = len(facts.dropped_sha256s - self.named)
        them = "it" if count == 1 else "them"
        many = counted(count, "image", "is", "are")
        return [f"{many} left out, because an earlier run dropped {them}"] if count else []

    def describe_absent(self, facts: MergeFacts, parent: str) -> list[str]:
        """Returns notes on images that were given and dropped, none of which the parent has."""
        now = len(facts.dropped_sha256s & self.named)
        many = counted(now, "image")
        absent = [f"{many} that {option('drop')} names {'is' if now == 1 else 'are'} not in {parent}"] if now else []
        return absent + self.describe_earlier(facts)


def remembered(config: TrainConfig, parent: Parent | None, sources: Sources) -> Manifest | None:
    """Returns the images of the parent at their current paths, as `--remap` says; None without.

    Raises:
        UsageError: an option of `--remap` moves nothing.
    """
    had = parent.manifest if parent is not None else None
    return corrections.remap(had, Moves.parse(config.remap), sources.moved)


def known_dropped(config: TrainConfig, parent: Parent | None, recorded: Manifest | None) -> Dropped:
    """Returns the images to leave out that are known before any file is read.

    Args:
        config: the options of the run.
        parent: the checkpoint to start from, None for a new model.
        recorded: its images at their current paths.

    Raises:
        UsageError: the file of `--drop` does not exist or has no lines.
    """
    drop = corrections.read_drop(config.drop)
    before = dropped_by(parent.run) if parent is not None and parent.run is not None else set()
    return Dropped(config.drop, drop, frozenset(before), frozenset()).found(recorded)
