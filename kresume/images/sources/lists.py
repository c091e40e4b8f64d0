"""Lists images from CSV, JSON, JSON lines or Parquet with the columns `path` and `label`.

Paths are relative to the list's folder. A column `split` (train, val, test) sets an image's split; every other column
is kept in the manifest. `columns` reads the rows.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from textwrap import shorten
from typing import Any

from kresume.errors import ImagesError
from kresume.images.sources.columns import PICTURES, describe_columns, find_columns, read_rows
from kresume.images.sources.found import NO_CLASS, ONE_LABEL, Advance, Found, Listing, Quarantined, Source, canonical
from kresume.images.sources.names import LISTS, SPLITS, ending
from kresume.storage import locations
from kresume.storage.damage import reason

SPLIT_COLUMNS = {"split", "subset", "partition", "set", "fold"}
"""Names, in lower case, of columns that hold splits in lists that other programs wrote; only `split` is used."""


def accepts(path: str) -> bool:
    """Tests by its ending whether a file is a list; text has no signature."""
    return path.lower().endswith((*LISTS, ".json")) and not locations.is_folder(path)


def list_source(source: Source, advance: Advance) -> Listing:
    """Lists the images that a list names; missing files are quarantined.

    Raises:
        ImagesError: if the list cannot be read, has no `path` or `label`, or names no existing file.
    """
    folder = locations.parent(source.path)
    found: list[Found] = []
    gone: list[Quarantined] = []
    tests = 0
    columns: dict[str, str] = {}
    used: set[str] = set()
    sides = _Sides()
    for number, row in enumerate(read_rows(source), 1):
        if not columns:
            columns = find_columns(row, source)
            used = {"path", "label", "split", *columns.values()}
        path, label = row.get(columns["path"]), NO_CLASS
        if not isinstance(path, str) or not path:
            raise ImagesError(
                f"{source.given}, row {number:,}: expected a path in the column {columns['path']!r}, found "
                f"{shorten(repr(path), 80)}"
            )
        if source.labelled:
            label = _label(row.get(columns["label"]), f"{source.given}, row {number:,}")
        if label == "":
            raise ImagesError(
                f"{source.given}, row {number:,}: the label of {path} is empty: give one, or leave the row out"
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
        if source.labelled and "split" not in row:
            sides.add(row, used)
        extra = {key: value for key, value in row.items() if key not in used and key is not None}
        text = json.dumps(extra, ensure_ascii=False, default=str) if extra else ""
        full = locations.join(folder, path)
        try:
            full, facts = _located(full)
        except (OSError, ValueError) as error:  # ValueError: no file can have this name
            why = error.strerror if isinstance(error, OSError) and error.strerror else reason(error)
            gone.append(Quarantined(full, label, f"listed in {source.given}, but it cannot be read ({why})"))
            continue
        found.append(Found(full, label, source.given, facts.st_size, facts.st_mtime_ns, split, extra=text))
        advance(1)
    sides.check(source.given)
    read_as = describe_columns(columns)
    if not found:
        raise _nothing(source, folder, gone, tests, read_as)
    notes = [f"{source.given}: {read_as}"] if read_as else []
    notes += [f"{source.given}: {tests:,} test images were left out: they are for `kresume eval`"] if tests else []
    if gone:
        notes.append(f"{source.given}: {len(gone):,} listed files do not exist; the first is {gone[0].path}")
    return Listing(tuple(found), tuple(notes), tuple(sorted({each.label for each in found})), tuple(gone))


def _nothing(source: Source, folder: str, gone: Sequence[Quarantined], tests: int, read_as: str) -> ImagesError:
    """Returns the error of a list without an image to train on."""
    if tests and not gone:
        return ImagesError(
            f"{source.given} lists test images alone ({tests:,}): they are for `kresume eval`; without its column `split` all "
            "of them train"
        )
    first = f", the first is {gone[0].path}" if gone else ""
    return ImagesError(
        f"{source.given} lists no file that exists ({len(gone):,} are missing{first}): its paths are relative to {folder}"
        f"{f' ({read_as})' if read_as else ''}"
    )


class _Sides:
    """Finds a column of another name than `split` that holds splits: images to test on would train."""

    def __init__(self) -> None:
        self._values: dict[Any, set[str]] | None = None

    def add(self, row: Mapping[Any, Any], used: set[str]) -> None:
        """Takes the values of a row; a column with any other value is none."""
        if self._values is None:
            self._values = {name: set() for name in row if name is not None and name not in used}
        for name in list(self._values):
            text = str(row.get(name)).strip().lower()
            if text in SPLITS:
                self._values[name].add(text)
            else:
                del self._values[name]

    def check(self, given: str) -> None:
        """Raises ImagesError if a column is left that names images to validate or to test on."""
        for name, values in (self._values or {}).items():
            if {SPLITS[value] for value in values} - {"train"}:
                raise ImagesError(
                    f"{given}: the column {name!r} holds {', '.join(map(repr, sorted(values)))}, but only a column named split "
                    "is used: rename it, or leave it out"
                )


def _located(path: str) -> tuple[str, os.stat_result]:
    """Returns the path and the facts of a listed file.

    It is the one that is named, else with Windows' slashes turned, or with the ending that the list leaves out.

    Raises:
        OSError, ValueError: there is none.
    """
    try:
        return path, locations.stat(path)
    except OSError as error:
        turned = path.replace("\\", "/")
        others = [turned] if turned != path else []
        others += [f"{turned}{end}" for end in sorted(PICTURES)] if ending(path) not in PICTURES else []
        for other in others:
            with contextlib.suppress(OSError):
                return other, locations.stat(other)
        raise error


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
