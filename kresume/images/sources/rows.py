"""Reads the rows of a list: text with separators, JSON in the forms that programs write, or Parquet.

    for row in read_rows(source):        # {"file_name": "cat/1.jpg", "class": "cat"}, by the list's own names
        ...

A spreadsheet may write `;` between columns, or UTF-16; Hugging Face writes JSON lines, also into files named `.json`.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from kresume.class_names import take_separator
from kresume.errors import ImagesError
from kresume.images.sources.columns import check_names
from kresume.images.sources.found import Source
from kresume.images.sources.names import PICTURES, ending
from kresume.storage import locations
from kresume.storage.damage import interpreting, reason

COCO = ("images", "annotations", "categories")
"""The lists of a file in the format of COCO."""


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
        text, told = take_separator(text)
        delimiter = told or ("\t" if name.endswith(".tsv") else _delimiter(text))
        yield from _separated_rows(text, delimiter, source)
        return
    if name.endswith(".json"):
        yield from _json_rows(text, source)
        return
    yield from _json_lines(text, source.given)


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
    first = re.sub(r'"[^"]*"', "", re.split(r"[\r\n]", text, maxsplit=1)[0])
    return next((each for each in (",", ";", "\t") if each in first), ",")


def _separated_rows(text: str, delimiter: str, source: Source) -> Iterator[Mapping[str, Any]]:
    given = source.given
    rows = csv.DictReader(io.StringIO(text, newline=None), delimiter=delimiter, strict=True)
    try:
        check_names(list(rows.fieldnames or ()), source)
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


def _json_lines(text: str, given: str) -> Iterator[Mapping[str, Any]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ImagesError(f"{given}, line {number:,} is not valid JSON ({error})") from error
        if not isinstance(row, dict):
            raise ImagesError(f"{given}, line {number:,}: expected an object with `path` and `label`")
        yield row


def _json_rows(text: str, source: Source) -> Iterator[Mapping[str, Any]]:
    """Yields the rows of a JSON file, in each form that programs write."""
    try:
        value = json.loads(text)
    except ValueError as error:
        if _is_object(text.lstrip().partition("\n")[0]):
            yield from _json_lines(text, source.given)
            return
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


def _is_object(line: str) -> bool:
    """Returns True if a line is a whole JSON object."""
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _rows_of_columns(columns: Mapping[str, Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Yields the rows of a table that pandas wrote by column, each with its values by row."""
    for row in next(iter(columns.values())):
        yield {name: values.get(row) for name, values in columns.items()}


def _coco_rows(value: Mapping[str, Any], source: Source) -> list[Mapping[str, Any]]:
    """Returns a row for each picture; one without any annotation has the label `[]`.

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
        if each["category_id"] not in names:
            raise ImagesError(
                f"{source.given}: an annotation of the image {each['image_id']} is of the category {each['category_id']}, "
                "which is none of its categories"
            )
        labels.setdefault(each["image_id"], set()).add(names[each["category_id"]])
    return [{"path": each["file_name"], "label": sorted(labels.get(each["id"], ()))} for each in value["images"]]


def _parquet_rows(source: Source) -> Iterator[Mapping[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    try:
        with locations.opened(source.path) as file, parquet.ParquetFile(file) as table:
            check_names(table.schema_arrow.names, source)
            for batch in table.iter_batches(65536):
                yield from batch.to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise ImagesError(f"{source.given} is not a Parquet table ({reason(error)})") from error
