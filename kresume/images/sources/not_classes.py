"""Refuses folders that look like class folders and are none.

They are splits beside classes, or pictures beside annotations.

refuse_classes_inside(tree, folders, "old/")       # old/cat, old/dog, old/val/cat, old/val/dog
refuse_annotations(tree, found, "old/")            # old/images/1.jpg, old/labels/1.txt
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from kresume.errors import ImagesError
from kresume.images.sources.names import CONTAINERS, PICTURES, SPLITS, ending, may_be_picture
from kresume.images.sources.trees import Tree
from kresume.spelling import option

ANNOTATIONS = frozenset(
    {"label", "labels", "annotation", "annotations", "ann", "mask", "masks", "box", "boxes", "segmentation", "segmentations"}
)  # fmt: skip
"""Names of a folder of annotations: what is where in each picture."""
MOST_NAMED = 3
WAYS = {
    "val": f"move it out of there and give it with {option('val')}",
    "test": "move it out of there: test images are for `kresume eval`",
}


class Labelled(Protocol):
    """Declares a folder that gives its pictures a label."""

    @property
    def path(self) -> str:
        """Returns where it is in its tree."""

    @property
    def label(self) -> str:
        """Returns its class."""


def refuse_classes_inside(tree: Tree, folders: Sequence[Any], given: str) -> None:
    """Raises if a class folder holds the classes again: its pictures would be a class of its name.

    Args:
        tree: holds them.
        folders: the class folders, with `name` and `path`.
        given: the source as the user gave it.

    Raises:
        ImagesError: as where `val/cat` and `val/dog` are beside `cat` and `dog`.
    """
    names = {folder.name for folder in folders}
    for folder in folders:
        split = SPLITS.get(folder.name.lower())
        inner, files = tree.entries(folder.path)
        inside = [entry.name for entry in inner]
        if not set(inside) <= names - {folder.name} or len(inside) < (1 if split else 2):
            continue
        if any(may_be_picture(entry.name) for entry in files):
            continue
        way = WAYS.get(split or "", "move it out of there, and give it as a source of its own")
        raise ImagesError(
            f"{given} holds {folder.name}/ beside {', '.join(sorted(inside)[:MOST_NAMED])}, and {folder.name}/ has folders of "
            f"these names: its images would be a class {folder.name}. If it is none, {way}; if it is one, "
            "give a list of the images"
        )


def refuse_annotations(tree: Tree, found: Sequence[Labelled], given: str) -> None:
    """Raises if one folder holds pictures and another an annotation of each, under the same names.

    Args:
        tree: holds them.
        found: the class folders.
        given: the source as the user gave it.

    Raises:
        ImagesError: as in data sets for detection (YOLO: `images/`, `labels/`) and segmentation (`masks/`).
    """
    of_pictures = [folder for folder in found if folder.label.lower() in CONTAINERS]
    of_notes = [folder for folder in found if folder.label.lower() in ANNOTATIONS]
    if not of_pictures or not of_notes or len(of_pictures) + len(of_notes) < len(found):
        return
    pictures, notes = _first_files(tree, of_pictures[0].path), _first_files(tree, of_notes[0].path)
    stems, others = ({name.rpartition(".")[0] or name for name in names} for names in (pictures, notes))
    if others and 2 * len(stems & others) < len(others):
        return
    if all(stem.isdecimal() for stem in others) and any(ending(name) in PICTURES for name in notes):
        return  # pictures of either class may be numbered alike
    names = " and ".join(f"{folder.label}/" for folder in (of_pictures[0], of_notes[0]))
    raise ImagesError(
        f"{given} holds {names}, the parts of a data set for detection or segmentation, and no classes: kresume trains one "
        "label per image. Expected one folder of images per class, or a list with the columns path and label"
    )


def _first_files(tree: Tree, path: str) -> list[str]:
    """Returns the names of the files in a folder, or in the first one inside it that has files."""
    folders, files = tree.entries(path)
    return [entry.name for entry in files] if files or not folders else _first_files(tree, folders[0].path)
