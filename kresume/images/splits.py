"""Assigns newcomers to training or validation and never separates near-duplicates.

    decided = decide_splits(newcomers, remembered, val_split=0.1)      # sets row["side"]; None if left out
    decided.leaks, decided.notes

- A recorded split is permanent. A newcomer near a recorded image gets its split; near images of both, it is left out.
- Newcomers near each other share one split: validation if one of them was given for validation.
- For the others the content's hash decides, so the same images get the same split everywhere.
- A newcomer near an image that the checkpoint was trained on counts as seen, too: it says as little about new pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from kresume.images.manifest import TRAIN, VAL
from kresume.images.near import near_pairs, thumb_array
from kresume.spelling import counted, option

if TYPE_CHECKING:
    import pyarrow as pa

Row = dict[str, Any]


@dataclass(frozen=True)
class Leak:
    """Describes a newcomer that would be split from a near-duplicate.

    Attributes:
        path: path of the newcomer.
        near: path of the near-duplicate.
        outcome: `"validates"`, `"trains"` or `"left out"`.
    """

    path: str
    near: str
    outcome: str


@dataclass(frozen=True)
class Splits:
    """Holds the leaks and notes of `decide_splits`.

    Attributes:
        leaks: near-duplicates across the training / validation split, each with its outcome.
        notes: messages for the user.
    """

    leaks: tuple[Leak, ...]
    notes: tuple[str, ...]


def decide_splits(
    newcomers: list[Row],
    remembered: pa.Table,
    val_split: float | None,
    *,
    away: pa.Table,
    fills: bool = True,
) -> Splits:
    """Sets the split of every newcomer, permanently.

    Args:
        newcomers: rows of the new manifest. `side` is preset where the source defines it; this function sets the final
            one.
        remembered: the recorded rows.
        away: the rows of images that only earlier generations had; their near-duplicates get their split.
        val_split: the fraction of newcomers to validate on; None for none.
        fills: True gives every class a validation image if its newcomers have none. Use False if few images arrive at a
            time: one of each few would be far more than `val_split`.

    Returns:
        The leaks and the notes.
    """
    near = _look_near(newcomers, remembered, away)
    notes = _decide_by_content(newcomers, near, val_split, fills)
    return Splits(tuple(near.leaks), (*notes, *_describe(near.leaks), *_describe_labels(near.other_label)))


@dataclass(frozen=True)
class _Near:
    """Holds which newcomers are near-duplicates, by their indices in the list.

    Attributes:
        groups: groups of two or more near newcomers whose split no recorded image decides.
        left_out: newcomers near recorded images of both splits.
        leaks: appended to while splits are decided.
        other_label: newcomers near an image of another class, as (path, label, near path, its label).
    """

    groups: list[list[int]]
    left_out: set[int]
    leaks: list[Leak]
    other_label: list[tuple[str, str, str, str]]


def _name(row: Row) -> str:
    return f"{row['path']}/{row['member']}" if row["member"] else str(row["path"])


def _outcome(split: str | None) -> str:
    return {TRAIN: "trains", VAL: "validates", None: "left out"}[split]


def _look_near(newcomers: list[Row], remembered: pa.Table, away: pa.Table) -> _Near:
    """Finds near-duplicates and gives newcomers the split of recorded ones."""
    import pyarrow as pa

    near = _Near([], set(), [], [])
    recorded_rows = pa.concat_tables([remembered, away]) if len(away) else remembered
    pairs, old_is_val, old_names = _pairs(newcomers, recorded_rows)
    if not len(pairs):
        return near
    # Not with images that are away: one may have left because its label was wrong.
    there = pairs[(pairs < len(newcomers) + len(remembered)).all(axis=1)]
    near.other_label.extend(_under_two_labels(there, newcomers, remembered))
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    count = len(newcomers)
    among = pairs[(pairs < count).all(axis=1)]
    graph = coo_array((np.ones(len(among)), (among[:, 0], among[:, 1])), shape=(count, count))
    _, component = connected_components(graph, directed=False)
    recorded: dict[int, list[int]] = {}
    neighbours: dict[int, list[int]] = {}
    for one, other in pairs.tolist():
        if other >= count:
            recorded.setdefault(one, []).append(other - count)
        else:
            neighbours.setdefault(one, []).append(other)
            neighbours.setdefault(other, []).append(one)
    members: dict[int, list[int]] = {}
    for index in sorted(set(recorded) | set(neighbours)):
        members.setdefault(int(component[index]), []).append(index)
    was_seen = recorded_rows.column("seen").to_pylist()
    for group in members.values():
        near_seen = any(was_seen[row] for index in group for row in recorded.get(index, ()))
        if near_seen or any(newcomers[index]["seen"] for index in group):
            for index in group:
                newcomers[index]["seen"] = True
        if any(index in recorded for index in group):
            _inherit(newcomers, group, recorded, neighbours, old_is_val, old_names, near)
        else:
            near.groups.append(group)
    return near


def _pairs(newcomers: list[Row], remembered: pa.Table) -> tuple[np.ndarray, np.ndarray, Any]:
    """Finds near pairs among newcomers and recorded images.

    Returns:
        `(pairs, is_val of the recorded images, their paths)`. In the pairs newcomers are numbered first.
    """
    import pyarrow as pa

    fresh = pa.chunked_array([pa.array([row["thumb"] for row in newcomers], pa.binary())])
    thumbs, usable = thumb_array(fresh)
    is_val, paths = np.zeros(0, bool), None
    if len(newcomers):
        import pyarrow.compute as compute

        old_thumbs, old_usable = thumb_array(remembered.column("thumb"))
        thumbs, usable = np.concatenate([thumbs, old_thumbs]), np.concatenate([usable, old_usable])
        is_val = compute.equal(remembered.column("side"), VAL).to_numpy().astype(bool)
        paths = remembered.select(["path", "member"])
    is_new = np.arange(len(thumbs)) < len(newcomers)
    return near_pairs(thumbs, usable, is_new), is_val, paths


def _under_two_labels(pairs: np.ndarray, newcomers: list[Row], remembered: pa.Table) -> list[tuple[str, str, str, str]]:
    """Returns the newcomers that are near an image with another label; see `_Near.other_label`."""
    labels = np.array([*(row["label"] for row in newcomers), *remembered.column("label").to_pylist()], object)
    names = remembered.select(["path", "member"])

    def name(index: int) -> str:
        if index < len(newcomers):
            return _name(newcomers[index])
        return _name(names.slice(index - len(newcomers), 1).to_pylist()[0])

    differing = pairs[labels[pairs[:, 0]] != labels[pairs[:, 1]]].tolist()
    found = {name(one): (labels[one], name(other), labels[other]) for one, other in differing}
    return [(path, *rest) for path, rest in sorted(found.items())]


def _inherit(
    newcomers: list[Row],
    group: Sequence[int],
    recorded: dict[int, list[int]],
    neighbours: dict[int, list[int]],
    old_is_val: np.ndarray,
    old_names: Any,
    near: _Near,
) -> None:
    """Sets the splits of a group that contains near-duplicates of recorded images.

    A split spreads from neighbour to neighbour. A newcomer near both splits is left out.
    """

    def in_order(indices: Sequence[int]) -> list[int]:
        return sorted(indices, key=lambda index: str(newcomers[index]["sha256"]))

    queue = in_order([index for index in group if index in recorded])
    queued = set(queue)
    decided: dict[int, str | None] = {}
    while queue:
        index = queue.pop(0)
        old = recorded.get(index, ())
        splits = {VAL if old_is_val[row] else TRAIN for row in old}
        splits |= {split for one in neighbours.get(index, ()) if (split := decided.get(one)) is not None}
        split = splits.pop() if len(splits) == 1 else None
        decided[index] = split
        row = newcomers[index]
        if split is None:
            near.left_out.add(index)
        if split is None or (split == VAL) != (row["side"] == VAL):
            path = _name(old_names.slice(old[0], 1).to_pylist()[0]) if old else _name(newcomers[neighbours[index][0]])
            near.leaks.append(Leak(_name(row), path, _outcome(split)))
        row["side"] = split
        following = [one for one in neighbours.get(index, ()) if one not in queued]
        queue += in_order(following)
        queued.update(following)


def _decide_by_content(newcomers: list[Row], near: _Near, val_split: float | None, fills: bool) -> list[str]:
    """Sets the splits that are still open, by content; returns notes for the user."""
    share = val_split or 0.0
    unit_of: dict[int, int] = {}
    units: list[list[int]] = []
    for group in near.groups:
        given = [index for index in group if newcomers[index]["side"] is not None]
        if not given:
            unit_of |= dict.fromkeys(group, len(units))
            units.append(group)
            continue
        # One split for the group: validation if any member was given for it, so that training cannot memorise it.
        validates = [index for index in given if newcomers[index]["side"] == VAL]
        for index in group:
            if validates and newcomers[index]["side"] != VAL:
                near.leaks.append(Leak(_name(newcomers[index]), _name(newcomers[validates[0]]), _outcome(VAL)))
            newcomers[index]["side"] = VAL if validates else TRAIN
    for index, row in enumerate(newcomers):
        if row["side"] is None and index not in near.left_out and index not in unit_of:
            unit_of[index] = len(units)
            units.append([index])
    for unit in units:
        first = min(newcomers[index]["sha256"] for index in unit)
        # The minimum of several hashes is biased to small values, so other digits of it decide for a group.
        digits = first[:8] if len(unit) == 1 else first[8:16]
        for index in unit:
            newcomers[index]["side"] = VAL if int(digits, 16) < share * 2**32 else TRAIN
    return _fill_classes(newcomers, unit_of, units, share) if fills else []


def _fill_classes(newcomers: list[Row], unit_of: dict[int, int], units: list[list[int]], share: float) -> list[str]:
    """Moves an image if the hash put a whole class into one split.

    A class without validation images would score 0 of 0. If a class has only one image, or one group of
    near-duplicates, it trains. Returns notes for the user.
    """
    notes = []
    by_class: dict[tuple[int, str], list[int]] = {}
    for index in unit_of:
        by_class.setdefault((newcomers[index]["origin"], newcomers[index]["label"]), []).append(index)
    for (_, label), group in sorted(by_class.items(), key=lambda item: item[0]):
        splits = {newcomers[index]["side"] for index in group}
        small = sorted({unit_of[index] for index in group}, key=lambda unit: (len(units[unit]), units[unit]))
        hashes = {unit: min(newcomers[index]["sha256"] for index in units[unit]) for unit in small}
        if share and splits == {TRAIN} and len(small) >= 2:
            _turn(newcomers, units[min(small, key=lambda unit: (len(units[unit]), hashes[unit]))], VAL)
        elif share and len(small) == 1:
            _turn(newcomers, units[small[0]], TRAIN)
            images = "only one new image" if len(group) == 1 else "only new images that are near-duplicates"
            notes.append(
                f"{label} has {images}, used for training: it gets no new validation image ({option('val', 'PATH')} adds one)"
            )
        elif share and share < 1 and splits == {VAL}:
            fewest = min(len(units[unit]) for unit in small)
            _turn(newcomers, units[max((u for u in small if len(units[u]) == fewest), key=hashes.__getitem__)], TRAIN)
    return notes


def _turn(newcomers: list[Row], unit: Sequence[int], split: str) -> None:
    for index in unit:
        newcomers[index]["side"] = split


def _describe_labels(near: Sequence[tuple[str, str, str, str]]) -> list[str]:
    if not near:
        return []
    path, label, other, its_label = near[0]
    return [
        f"{counted(len(near), 'image', 'looks', 'look')} like one with another label: one of the two labels is "
        f"probably wrong; the first is {path} "
        f"({label}), near {other} ({its_label}). `kresume data check` lists them"
    ]


def _describe(leaks: Sequence[Leak]) -> list[str]:
    words = {
        "validates": "near-duplicates of validation images, moved to validation",
        "trains": "given for validation, but near-duplicates of recorded training images, and used for training",
        "left out": "near-duplicates of both a training and a validation image, left out",
    }
    notes = []
    for outcome, text in words.items():
        these = [leak for leak in leaks if leak.outcome == outcome]
        if these:
            notes.append(f"{counted(len(these), 'image')}: {text}; the first is {these[0].path} (near {these[0].near})")
    return notes
