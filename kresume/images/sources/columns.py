"""Finds the columns of a list that hold its paths, labels and splits.

    columns = find_columns(first_row, source)       # {"path": "file_name", "label": "class"}

Another program may have written the list, with other names for its columns. What is read as path and label is then told.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from kresume.errors import ImagesError
from kresume.images.sources.found import ONE_LABEL, Source
from kresume.images.sources.names import PICTURES, SPLITS, ending
from kresume.spelling import counted

ROLES = {
    **dict.fromkeys(("filename", "file", "image", "filepath", "img", "images", "picture", "photo"), "path"),
    **dict.fromkeys(
        ("class", "category", "labels", "target", "classname", "labelname", "classlabel", "imagelabel", "y", "tag"),
        "label",
    ),
}
"""Names of columns in other programs' lists, in lower case without blanks and _, and what they are here."""
NUMBERED = {"id", "imageid", "idcode", "imagename", "name"}
"""Names of columns, spelled likewise, that hold a path only where no other column does."""
RANKED = re.compile(r"label(?P<rank>\d+)")
SEPARATED = re.compile(r"[\s,;|]+")
MOST_VALUES = 1000
"""Different values from which on a further column is no longer looked at."""
BOXES = {"xmin", "ymin", "xmax", "ymax", "x1", "y1", "x2", "y2", "bbox", "boxes", "segmentation"}
"""Names of columns, spelled likewise, of lists whose labels are those of parts of a picture."""
MARKS = {"0", "1", "0.0", "1.0", "True", "False", "true", "false"}
"""Values of a column that answers one question about each picture, where there are several labels per image."""
SPLIT_COLUMNS = {"split", "splits", "datasplit", "subset", "partition", "set", "fold"}
"""Names, spelled likewise, of columns that hold splits in other programs' lists; only `split` is used."""
ONE_SPLIT = {
    each
    for name in ("train", "training", "val", "validation", "test", "testing", "holdout")
    for each in (name, f"is{name}")
} | {"isvalid"}
"""Names, spelled likewise, of columns that mark the images of one split, such as fastai's `is_valid`."""
SIDES = {**SPLITS, "publictest": "test", "privatetest": "test", "validate": "val"}
"""Values of columns of splits, in lower case; Kaggle scores two parts of the images to test on, AutoML writes VALIDATE."""
MOST_SPLITS = 10
"""Different values that a column of splits has at most."""


def find_columns(row: Mapping[Any, Any], source: Source) -> dict[str, str]:
    """Returns the names of the columns that hold the path and the label.

    They are those of these names, else the only ones whose names mean the same.

    Args:
        row: the first row.
        source: the list; one without labels needs a path alone.

    Raises:
        ImagesError: there is no such column, or several, or the labels are those of boxes.
    """
    names = [str(name) for name in row if name is not None]
    wanted = ("path", "label") if source.labelled else ("path",)
    found = {}
    several: list[str] = []
    for role in wanted:
        named = [role] if role in names else [name for name in names if _role(name) == role]
        if not named and role == "path":
            named = [name for name in names if _plain(name) in NUMBERED]
        if len(named) == 1:
            found[role] = named[0]
        several += [f"rename one of {', '.join(named)} to {role}"] if len(named) > 1 else []
    renamed = [name for role, name in found.items() if name != role]
    if renamed or len(found) < len(wanted):
        _refuse_pictures(row, source.given)
    if len(found) < len(wanted):
        columns = "the columns `path` and `label`" if source.labelled else "a column `path`"
        shown = ", ".join(map(repr, names)) or "nothing"
        marks = [name for name in names if name not in found.values() and str(row[name]).strip() in MARKS]
        questions = f". Columns of 0 and 1 ({', '.join(marks)}): {ONE_LABEL}" if len(marks) > 1 else ""
        raise ImagesError(f"{source.given}: expected {columns}, found {shown}{_likely(names, several)}{questions}")
    if source.labelled and renamed and (boxes := [name for name in names if _plain(name) in BOXES]):
        raise ImagesError(
            f"{source.given}: the column {boxes[0]!r} holds parts of a picture, and kresume classifies whole pictures: cut the "
            f"parts out and list them with path,label; if each label is that of its picture, rename {' and '.join(renamed)}"
        )
    return found


def describe_columns(columns: Mapping[str, str], row: Mapping[Any, Any]) -> str:
    """Describes columns of other names, and those that could be the label, too; empty if there are none.

    Args:
        columns: what `find_columns` returned.
        row: the first row.
    """
    read = [f"the column {name!r} is read as {role}" for role, name in columns.items() if name != role]
    others = [
        str(name) for name in row if name is not None and _role(str(name)) == "label" and name not in columns.values()
    ]
    if "label" in columns and others:
        read.append(f"the labels are those of the column {columns['label']!r}, not of {', '.join(map(repr, others))}")
    return ", ".join(read)


def check_names(names: Sequence[str], source: Source) -> None:
    """Raises if a column that is used shares its name with another: only the last would be read.

    Raises:
        ImagesError: it does.
    """
    twice = {name for name in names if names.count(name) > 1}
    if not twice:
        return
    used = {*find_columns(dict.fromkeys(names), source).values(), *(("split",) if source.labelled else ())}
    for name in sorted(twice & used):
        raise ImagesError(f"{source.given}: {names.count(name)} columns are named {name!r}: rename all of them but one")


class OtherLabels:
    """Finds further columns that hold names of classes: corrected labels, for example, which are not used."""

    def __init__(self) -> None:
        self._values: dict[Any, set[str] | None] = {}
        self._others: dict[Any, int] = {}

    def add(self, row: Mapping[Any, Any], used: set[str], label: str) -> None:
        """Takes the values of a row.

        Args:
            row: the row.
            used: the names of the columns that are used.
            label: the row's label.
        """
        for name, value in row.items():
            if name not in self._values:
                self._values[name] = None if name is None or name in used or _is_ranked(str(name), row) else set()
            values = self._values[name]
            if values is None or value is None or value == "":
                continue
            text = str(value).strip()
            values.add(text)
            if len(values) > MOST_VALUES:
                self._values[name] = None
            self._others[name] = self._others.get(name, 0) + (text != label)

    def describe(self, labels: Collection[str], column: str) -> list[str]:
        """Describes the columns whose values are all labels, and differ from them in some rows.

        Args:
            labels: the labels of all rows.
            column: the name of the column that holds them.
        """
        return [
            f"the column {str(name)!r} holds labels, too, others than {column!r} in {counted(self._others[name], 'row')}: "
            "rename it to label if it is the right one"
            for name, values in self._values.items()
            if values and len(values) > 1 and self._others[name] and _are_labels(values, set(labels))
        ]


def _is_ranked(name: str, row: Mapping[Any, Any]) -> bool:
    """Tests for a further choice of a prediction, which has a score beside it: `label_2` and `score_2`."""
    ranked = RANKED.fullmatch(_plain(name))
    return ranked is not None and f"score{ranked['rank']}" in {_plain(str(other)) for other in row}


def _are_labels(values: Collection[str], labels: Collection[str]) -> bool:
    """Tests whether each value is a label, or several that are separated by blanks or signs."""
    return all(value in labels or all(part in labels for part in SEPARATED.split(value)) for value in values)


class OtherSplits:
    """Finds a column of another name than `split` that holds splits: images to test on would train.

    It has few values, which are all splits, or among which are one to train on and another one.
    """

    def __init__(self) -> None:
        self._values: dict[Any, set[str] | None] = {}
        self._named: set[Any] = set()

    def add(self, row: Mapping[Any, Any], used: set[str], where: str) -> None:
        """Takes the values of a row.

        Args:
            row: the row.
            used: the names of the columns that are used.
            where: the list and the row, for messages.

        Raises:
            ImagesError: a column that is named like one of splits holds one.
        """
        for name in row:
            if name not in self._values:  # JSON may name a column in later rows alone
                none = name is None or name in used
                self._values[name] = None if none else set()
                self._named |= {name} if not none and _plain(str(name)) in SPLIT_COLUMNS else set()
        for name, values in self._values.items():
            if values is None:
                continue
            text = str(row.get(name)).strip().lower()
            if _plain(str(name)) in ONE_SPLIT and text in MARKS:
                values.add(text)
                continue
            if text in SIDES and name in self._named:
                raise _other_split(where, name, {str(row.get(name))})
            if text not in {"", "none", "nan"}:
                values.add(text)
            if len(values) > MOST_SPLITS:  # of another kind; a column that is named like one of splits is read on
                self._values[name] = set() if name in self._named else None

    def check(self, given: str) -> None:
        """Raises if a column is left that names images to validate or to test on.

        Raises:
            ImagesError: one is.
        """
        for name, values in self._values.items():
            if not values:
                continue
            marks = _plain(str(name)) in ONE_SPLIT and values <= MARKS
            if marks and len({value in {"1", "1.0", "true"} for value in values}) > 1:
                raise ImagesError(
                    f"{given}: the column {str(name)!r} marks the images of one split, but only a column named split is used: "
                    "write train, val or test into one, or leave it out"
                )
            exact, sides = values <= SIDES.keys(), {_side(value) for value in values}
            if sides - {"", "train"} and (exact or "train" in sides):
                raise _other_split(given, name, values)


def _side(value: str) -> str:
    """Returns the split that a value names, as `test` in `test_public`; empty for another value."""
    first = re.split(r"[^a-z]+", value, maxsplit=1)[0]
    return SIDES.get(value) or SIDES.get(first) or ""


def _other_split(where: str, name: Any, values: set[str]) -> ImagesError:
    return ImagesError(
        f"{where}: the column {str(name)!r} holds {', '.join(map(repr, sorted(values)))}, but only a column named split is "
        "used: rename it, or leave it out"
    )


def _refuse_pictures(row: Mapping[Any, Any], given: str) -> None:
    """Raises ImagesError if a column holds the pictures themselves, as in Hugging Face's Parquet."""
    for name, value in row.items():
        if isinstance(value, bytes) or (isinstance(value, Mapping) and isinstance(value.get("bytes"), bytes)):
            raise ImagesError(
                f"{given}: the column {name} holds the pictures themselves; kresume reads lists of files. Write them as files, "
                "one folder per class: for i, row in enumerate(datasets.load_dataset(...)): row['image'].save(f'...')"
            )


def _likely(names: list[str], several: list[str]) -> str:
    """Suggests how to correct a list's columns; `""` if nothing is recognised."""
    if names and ("/" in names[0] or ending(names[0]) in PICTURES):
        return ": its first row must name the columns, path,label"
    return f": {' and '.join(several)}" if several else ""


def _plain(name: str) -> str:
    return name.strip().lower().replace("_", "").replace(" ", "")


def _role(name: str) -> str:
    """Returns the role of a column: `image_path` is a path, `class_name` a label."""
    plain = _plain(name)
    return ROLES.get(plain, "path" if plain.endswith("path") else plain)
