"""Lists class folders: one folder of images per class.

They may be inside `train/` and `val/`, hold `train/` and `val/` themselves, or be inside a single top folder. The
prepare pass decides by content whether a file is an image. Only system files and endings of other kinds of files are
skipped here.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterator, Sequence

from kresume.addresses import is_remote
from kresume.errors import ImagesError
from kresume.images.sources.found import NO_CLASS, Advance, Found, Listing, Source
from kresume.spelling import counted, option
from kresume.storage import locations
from kresume.storage.locations import Entry

LITTER = frozenset(
    {
        "thumbs.db", "desktop.ini", "ehthumbs.db", "icon\r", "__macosx", "__pycache__", "lost+found",
        "@eadir", "#recycle", "$recycle.bin", "system volume information",
    }
)  # fmt: skip
"""Skips files and folders of these names (in lower case): operating systems and network drives make them."""
NOT_PICTURES = frozenset(
    {
        ".txt",
        ".csv",
        ".tsv",
        ".json",
        ".jsonl",
        ".xml",
        ".yaml",
        ".yml",
        ".md",
        ".py",
        ".html",
        ".parquet",
        ".pdf",
        ".cls",
    }
)
UNSURE = ".kresume-unsure"
"""A file in a folder of pictures that `kresume predict --sort` was not sure of: no class, whatever its name."""
SPLITS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val", "eval": "val",
    "test": "test", "testing": "test",
}  # fmt: skip


def accepts(path: str) -> bool:
    """Returns True if the path is a folder, which may hold class folders."""
    return locations.is_folder(path)


def hidden(name: str) -> bool:
    """Returns True for names that begin with a dot and for system files."""
    return name.startswith(".") or name.lower() in LITTER


def ending(name: str) -> str:
    """Returns the ending of a name in lower case: `"A.JPG"` -> `".jpg"`."""
    return os.path.splitext(name)[1].lower()


def describe_left_out(left_out: Counter[str], given: str) -> list[str]:
    """Returns notes about skipped files and links; an empty list if there are none."""
    files = sorted((kind, count) for kind, count in left_out.items() if kind != LINKS)
    notes = []
    if files:
        kinds = ", ".join(f"{count:,} {kind or 'without a file ending'}" for kind, count in files)
        notes.append(f"{given}: files that are not images were left out: {kinds}")
    if left_out[LINKS]:
        notes.append(
            f"{given}: {left_out[LINKS]:,} linked folders were not followed; {option('follow-links', True)} follows them"
        )
    return notes


def _entries(path: str) -> tuple[list[Entry], list[Entry]]:
    """Lists the visible folders and files of a folder, each sorted by name."""
    visible = [entry for entry in locations.entries(path) if not hidden(entry.name)]
    return [entry for entry in visible if entry.is_dir()], [entry for entry in visible if entry.is_file()]


def _is_picture(entry: Entry) -> bool:
    return ending(entry.name) not in NOT_PICTURES


LISTS = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
"""Endings of lists of images."""
CONTAINERS = frozenset(
    {"image", "images", "img", "imgs", "picture", "pictures", "photo", "photos", "data", "files", "jpg", "png"}
)
"""Names of a single folder that holds the images of a list."""
LINKS = "/"
"""The key that counts folders behind links that were not entered; other keys are endings of skipped files."""


def _walk(
    path: str, left_out: Counter[str], follow_links: bool, above: frozenset[str] = frozenset()
) -> Iterator[Entry]:
    folders, files = _entries(path)
    for entry in files:
        if _is_picture(entry):
            yield entry
        else:
            left_out[ending(entry.name)] += 1
    if not folders:
        return
    here = path if is_remote(path) else os.path.realpath(path)
    if here in above:
        return  # a link to a folder above, which is listed already
    for folder in folders:
        if not follow_links and os.path.islink(folder.path):
            left_out[LINKS] += 1
        else:
            yield from _walk(folder.path, left_out, follow_links, above | {here})


def list_source(source: Source, advance: Advance) -> Listing:
    """Lists the images of class folders.

    Raises:
        ImagesError: if the folder is empty, or holds images without class folders.
    """
    given = source.given
    notes: list[str] = []
    folders, files = _entries(source.path)
    folders = _without_unsure(folders, notes, given)
    pictures = [entry for entry in files if _is_picture(entry)]
    while len(folders) == 1 and not pictures and (inner := _entries(folders[0].path))[0]:
        # Enter the single folder of an unpacked archive. If that folder holds images itself, it is a class.
        if any(_is_picture(entry) for entry in inner[1]):
            break
        folders, files = inner
        folders = _without_unsure(folders, notes, given)
    if not folders and notes and not pictures:
        raise ImagesError(f"{notes[0]}; there are no other class folders")
    if not folders and not pictures:
        raise ImagesError(f"{given} is empty: expected one folder of images per class in it")
    beside = [entry.name for entry in files if ending(entry.name) in LISTS]
    way = f" {locations.join(source.path, beside[0])} may be a list of their labels: give it instead." if beside else ""
    if len(folders) == 1 and folders[0].name.lower() in CONTAINERS and beside:
        raise ImagesError(f"{given} has the folder {folders[0].name}/ alone, whose name is no class.{way}")
    if not folders:
        raise ImagesError(
            f"{given} contains {counted(len(pictures), 'image')} but no class folders.{way} Expected one folder per class, "
            f"for example {locations.join(locations.join(source.path, 'cat'), pictures[0].name)}. If {given} is a class "
            f"itself, give its parent folder, {locations.parent(source.path)}"
        )
    if pictures:
        notes.append(f"{given}: {counted(len(pictures), 'file')} beside the class folders left out (no class)")
    left_out: Counter[str] = Counter()
    found: list[Found] = []
    classes: list[str] = []
    for folder, label, split in _class_folders(folders, notes, source):
        classes.append(label)
        for entry in _walk(folder, left_out, source.follow_links):
            facts = entry.stat()
            found.append(Found(entry.path, label, given, facts.st_size, facts.st_mtime_ns, split))
            advance(1)
    skipped = describe_left_out(left_out, given)
    notes += [*skipped, *_one_level_too_high(folders, given)]
    if not found:
        others = "".join(f": {note.rpartition(': ')[2]} there" for note in skipped[:1])
        raise ImagesError(
            f"{given} has the class folders {', '.join(sorted(set(classes)))}, but they contain no images{others}"
        )
    return Listing(tuple(found), tuple(notes), tuple(sorted(set(classes))))


def _without_unsure(folders: list[Entry], notes: list[str], given: str) -> list[Entry]:
    """Leaves out the folders of pictures that `kresume predict --sort` was not sure of, and says so."""
    kept = []
    for folder in folders:
        if locations.exists(locations.join(folder.path, UNSURE)):
            notes.append(about_unsure(given, folder.name))
        else:
            kept.append(folder)
    return kept


def about_unsure(given: str, name: str) -> str:
    """Returns a note on a folder of pictures that `kresume predict --sort` was not sure of."""
    return (
        f"{given}: {name}/ was left out: `kresume predict --sort` was not sure of its pictures; move each into the folder of "
        "its class"
    )


def walk_without_classes(source: Source, left_out: Counter[str]) -> Iterator[Found]:
    """Yields every image in a folder, at any depth, under one label, as they are found.

    Args:
        source: the folder.
        left_out: counts skipped files by ending, and links.
    """
    for entry in _walk(source.path, left_out, source.follow_links):
        facts = entry.stat()
        yield Found(entry.path, NO_CLASS, source.given, facts.st_size, facts.st_mtime_ns)


def count_without_classes(source: Source) -> int:
    """Returns how many images `walk_without_classes` yields; reads names alone."""
    return sum(1 for _ in _walk(source.path, Counter(), source.follow_links))


def list_without_classes(source: Source, advance: Advance) -> Listing:
    """Lists every image in a folder, at any depth, under one label.

    Raises:
        ImagesError: if there is none.
    """
    left_out: Counter[str] = Counter()
    found: list[Found] = []
    for each in walk_without_classes(source, left_out):
        found.append(each)
        advance(1)
    if not found:
        raise ImagesError(f"{source.given} contains no images")
    return Listing(tuple(found), tuple(describe_left_out(left_out, source.given)), (NO_CLASS,))


def _class_folders(folders: Sequence[Entry], notes: list[str], source: Source) -> Iterator[tuple[str, str, str | None]]:
    given = source.given
    if _hold_splits(folders):
        for folder in folders:
            for inner in _entries(folder.path)[0]:
                side = SPLITS[inner.name.lower()]
                if side == "test" and not source.tests:
                    notes.append(_about_tests(given, f"{folder.name}/{inner.name}"))
                else:
                    yield inner.path, folder.name, side
        return
    if not _are_splits(folders):
        for folder in folders:
            yield folder.path, folder.name, None
        return
    for folder in folders:
        split = SPLITS.get(folder.name.lower())
        if split is None:
            notes.append(f"{given}: {folder.name}/ was left out: it is not a split like train/ and val/")
            continue
        if split == "test" and not source.tests:
            notes.append(_about_tests(given, folder.name))
            continue
        classes, files = _entries(folder.path)
        if any(_is_picture(entry) for entry in files):
            notes.append(f"{given}: the images directly in {folder.name}/ were left out (no class)")
        for inner in classes:
            yield inner.path, inner.name, split


def _are_splits(folders: Sequence[Entry]) -> bool:
    """Returns True if these folders are splits (`train/`, `val/` and so on), not classes.

    A class may be called train. If `train/` holds class folders and another split exists, the remaining folders are no
    classes, whatever they hold: a `test/` of images without labels, or annotations.
    """
    known = [folder for folder in folders if folder.name.lower() in SPLITS]
    if len(known) == len(folders) and all(_entries(folder.path)[0] for folder in folders):
        return True
    training = [_entries(folder.path) for folder in known if SPLITS[folder.name.lower()] == "train"]
    others = len(known) > len(training)
    return (
        bool(training)
        and others
        and all(classes and not any(_is_picture(entry) for entry in files) for classes, files in training)
    )


def _about_tests(given: str, folder: str) -> str:
    return f"{given}: {folder}/ was left out: test images are for `kresume eval`"


def _hold_splits(folders: Sequence[Entry]) -> bool:
    """Returns True if each class folder holds only its own `train/`, `val/` or `test/` with pictures.

    With folders in these, the folders above may be data sets: `_one_level_too_high` says so.
    """
    names = []
    for folder in folders:  # ends at the first class with pictures: listing a large folder takes long
        if folder.name.lower() in SPLITS:
            return False
        inner, files = _entries(folder.path)
        if any(_is_picture(entry) for entry in files):
            return False
        names.append({entry.name.lower() for entry in inner})
        if not names[-1] <= SPLITS.keys() or any(_entries(entry.path)[0] for entry in inner):
            return False
    return are_split_names(names)


def are_split_names(names: Collection[set[str]]) -> bool:
    """Returns True if the folders in each class are splits: in each one to train on, and in some another."""
    found = [{SPLITS.get(name) for name in inner} for inner in names]
    return (
        bool(found)
        and all("train" in splits and None not in splits for splits in found)
        and any(len(splits) > 1 for splits in found)
    )


def _one_level_too_high(folders: Sequence[Entry], given: str) -> list[str]:
    """Returns a note if all class folders hold the same folders and no images."""
    if len(folders) < 2 or _are_splits(folders) or _hold_splits(folders):
        return []
    inside = [_entries(folder.path) for folder in folders]
    names = set.intersection(*({entry.name for entry in inner} for inner, _ in inside))
    if len(names) < 2 or any(_is_picture(entry) for _, files in inside for entry in files):
        return []
    shown, classes = ", ".join(sorted(names)[:3]), ", ".join(folder.name for folder in folders[:3])
    return [
        f"{given}: the classes are {classes}, and each of them contains the folders {shown}; if these are the classes, give "
        f"{locations.join(given, folders[0].name)} and the other folders one by one"
    ]
