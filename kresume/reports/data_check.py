"""Finds problems in scanned images: `kresume data check`.

    print(check(scan(["new/"], reporter, against=remembered(run.path))))

Two labels, near-duplicates across the splits, unknown classes and files that cannot be used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kresume.images.near import near_pairs, thumb_array
from kresume.reports.data import Scanned, first_of, notes_of
from kresume.spelling import counted


@dataclass(frozen=True)
class Check:
    """Problems of scanned images.

    Attributes:
        sources: as the user gave them.
        images: number of distinct images, by content.
        known: given images that the run already has.
        duplicates: files whose content also exists under another path.
        conflicts: same content under two labels: path, label, other label.
        relabels: images whose label differs from the run's and that left their recorded path: path, old label, label.
        leaks: near-duplicates in both the training and the validation split: path, the other path, what a run would do.
        near: other near-duplicate pairs: path, path, True if their labels differ.
        quarantine: files that cannot be used: path and reason.
        unknown: images per class that the run does not have: `train` would refuse them.
        notes: further notes for the user.
    """

    sources: tuple[str, ...]
    images: int
    known: int
    duplicates: int
    conflicts: tuple[tuple[str, str, str], ...]
    relabels: tuple[tuple[str, str, str], ...]
    leaks: tuple[tuple[str, str, str], ...]
    near: tuple[tuple[str, str, bool], ...]
    quarantine: tuple[tuple[str, str], ...] = ()
    unknown: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def problems(self) -> int:
        """Counts conflicts, leaks, near-duplicates under two labels, unknown classes and unusable files."""
        differing = sum(differs for _, _, differs in self.near)
        return len(self.conflicts) + len(self.leaks) + differing + len(self.quarantine) + len(self.unknown)

    def as_dict(self) -> dict[str, Any]:
        """Returns the JSON form."""
        return {
            "sources": list(self.sources),
            "images": self.images,
            "known": self.known,
            "duplicates": self.duplicates,
            "conflicts": [dict(zip(("path", "label", "other"), row, strict=True)) for row in self.conflicts],
            "relabels": [dict(zip(("path", "before", "now"), row, strict=True)) for row in self.relabels],
            "leaks": [dict(zip(("path", "near", "outcome"), row, strict=True)) for row in self.leaks],
            "near": [dict(zip(("path", "other", "labels_differ"), row, strict=True)) for row in self.near],
            "quarantine": [dict(zip(("path", "reason"), row, strict=True)) for row in self.quarantine],
            "unknown": dict(self.unknown),
            "problems": self.problems,
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        lines = [
            f"{counted(self.images, 'image')} in {', '.join(self.sources)}: {counted(self.duplicates, 'duplicate')}, "
            f"{self.known:,} already known"
        ]
        lines += first_of("files cannot be used", [f"{path}: {reason}" for path, reason in self.quarantine])
        lines += first_of(
            f"class{'es' if len(self.unknown) > 1 else ''} that the run does not have; `train` would refuse them",
            [f"{name}: {count:,} image{'s' if count > 1 else ''}" for name, count in self.unknown.items()],
        )
        lines += first_of(
            "files have two labels",
            [f"{path}: {label}, and {other} elsewhere" for path, label, other in self.conflicts],
        )
        lines += first_of(
            "images have a new label", [f"{path}: {before} -> {now}" for path, before, now in self.relabels]
        )
        lines += first_of(
            "images are duplicates or near-duplicates of an image in the other split",
            [f"{path} (near {other}): {outcome}" for path, other, outcome in self.leaks],
        )
        differing = [f"{one} and {other}" for one, other, differs in self.near if differs]
        lines += first_of("pairs of near-duplicates have two labels", differing)
        alike = [f"{one} and {other}" for one, other, differs in self.near if not differs]
        lines += first_of("pairs of near-duplicates", alike)
        lines.append(counted(self.problems, "problem") if self.problems else "no problems")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def check(scanned: Scanned) -> Check:
    """Finds duplicates, label conflicts, near-duplicates across splits and unusable files."""
    manifest = scanned.manifest
    thumbs, usable = thumb_array(manifest.table.column("thumb"))
    is_new = (
        manifest.origins >= max(scanned.generation, 0) if scanned.merge is not None else np.ones(len(manifest), bool)
    )
    pairs = near_pairs(thumbs, usable, is_new)
    names = [found.name for found in manifest.found(pairs.reshape(-1))]
    differs = manifest.labels[pairs[:, 0]] != manifest.labels[pairs[:, 1]] if len(pairs) else np.zeros(0, bool)
    split = manifest.table.column("side").to_pylist()
    facts = scanned.merge.facts if scanned.merge is not None else None
    leaks = [(leak.path, leak.near, leak.outcome) for leak in (facts.leaks if facts else ())]
    leaks += facts.both if facts else ()
    near: list[tuple[str, str, bool]] = []
    for number, (one, other) in enumerate(pairs.tolist()):
        first, second = names[2 * number], names[2 * number + 1]
        if None not in {split[one], split[other]} and split[one] != split[other]:
            leaks.append((first, second, "recorded in both splits: unchanged"))
        else:
            near.append((first, second, bool(differs[number])))
    return Check(
        sources=scanned.sources,
        images=scanned.given if scanned.given is not None else len(manifest),
        known=facts.known if facts else 0,
        duplicates=facts.duplicates if facts else 0,
        conflicts=facts.conflicts if facts else (),
        relabels=facts.relabels if facts else (),
        leaks=tuple(leaks),
        near=tuple(near),
        quarantine=tuple((row.path, row.reason) for row in scanned.quarantine),
        unknown=scanned.unknown,
        notes=notes_of(scanned),
    )
