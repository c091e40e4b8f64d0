"""Reads the rows of a list, and finds the columns that hold its paths and labels.

    rows = read_rows(source)                        # dictionaries by the list's own names
    columns = find_columns(first_row, source)       # {"path": "file_name", "label": "class"}

A list may be written by another program: by a spreadsheet with `;` between columns or in UTF-16, or with other names for its
columns. What is read as path and label is then told.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from kresume.errors import ImagesError
from kresume.images.sources.found import Source
from kresume.images.sources.names import ending
from kresume.storage import locations
from kresume.storage.damage import interpreting, reason

ROLES = {
    **dict.fromkeys(("filename", "file", "image", "filepath", "img", "images", "picture", "photo"), "path"),
    **dict.fromkeys(("class", "category", "labels", "target", "classname", "labelname", "y", "tag"), "label"),
}
"""Names of columns in other programs' lists, in lower case without blanks and _, and what they are here."""
NUMBERED = {"id", "imageid", "idcode", "imagename", "name"}
"""Names of columns, spelled likewise, that hold a path only where no other column does."""
COCO = ("images", "annotations", "categories")
"""The lists of a file in the format of COCO."""
BOXES = {"xmin", "ymin", "xmax", "ymax", "x1", "y1", "x2", "y2", "bbox", "boxes", "segmentation"}
"""Names of columns, spelled likewise, of lists whose labels are those of parts of a picture."""
PICTURES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".heic"})
"""Endings by which a first row without names of columns is recognised."""


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
        raise ImagesError(f"{source.given}: expected {columns}, found {shown}{_likely(names, several)}")
    if source.labelled and renamed and (boxes := [name for name in names if _plain(name) in BOXES]):
        raise ImagesError(
            f"{source.given}: the column {boxes[0]!r} holds parts of a picture, and kresume classifies whole pictures: cut the "
            f"parts out and list them with path,label; if each label is that of its picture, rename {' and '.join(renamed)}"
        )
    return found


def describe_columns(columns: Mapping[str, str]) -> str:
    """Describes the columns that have other names; empty if none has."""
    renamed = [f"the column {name!r} is read as {role}" for role, name in columns.items() if name != role]
    return ", ".join(renamed)


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


def read_rows(source: Source) -> Iterator[Mapping[str, Any]]:
    """Reads the rows of a list by the names of its columns.

    Raises:
        ImagesError: it is damaged, no text in UTF-8 or UTF-16, or JSON of another form.
    """
    name = source.path.lower()
    if name.endswith(".parquet"):
        yield from _parquet_rows(source)
        return
    text = _text(source)
    if name.endswith((".csv", ".tsv")):
        yield from _separated_rows(text, "\t" if name.endswith(".tsv") else _delimiter(text), source.given)
        return
    if name.endswith(".json"):
        yield from _json_rows(text, source)
        return
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ImagesError(f"{source.given}, line {number:,} is not valid JSON ({error})") from error
        if not isinstance(row, dict):
            raise ImagesError(f"{source.given}, line {number:,}: expected an object with `path` and `label`")
        yield row


def _text(source: Source) -> str:
    """Returns the text of a list without a byte order mark; spreadsheets write one."""
    with locations.opened(source.path) as file:
        data = file.read()
    encoding = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        return str(data, encoding)
    except UnicodeDecodeError as error:
        raise ImagesError(f"{source.given} is not UTF-8 text ({error.reason}): save it as UTF-8") from error


def _delimiter(text: str) -> str:
    """Finds what separates the names in the first row; spreadsheets also write semicolons and tabs."""
    first = re.sub(r'"[^"]*"', "", text.partition("\n")[0])
    return next((each for each in (",", ";", "\t") if each in first), ",")


def _separated_rows(text: str, delimiter: str, given: str) -> Iterator[Mapping[str, Any]]:
    rows = csv.DictReader(io.StringIO(text), delimiter=delimiter, strict=True)
    try:
        for row in rows:
            if any(cell.strip() for cell in row.get(None) or ()):
                raise ImagesError(
                    f"{given}, line {rows.line_num:,}: more values than columns, {row[None][0]!r} for example: put a value "
                    f"that holds {delimiter!r} in quotes"
                )
            yield row
    except csv.Error as error:  # an unclosed quote would swallow the rest of the list
        raise ImagesError(
            f"{given}: the row that ends in line {rows.line_num:,} is damaged ({error}): is a quote left open?"
        ) from error


def _json_rows(text: str, source: Source) -> Iterator[Mapping[str, Any]]:
    """Yields the rows of a JSON file, in each form that programs write."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ImagesError(f"{source.given} is not valid JSON ({error})") from error
    if isinstance(value, dict) and value and all(isinstance(each, dict) for each in value.values()):
        yield from _rows_of_columns(value)
    elif isinstance(value, dict) and value and all(ending(name) in PICTURES for name in value):
        yield from ({"path": name, "label": label} for name, label in value.items())
    elif isinstance(value, dict) and all(isinstance(value.get(name), list) for name in COCO):
        with interpreting(f"the annotations {source.given}", ImagesError):
            rows = _coco_rows(value, source)
        yield from rows
    elif isinstance(value, list) and all(isinstance(row, dict) for row in value):
        yield from value
    else:
        raise ImagesError(
            f"{source.given}: expected a list of objects with `path` and `label`, a label for each path, or annotations in the "
            f"format of COCO ({', '.join(COCO)})"
        )


def _rows_of_columns(columns: Mapping[str, Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Yields the rows of a table that pandas wrote by column, each with its values by row."""
    for row in next(iter(columns.values())):
        yield {name: values.get(row) for name, values in columns.items()}


def _coco_rows(value: Mapping[str, Any], source: Source) -> list[Mapping[str, Any]]:
    """Returns a row for each picture; one without an annotation has no label.

    The format: https://cocodataset.org/#format-data. An annotation of a whole picture, as in iNaturalist's files, has no box.
    """
    names = {each["id"]: str(each["name"]) for each in value["categories"]}
    if not source.labelled:
        return [{"path": each["file_name"]} for each in value["images"]]
    labels: dict[Any, set[str]] = {}
    for each in value["annotations"]:
        if each.get("bbox") or each.get("segmentation"):
            raise ImagesError(
                f"{source.given} says what is in parts of a picture, and kresume classifies whole pictures: cut the parts out "
                "and list them with path,label; if each label is that of its picture, list the pictures so"
            )
        labels.setdefault(each["image_id"], set()).add(names[each["category_id"]])
    return [{"path": each["file_name"], "label": sorted(labels.get(each["id"], ()))} for each in value["images"]]


def _parquet_rows(source: Source) -> Iterator[Mapping[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    try:
        with locations.opened(source.path) as file, parquet.ParquetFile(file) as table:
            for batch in table.iter_batches(65536):
                yield from batch.to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise ImagesError(f"{source.given} is not a Parquet table ({reason(error)})") from error
