"""Lists what a source holds: names, sizes and times, no contents.

    listing = list_images(["old/", "more/"], reporter)
    listing.classes, len(listing.files), listing.notes

One function per kind of source, in `KINDS`. Whether a file is a picture is decided by its content, in the prepare pass; only
litter that every folder collects, and files that are plainly something else, are left out here.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kresume.errors import ImagesError
from kresume.progress import Reporter

LITTER = frozenset({"thumbs.db", "desktop.ini", "ehthumbs.db", "icon\r", "__macosx"})
NOT_PICTURES = frozenset(
    {".txt", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".md", ".py", ".html", ".parquet", ".pdf"}
)
SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


@dataclass(frozen=True)
class Found:
    """A listed file.

    Attributes:
        path: absolute.
        label: the name of its class.
        source: the path that the user gave.
        bytes: its size.
        mtime_ns: when it was last changed, in nanoseconds.
        split: `"train"` or `"val"` where the folders say it, else None.
    """

    path: str
    label: str
    source: str
    bytes: int
    mtime_ns: int
    split: str | None = None


@dataclass(frozen=True)
class Listing:
    """What sources hold.

    Attributes:
        files: sorted by source, then by path.
        notes: what was left out, in words.
        classes: the names of the class folders, sorted.
    """

    files: tuple[Found, ...]
    notes: tuple[str, ...]
    classes: tuple[str, ...]


def list_images(paths: Sequence[str | Path], reporter: Reporter) -> Listing:
    """Lists sources of images.

    Args:
        paths: what the user gave.
        reporter: shows progress.

    Raises:
        ImagesError: a path is missing, empty, or not laid out as expected.
    """
    files: dict[str, Found] = {}
    notes: list[str] = []
    classes: set[str] = set()
    with reporter.progress("listing", None, "files") as advance:
        for given in paths:
            path = Path(given).expanduser()
            listing = _kind_of(path, str(given))(path, str(given), advance)
            files |= {found.path: found for found in listing.files if found.path not in files}
            notes += listing.notes
            classes |= set(listing.classes)
    return Listing(tuple(files.values()), tuple(notes), tuple(sorted(classes)))


def _kind_of(path: Path, given: str) -> Callable[[Path, str, Callable[[int], None]], Listing]:
    if not path.exists():
        raise ImagesError(
            f"no such path: {given} (from {Path.cwd()}); expected a folder with one folder of pictures per class"
        )
    for accepts, function in KINDS.values():
        if accepts(path):
            return function
    raise ImagesError(f"{given} is a file, not a folder: give a folder with one folder of pictures per class")


def _hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in LITTER


def _entries(path: Path) -> tuple[list[os.DirEntry[str]], list[os.DirEntry[str]]]:
    """Visible folders and files of a folder, each sorted by name."""
    with os.scandir(path) as entries:
        visible = sorted((entry for entry in entries if not _hidden(entry.name)), key=lambda entry: entry.name)
    return [entry for entry in visible if entry.is_dir()], [entry for entry in visible if entry.is_file()]


def _is_picture(entry: os.DirEntry[str]) -> bool:
    return os.path.splitext(entry.name)[1].lower() not in NOT_PICTURES


def _walk(path: Path, left_out: Counter[str]) -> Iterator[os.DirEntry[str]]:
    folders, files = _entries(path)
    for entry in files:
        if _is_picture(entry):
            yield entry
        else:
            left_out[os.path.splitext(entry.name)[1].lower()] += 1
    for folder in folders:
        yield from _walk(Path(folder.path), left_out)


def list_class_folders(path: Path, given: str, advance: Callable[[int], None]) -> Listing:
    """A folder with one folder per class, perhaps under `train/` and `val/`, perhaps under a single top folder.

    Raises:
        ImagesError: it is empty, or holds pictures without class folders.
    """
    top = path
    notes: list[str] = []
    folders, files = _entries(top)
    pictures = [entry for entry in files if _is_picture(entry)]
    while len(folders) == 1 and not pictures and (inner := _entries(Path(folders[0].path)))[0]:
        # The one folder of an unpacked archive, unless it holds pictures itself: then it is a class.
        if any(_is_picture(entry) for entry in inner[1]):
            break
        top = Path(folders[0].path)
        folders, files = inner
        pictures = []
    if not folders and not pictures:
        raise ImagesError(f"{given} is empty: expected one folder of pictures per class in it")
    if not folders:
        raise ImagesError(
            f"{given} holds {len(pictures):,} pictures but no class folders: expected one folder per class, "
            f"for example {path / 'cat' / pictures[0].name}"
        )
    if pictures:
        notes.append(f"{given}: {len(pictures):,} pictures beside the class folders were left out (no class)")
    left_out: Counter[str] = Counter()
    found: list[Found] = []
    classes: list[str] = []
    for folder, label, split in _class_folders(folders, notes, given):
        classes.append(label)
        for entry in _walk(folder, left_out):
            facts = entry.stat()
            found.append(Found(os.path.abspath(entry.path), label, given, facts.st_size, facts.st_mtime_ns, split))
            advance(1)
    if left_out:
        kinds = ", ".join(f"{count:,} {ending or 'without ending'}" for ending, count in sorted(left_out.items()))
        notes.append(f"{given}: left out as no pictures: {kinds}")
    if not found:
        raise ImagesError(f"{given} holds the class folders {', '.join(sorted(set(classes)))} but no picture in them")
    return Listing(tuple(found), tuple(notes), tuple(sorted(set(classes))))


def _class_folders(
    folders: Sequence[os.DirEntry[str]], notes: list[str], given: str
) -> Iterator[tuple[Path, str, str | None]]:
    names = {folder.name.lower() for folder in folders}
    splits = names <= set(SPLITS) and all(_entries(Path(folder.path))[0] for folder in folders)
    if not splits:
        for folder in folders:
            yield Path(folder.path), folder.name, None
        return
    for folder in folders:
        split = SPLITS[folder.name.lower()]
        if split == "test":
            notes.append(f"{given}: {folder.name}/ was left out: test images are for `kresume eval`")
            continue
        for inner in _entries(Path(folder.path))[0]:
            yield Path(inner.path), inner.name, split


KINDS: dict[str, tuple[Callable[[Path], bool], Callable[[Path, str, Callable[[int], None]], Listing]]] = {
    "class folders": (Path.is_dir, list_class_folders),
}
"""How each kind of source is recognised and listed. A new kind is one function and one entry."""
