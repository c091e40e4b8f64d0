"""Labels the members of an archive by the folders in their names, as class folders on a disk are.

labels, notes, left_out = label_members(names, "old.zip")       # {"old/cat/1.jpg": ("cat", None), ...}
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable

from kresume.errors import ImagesError
from kresume.images.sources.folders import NOT_PICTURES, SPLITS, UNSURE, about_unsure, are_split_names, ending, hidden
from kresume.spelling import counted


def _members_hold_splits(members: Collection[tuple[str, ...]]) -> bool:
    """Does what `_hold_splits` does, for the names of an archive's members."""
    names: dict[str, set[str]] = {}
    for label, folder, *rest in members:
        names.setdefault(label, set()).add(folder.lower() if len(rest) == 1 else "")
    return not any(label.lower() in SPLITS for label in names) and are_split_names(names.values())


def label_members(
    names: Iterable[str], given: str, *, tests: bool = False
) -> tuple[dict[str, tuple[str, str | None]], tuple[str, ...], Counter[str]]:
    """Derives labels and splits from the names of an archive's members.

    The layout is the same as that of class folders.

    Args:
        names: names with slashes between folders; hidden names, system files and other files are skipped.
        given: the archive's path, for messages.
        tests: True keeps the images for testing.

    Returns:
        `(label and split by name, notes, counts of skipped files by ending)`.

    Raises:
        ImagesError: if no image is in a folder.
    """
    left_out: Counter[str] = Counter()
    parts: dict[str, tuple[str, ...]] = {}
    names = list(names)
    unsure = tuple(name.removesuffix(UNSURE) for name in names if name.rpartition("/")[2] == UNSURE)
    for name in names:
        if unsure and name.startswith(unsure):
            continue
        pieces = tuple(piece for piece in name.split("/") if piece not in {"", "."})
        if any(hidden(piece) for piece in pieces):
            continue
        if ending(name) in NOT_PICTURES:
            left_out[ending(name)] += 1
            continue
        parts[name] = pieces
    while parts and all(len(pieces) > 2 for pieces in parts.values()) and len({p[0] for p in parts.values()}) == 1:
        parts = {name: pieces[1:] for name, pieces in parts.items()}
    inside = {name: pieces for name, pieces in parts.items() if len(pieces) > 1}
    notes = [about_unsure(given, folder.rstrip("/")) for folder in unsure]
    if parts and not inside:
        raise ImagesError(_without_labels(given, parts))
    if len(inside) < len(parts):
        notes.append(
            f"{given}: {counted(len(parts) - len(inside), 'file')} beside the class folders left out (no class)"
        )
    if _members_hold_splits(inside.values()):
        inside = {name: (split, label, *rest) for name, (label, split, *rest) in inside.items()}
    # The same rule as in `_are_splits`.
    depths: dict[str, int] = {}
    for pieces in inside.values():
        depths[pieces[0]] = min(len(pieces), depths.get(pieces[0], len(pieces)))
    named = {SPLITS[folder.lower()]: folder for folder in depths if folder.lower() in SPLITS}
    if "train" in named:
        splits = depths[named["train"]] > 2 and (len(named) > 1 or len(depths) == 1)
    else:
        splits = len(named) == len(depths) and all(depth > 2 for depth in depths.values())
    if not splits:
        return {name: (pieces[0], None) for name, pieces in inside.items()}, tuple(notes), left_out
    beside = Counter(pieces[0] for pieces in inside.values() if pieces[0].lower() not in SPLITS)
    notes += [f"{given}: {folder}/ was left out: it is not a split like train/ and val/" for folder in sorted(beside)]
    labels = {
        name: (pieces[1] if len(pieces) > 2 else "", SPLITS[pieces[0].lower()])
        for name, pieces in inside.items()
        if pieces[0].lower() in SPLITS
    }
    testing = {name for name, (_, split) in labels.items() if split == "test" and not tests}
    if testing:
        notes.append(f"{given}: {len(testing):,} test images were left out: they are for `kresume eval`")
    labels = {name: item for name, item in labels.items() if name not in testing}
    flat = sum(not label for label, _ in labels.values())
    if flat:
        notes.append(f"{given}: {counted(flat, 'image')} without a class folder left out")
    return {name: item for name, item in labels.items() if item[0]}, tuple(notes), left_out


def _without_labels(given: str, names: Collection[str]) -> str:
    """Returns the message for an archive without folders."""
    if all(ending(name) == ".npy" for name in names):  # a file of numpy.savez
        return (
            f"{given} holds {counted(len(names), 'array')} of NumPy, and no image files: write each image as a file into a "
            "folder of its class, PIL.Image.fromarray(array).save(...), or use kresume.BackupAndRestore in your own fit"
        )
    return (
        f"{given} contains {counted(len(names), 'image')} but neither folders nor labels: expected one folder per class in it, "
        "or a .cls or .json member beside each image (WebDataset)"
    )
