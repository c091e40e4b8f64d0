"""Lists images from CSV, JSON lines or Parquet with the columns `path` and `label`.

Paths are relative to the list's folder. A column `split` (train, val, test) sets an image's split; every other column
is kept in the manifest.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from kresume.errors import ImagesError
from kresume.images.sources.found import NO_CLASS, ONE_LABEL, Advance, Found, Listing, Quarantined, Source, canonical
from kresume.images.sources.names import LISTS, SPLITS, ending
from kresume.storage import locations
from kresume.storage.damage import reason

SPLIT_COLUMNS = {"split", "subset", "partition", "set", "fold"}
"""Names, in lower case, of columns that hold splits in lists that other programs wrote; only `split` is used."""
ROLES = {
    **dict.fromkeys(("filename", "file", "image", "filepath", "img", "images", "name", "picture", "photo"), "path"),
    **dict.fromkeys(("class", "category", "labels", "target", "classname", "labelname", "y", "tag"), "label"),
}
"""Names of columns in other programs' lists, in lower case without blanks and _, and what they are here."""
PICTURES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".heic"})
"""Endings by which a first row without names of columns is recognised."""


def accepts(path: str) -> bool:
    """Tests by its ending whether a file is a list; text has no signature."""
    return path.lower().endswith(LISTS) and not locations.is_folder(path)


def list_source(source: Source, advance: Advance) -> Listing:
    """Lists the images that a list names; missing files are quarantined.

    Raises:
        ImagesError: if the list cannot be read, has no `path` or `label`, or names no existing file.
    """
    folder = locations.parent(source.path)
    found: list[Found] = []
    gone: list[Quarantined] = []
    tests = 0
    for number, row in enumerate(_rows(source), 1):
        path, label = row.get("path"), NO_CLASS
        if source.labelled:
            label = _label(row.get("label"), f"{source.given}, row {number:,}")
        if label == "" and "label" in row and isinstance(path, str) and path:
            raise ImagesError(
                f"{source.given}, row {number:,}: the label of {path} is empty: give one, or leave the row out"
            )
        if not isinstance(path, str) or not path or label == "":
            _refuse_pictures(row, source.given)
            columns = "the columns `path` and `label`" if source.labelled else "a column `path`"
            raise ImagesError(
                f"{source.given}, row {number:,}: expected {columns}, found "
                f"{', '.join(repr(name) for name in row if name is not None) or 'nothing'}{_likely(row)}"
            )
        split = None
        if source.labelled and "split" not in row:
            _refuse_other_split(row, f"{source.given}, row {number:,}")
        if row.get("split") and source.labelled:
            split = SPLITS.get(str(row["split"]).strip().lower())
            if split is None:
                raise ImagesError(f"{source.given}, row {number:,}: split {row['split']}: use train, val or test")
            if split == "test" and not source.tests:
                tests += 1
                continue
        extra = {key: value for key, value in row.items() if key not in {"path", "label", "split"} and key is not None}
        text = json.dumps(extra, ensure_ascii=False, default=str) if extra else ""
        full = locations.join(folder, path)
        try:
            facts = locations.stat(full)
        except (OSError, ValueError) as error:  # ValueError: no file can have this name
            why = error.strerror if isinstance(error, OSError) and error.strerror else reason(error)
            gone.append(Quarantined(full, label, f"listed in {source.given}, but it cannot be read ({why})"))
            continue
        found.append(Found(full, label, source.given, facts.st_size, facts.st_mtime_ns, split, extra=text))
        advance(1)
    if not found and tests and not gone:
        raise ImagesError(
            f"{source.given} lists test images alone ({tests:,}): they are for `kresume eval`; without its column `split` all "
            "of them train"
        )
    if not found:
        first = f", the first is {gone[0].path}" if gone else ""
        raise ImagesError(
            f"{source.given} lists no file that exists ({len(gone):,} are missing{first}): its paths are relative to {folder}"
        )
    notes = [f"{source.given}: {tests:,} test images were left out: they are for `kresume eval`"] if tests else []
    if gone:
        notes.append(f"{source.given}: {len(gone):,} listed files do not exist; the first is {gone[0].path}")
    return Listing(tuple(found), tuple(notes), tuple(sorted({each.label for each in found})), tuple(gone))


def _label(value: Any, where: str) -> str:
    """Returns the label of a row; a list of one label counts as that label.

    Raises:
        ImagesError: if there are several labels.
    """
    if isinstance(value, (list, tuple)):
        if len(value) > 1:
            raise ImagesError(f"{where}: {len(value)} labels ({', '.join(map(str, value))}): {ONE_LABEL}")
        value = value[0] if len(value) else None
    missing = value is None or (isinstance(value, float) and math.isnan(value))  # pandas writes NaN for no value
    return "" if missing else canonical(str(value))


def _refuse_other_split(row: Mapping[Any, Any], where: str) -> None:
    """Raises if another column than `split` holds splits: images to validate or to test on would train.

    Raises:
        ImagesError: it does.
    """
    for name, value in row.items():
        if str(name).strip().lower() in SPLIT_COLUMNS and str(value).strip().lower() in SPLITS:
            raise ImagesError(
                f"{where}: the column {str(name)!r} holds {str(value)!r}, but only a column named split is used: rename it, or "
                "leave it out"
            )


def _refuse_pictures(row: Mapping[Any, Any], given: str) -> None:
    """Raises ImagesError if a column holds the pictures themselves, as in Hugging Face's Parquet."""
    for name, value in row.items():
        if isinstance(value, bytes) or (isinstance(value, Mapping) and isinstance(value.get("bytes"), bytes)):
            raise ImagesError(
                f"{given}: the column {name} holds the pictures themselves; kresume reads lists of files. Write them as files, "
                "one folder per class: for i, row in enumerate(datasets.load_dataset(...)): row['image'].save(f'...')"
            )


def _likely(row: Mapping[Any, Any]) -> str:
    """Suggests how to correct a list's columns; `""` if nothing is recognised."""
    names = [str(name) for name in row if name is not None]
    if any(";" in name or "\t" in name for name in names):
        return ": separate the columns by commas (a .tsv file: by tabs)"
    if names and ("/" in names[0] or ending(names[0]) in PICTURES):
        return ": its first row must name the columns, path,label"
    near = {name: _role(name) for name in names}
    renamed = [
        f"{name if name == name.strip() else repr(name)} to {role}"
        for name, role in near.items()
        if role in {"path", "label"} and role not in names
    ]
    return f": rename {' and '.join(renamed)}" if renamed else ""


def _role(name: str) -> str:
    """Returns the role of a column: `image_path` is a path, `class_name` a label."""
    plain = name.strip().lower()
    joined = plain.replace("_", "").replace(" ", "")
    return ROLES.get(joined, "path" if joined.endswith("path") else plain)


def _rows(source: Source) -> Iterator[Mapping[str, Any]]:
    if source.path.lower().endswith(".parquet"):
        yield from _parquet_rows(source)
        return
    with locations.opened(source.path) as file:
        try:
            text = file.read().decode("utf-8-sig")  # removes a spreadsheet's byte order mark
        except UnicodeDecodeError as error:
            raise ImagesError(f"{source.given} is not UTF-8 text ({error.reason}): save it as UTF-8") from error
    if source.path.lower().endswith((".csv", ".tsv")):
        delimiter = "\t" if source.path.lower().endswith(".tsv") else ","
        rows = csv.DictReader(io.StringIO(text), delimiter=delimiter, strict=True)
        try:
            yield from rows
        except csv.Error as error:  # an unclosed quote would swallow the rest of the list
            raise ImagesError(
                f"{source.given}: the row that ends in line {rows.line_num:,} is damaged ({error}): is a quote left open?"
            ) from error
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


def _parquet_rows(source: Source) -> Iterator[Mapping[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    try:
        with locations.opened(source.path) as file, parquet.ParquetFile(file) as table:
            for batch in table.iter_batches(65536):
                yield from batch.to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise ImagesError(f"{source.given} is not a Parquet table ({reason(error)})") from error
