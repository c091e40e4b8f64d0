"""Finds class folders: one folder of images per class, on a disk or in an archive.

    found, notes, tops = find(OnDisk("old/"), source)      # [ClassFolder("old/cat", "cat", None), ...]
    for picture in walk(tree, found[0].path, left_out): ...

They may be inside `train/` and `val/`, hold `train/` and `val/` themselves, or be inside a single top folder, unless that
has the name of a known class (`top_folders`). The
prepare pass decides by content whether a file is an image. Only system files and endings of other kinds of files are
skipped here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from kresume.errors import ImagesError
from kresume.images.sources.found import Source, Top
from kresume.images.sources.names import CONTAINERS, LISTS, SPLITS, UNSURE, ending, may_be_picture
from kresume.images.sources.not_classes import refuse_annotations, refuse_classes_inside
from kresume.images.sources.top_folders import is_class
from kresume.images.sources.trees import OnDisk, Tree
from kresume.spelling import counted, option
from kresume.storage import locations

LINKS, LOOPS, NOWHERE, DOTTED = "/", "/..", "/?", "/."
"""Keys that count folders behind links that were not entered, links to folders above, links to files that are gone, and
pictures whose names, or those of their folders, begin with a dot.

`UNSURE` counts folders, too; other keys are endings.
"""


@dataclass(frozen=True)
class ClassFolder:
    """Names a folder of images.

    Attributes:
        path: where it is in its tree.
        label: its class.
        split: `"train"`, `"val"` or `"test"` if a folder says so, else None.
    """

    path: str
    label: str
    split: str | None


def describe_left_out(left_out: Counter[str], given: str) -> list[str]:
    """Returns notes about skipped files and links; an empty list if there are none."""
    files = sorted(
        (kind, count) for kind, count in left_out.items() if not kind.startswith("/") and kind != UNSURE and count
    )
    notes = []
    if files:
        kinds = ", ".join(f"{count:,} {kind or 'without a file ending'}" for kind, count in files)
        notes.append(f"{given}: files that are not images were left out: {kinds}")
    if left_out[DOTTED]:
        pictures = counted(left_out[DOTTED], "picture", "is", "are")
        notes.append(
            f"{given}: {pictures} left out for a name that begins with a dot, of the file or a folder above it"
        )
    if left_out[LINKS]:
        notes.append(
            f"{given}: {left_out[LINKS]:,} linked folders were not followed; {option('follow-links', True)} follows them"
        )
    if left_out[LOOPS]:
        links = counted(left_out[LOOPS], "link")
        notes.append(f"{given}: {links} to folders above left out: what is there is listed already")
    if left_out[NOWHERE]:
        notes.append(f"{given}: {counted(left_out[NOWHERE], 'link')} to files that are gone left out")
    if left_out[UNSURE]:
        folders = counted(left_out[UNSURE], "folder")
        notes.append(
            f"{given}: {folders} inside classes left out: `kresume predict --sort` was not sure of the pictures"
        )
    return notes


def walk(
    tree: Tree, path: str, left_out: Counter[str], *, labelled: bool = True, above: frozenset[str] | None = None
) -> Iterator[Any]:
    """Yields the files of a folder that may be pictures, then those of its folders, by name.

    Args:
        tree: holds the folder.
        path: the folder.
        left_out: counts skipped files by ending, names with a dot, links, and folders whose pictures nobody was sure of.
        labelled: False yields the pictures of these folders, too.
        above: the folders above, with links followed; None for all that hold this one.
    """
    folders, files = tree.entries(path)
    left_out[DOTTED] += tree.dotted(path)
    for entry in files:
        if may_be_picture(entry.name):
            yield entry
        else:
            left_out[ending(entry.name)] += 1
    if not folders:
        return
    above, here = tree.above(path) if above is None else above, tree.real(path)
    if here in above:
        return  # reached a second time through a link, and listed already
    within = above | {here}
    for folder in folders:
        if tree.is_link(folder.path):
            left_out[LINKS] += 1
        elif tree.leads_up(folder.path, within):
            left_out[LOOPS] += 1
        elif labelled and tree.is_unsure(folder.path):
            left_out[UNSURE] += 1
        else:
            yield from walk(tree, folder.path, left_out, labelled=labelled, above=within)


def find(tree: Tree, source: Source) -> tuple[list[ClassFolder], list[str], tuple[Top, ...]]:
    """Returns the class folders of a tree, notes, and the single folders above them.

    Raises:
        ImagesError: if the tree is empty, or holds images without class folders, or folders that are no classes.
    """
    given = source.given
    level, tops, sure = _enter(tree, source)
    folders, files, notes = level.folders, level.files, level.notes
    pictures = [entry for entry in files if may_be_picture(entry.name)]
    if not folders and notes and not pictures:
        raise ImagesError(f"{notes[0]}; there are no other class folders")
    if not folders and not pictures:
        raise ImagesError(f"{given} is empty: expected one folder of images per class in it")
    list_way = _way_to_list(tree, [entry.path for entry in files if ending(entry.name) in LISTS])
    if len(folders) == 1 and folders[0].name.lower() in CONTAINERS and list_way:
        raise ImagesError(f"{given} has the folder {folders[0].name}/ alone, whose name is no class.{list_way}")
    if not folders:
        raise ImagesError(
            f"{given} contains {counted(len(pictures), 'image')} but no class folders.{list_way} Expected one folder per "
            f"class, for example cat/{pictures[0].name}{_way_of_flat(tree, given)}"
        )
    if pictures:
        notes.append(f"{given}: {counted(len(pictures), 'file')} beside the class folders left out (no class)")
    _refuse_bare_splits(tree, folders, given)
    notes += [
        f"{given}: {entry.name} beside the class folders is not read; if it is a list of labels, give it instead"
        for entry in files
        if ending(entry.name) in LISTS
    ]
    found = list(_class_folders(tree, folders, notes, source, sure=sure))
    refuse_annotations(tree, found, given)
    if found and all(folder.split is None for folder in found):
        refuse_classes_inside(tree, folders, given)
        notes += _one_level_too_high(tree, folders, given)
    return found, notes, tops


@dataclass(frozen=True)
class _Level:
    """Holds what is directly in a folder.

    Attributes:
        folders: its folders, without those that `kresume predict --sort` was not sure of.
        files: its files.
        notes: what was left out, here and above.
    """

    folders: list[Any]
    files: list[Any]
    notes: list[str]


def _enter(tree: Tree, source: Source) -> tuple[_Level, tuple[Top, ...], bool]:
    """Enters the single folder of an unpacked archive, and that in it, unless it is a class.

    Returns:
        `(the level of the class folders, the folders above it, True if its single folder is a known class)`.

    Raises:
        ImagesError: it has the name of a known class, and so have folders in it.
    """
    folders, files = tree.entries(tree.root)
    notes: list[str] = []
    levels = [_Level(_without_unsure(tree, folders, notes, source.given), files, notes)]
    while len(levels[-1].folders) == 1 and not any(may_be_picture(entry.name) for entry in levels[-1].files):
        folders, files = tree.entries(levels[-1].folders[0].path)
        if not folders or any(may_be_picture(entry.name) for entry in files):
            break  # it holds images itself: it is a class
        notes = [*levels[-1].notes]
        levels.append(_Level(_without_unsure(tree, folders, notes, source.given), files, notes))
    tops = _tops(tree, levels, source.given)
    for level, top in zip(levels, tops, strict=False):
        if is_class(top, source.classes):
            folders = sorted(top.inside, key=lambda name: name not in source.classes)
            if folders:
                way = f"; if these are the classes, give {top.way}" if top.way else ""
                level.notes.append(
                    f"{source.given}: all images in {top.path}/ are of the class {top.name}, also those in its folders "
                    f"({_first(folders)}){way}"
                )
            return level, (), True
    return levels[-1], tops, False


def _tops(tree: Tree, levels: Sequence[_Level], given: str) -> tuple[Top, ...]:
    """Returns the single folders above the last level."""
    names = [_class_names(tree, level.folders) for level in levels[1:]]
    tops: list[Top] = []
    for number, (level, inside) in enumerate(zip(levels, names, strict=False), 1):
        name = level.folders[0].name
        path = f"{tops[-1].path}/{name}" if tops else name
        way = locations.join(given, path) if isinstance(tree, OnDisk) else ""
        tops.append(Top(given, path, name, inside, names[-1], way, number == len(names)))
    return tuple(tops)


def _class_names(tree: Tree, folders: Sequence[Any]) -> tuple[str, ...]:
    """Returns the names of folders that may be classes: those inside, of splits."""
    if all(folder.name.lower() in SPLITS for folder in folders):
        folders = [inner for folder in folders for inner in tree.entries(folder.path)[0]]
    return tuple(dict.fromkeys(folder.name for folder in folders))


def _refuse_bare_splits(tree: Tree, folders: Sequence[Any], given: str) -> None:
    """Raises if all folders are splits that hold pictures themselves: their names would be the classes.

    Raises:
        ImagesError: they are, as where Hugging Face keeps the labels in `metadata.csv`.
    """
    if not all(folder.name.lower() in SPLITS for folder in folders) or _are_splits(tree, folders):
        return
    files = [entry for folder in folders for entry in tree.entries(folder.path)[1]]
    if any(may_be_picture(entry.name) for entry in files):
        names = ", ".join(f"{folder.name}/" for folder in folders)
        beside = [entry.path for entry in files if ending(entry.name) in LISTS]
        raise ImagesError(
            f"{given} holds {names} with images directly in them: these are splits, and no classes."
            f"{_way_to_list(tree, beside)} Expected one folder per class in each, for example train/cat/"
        )


def _way_to_list(tree: Tree, beside: Sequence[str]) -> str:
    """Says how a list beside the pictures is used; empty if there is none."""
    if not beside:
        return ""
    if isinstance(tree, OnDisk):
        return f" {beside[0]} may be a list of their labels: give it instead."
    return f" {beside[0]} in it may be a list of their labels: unpack the archive and give the list instead."


def _way_of_flat(tree: Tree, given: str) -> str:
    """Says what else to do with pictures that lie in no folder."""
    if isinstance(tree, OnDisk):
        return f". If {given} is a class itself, give its parent folder, {locations.parent(tree.root)}"
    return ", or a .cls or .json member beside each image (WebDataset)"


def _without_unsure(tree: Tree, folders: list[Any], notes: list[str], given: str) -> list[Any]:
    """Leaves out the folders of pictures that `kresume predict --sort` was not sure of, and says so."""
    kept = []
    for folder in folders:
        if tree.is_unsure(folder.path):
            notes.append(
                f"{given}: {folder.name}/ was left out: `kresume predict --sort` was not sure of its pictures; move each into "
                "the folder of its class"
            )
        else:
            kept.append(folder)
    return kept


def _class_folders(
    tree: Tree, folders: Sequence[Any], notes: list[str], source: Source, *, sure: bool
) -> Iterator[ClassFolder]:
    given = source.given
    if _hold_splits(tree, folders, sure=sure):
        for folder in folders:
            for inner in _without_unsure(tree, tree.entries(folder.path)[0], notes, given):
                side = SPLITS[inner.name.lower()]
                if side == "test" and not source.tests:
                    notes.append(_about_tests(given, f"{folder.name}/{inner.name}"))
                else:
                    yield ClassFolder(inner.path, folder.name, side)
        return
    if not _are_splits(tree, folders):
        for folder in folders:
            yield ClassFolder(folder.path, folder.name, None)
        return
    for folder in folders:
        split = SPLITS.get(folder.name.lower())
        if split is None:
            notes.append(f"{given}: {folder.name}/ was left out: it is not a split like train/ and val/")
            continue
        if split == "test" and not source.tests:
            notes.append(_about_tests(given, folder.name))
            continue
        classes, files = tree.entries(folder.path)
        if any(may_be_picture(entry.name) for entry in files):
            notes.append(f"{given}: the images directly in {folder.name}/ were left out (no class)")
        for inner in _without_unsure(tree, classes, notes, given):
            yield ClassFolder(inner.path, inner.name, split)


def _are_splits(tree: Tree, folders: Sequence[Any]) -> bool:
    """Returns True if these folders are splits (`train/`, `val/` and so on), not classes.

    A class may be called train. If `train/` holds class folders and another split exists, the remaining folders are no
    classes, whatever they hold: a `test/` of images without labels, or annotations.
    """
    known = [folder for folder in folders if folder.name.lower() in SPLITS]
    if len(known) == len(folders) and all(tree.entries(folder.path)[0] for folder in folders):
        return True
    training = [tree.entries(folder.path) for folder in known if SPLITS[folder.name.lower()] == "train"]
    others = len(known) > len(training)
    return (
        bool(training)
        and others
        and all(classes and not any(may_be_picture(entry.name) for entry in files) for classes, files in training)
    )


def _about_tests(given: str, folder: str) -> str:
    return f"{given}: {folder}/ was left out: test images are for `kresume eval`"


def _hold_splits(tree: Tree, folders: Sequence[Any], *, sure: bool) -> bool:
    """Returns True if each class folder holds only its own `train/`, `val/` or `test/` with pictures.

    With folders in these, the folders above may be data sets (`_one_level_too_high` says so), unless they are sure to be
    classes.
    """
    names = []
    for folder in folders:  # ends at the first class with pictures: listing a large folder takes long
        if folder.name.lower() in SPLITS:
            return False
        inner, files = tree.entries(folder.path)
        if any(may_be_picture(entry.name) for entry in files):
            return False
        names.append({entry.name.lower() for entry in inner})
        deeper = not sure and any(tree.entries(entry.path)[0] for entry in inner)
        if not names[-1] <= SPLITS.keys() or deeper:
            return False
    found = [{SPLITS[name] for name in inner} for inner in names]
    return bool(found) and all("train" in splits for splits in found) and any(len(splits) > 1 for splits in found)


def _one_level_too_high(tree: Tree, folders: Sequence[Any], given: str) -> list[str]:
    """Returns a note if all class folders, which are no splits, hold the same folders and no images."""
    if len(folders) < 2:
        return []
    inside = [tree.entries(folder.path) for folder in folders]
    names = set.intersection(*({entry.name for entry in inner} for inner, _ in inside))
    if len(names) < 2 or any(may_be_picture(entry.name) for _, files in inside for entry in files):
        return []
    shown, classes = _first(sorted(names)), _first([folder.name for folder in folders])
    way = f"give {locations.join(given, folders[0].name)} and the other folders one by one"
    if not isinstance(tree, OnDisk):
        way = f"unpack the archive and give {folders[0].path} and the other folders one by one"
    return [
        f"{given}: the classes are {classes}, and each of them contains the folders {shown}; if these are the classes, {way}"
    ]


def _first(names: Sequence[str]) -> str:
    """Lists the first three names, and how many there are besides."""
    more = f" and {len(names) - 3:,} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more}"
