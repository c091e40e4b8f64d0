"""Lists images from CSV, JSON, JSON lines or Parquet with the columns `path` and `label`.

Paths are relative to the list's folder, or else to the current one. A column `split` (train, val, test) sets an image's
split; every other column is kept in the manifest. `rows` reads the file, `columns` finds the columns.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from textwrap import shorten
from typing import Any

from kresume.class_names import canonical
from kresume.errors import ImagesError
from kresume.images.sources.columns import OtherLabels, OtherSplits, describe_columns, find_columns
from kresume.images.sources.found import NO_CLASS, ONE_LABEL, Advance, Found, Listing, Quarantined, Source
from kresume.images.sources.names import LISTS, SPLITS
from kresume.images.sources.rows import read_rows
from kresume.images.sources.spellings import Spellings, differ_in_spelling
from kresume.spelling import counted, option
from kresume.storage import locations
from kresume.storage.damage import reason

UNKNOWN = frozenset({"nan", "na", "null", "n/a", "<na>", "#n/a"})
"""Labels, in lower case, that programs write where they know none."""
JOINS = ("|", ";", ",")
"""Signs by which other programs separate several labels of one picture."""


def accepts(path: str) -> bool:
    """Tests by its ending whether a file is a list; text has no signature."""
    return path.lower().endswith((*LISTS, ".json")) and not locations.is_folder(path)


class _NoFileError(ImagesError):
    """No listed file exists.

    Args:
        text: the message.
        relative: True if a path does not begin at the root.
    """

    def __init__(self, text: str, *, relative: bool) -> None:
        super().__init__(text)
        self.relative = relative


def list_source(source: Source, advance: Advance) -> Listing:
    """Lists the images that a list names; missing files are quarantined.

    Paths are relative to the list's folder. If no file exists there, they are relative to the current folder, as those that
    `kresume predict` and scripts write.

    Raises:
        ImagesError: if the list cannot be read, has no `path` or `label`, or names no existing file.
    """
    try:
        return _list_in(locations.parent(source.path), source, advance)
    except _NoFileError as error:
        if not error.relative:
            raise
        with contextlib.suppress(_NoFileError):
            listing = _list_in(os.getcwd(), source, advance)
            note = f"{source.given}: its paths are relative to the current folder, {os.getcwd()}"
            return replace(listing, notes=(note, *listing.notes))
        raise error


def _list_in(folder: str, source: Source, advance: Advance) -> Listing:
    """Lists the images that a list names, with paths that are relative to a folder."""
    found: list[Found] = []
    gone: list[Quarantined] = []
    counts: Counter[str] = Counter()
    columns: dict[str, str] = {}
    used: set[str] = set()
    read_as = ""
    moved: set[str] = set()
    respelled: dict[int, str] = {}
    others, second, spellings = OtherSplits(), OtherLabels(), Spellings()
    for number, row in enumerate(read_rows(source), 1):
        where = f"{source.given}, row {number:,}"
        if not columns:
            columns = find_columns(row, source)
            used, read_as = {"path", "label", "split", *columns.values()}, describe_columns(columns, row)
        path = row.get(columns["path"])
        if not isinstance(path, str) or not path.strip():
            raise ImagesError(
                f"{where}: expected a path in the column {columns['path']!r}, found {shorten(repr(path), 80)}"
            )
        label, split = NO_CLASS, None
        if source.labelled:
            if row.get(columns["label"]) == []:  # as in COCO, where a picture may have no annotation
                counts["bare"] += 1
                continue
            label, split = _label(row.get(columns["label"]), path, where), _split(row, where)
            second.add(row, used, label)
            if "split" not in row:
                others.add(row, used, where)
            if split == "test" and not source.tests:
                counts["tests"] += 1
                continue
        extra = {key: value for key, value in row.items() if key not in used and key is not None}
        text = json.dumps(extra, ensure_ascii=False, default=str) if extra else ""
        path, old = source.moves.apply(path, folder) if source.moves.pairs else (path, set())
        moved |= old
        asked = full = locations.join(folder, path)
        try:
            full, facts = spellings.locate(full, locations.join(folder, path.strip()))
        except (OSError, ValueError) as error:  # ValueError: no file can have this name
            why = error.strerror if isinstance(error, OSError) and error.strerror else reason(error)
            counts["relative"] += full != path
            gone.append(Quarantined(full, label, f"listed in {source.given}, but it cannot be read ({why})"))
            continue
        if full != asked:
            respelled[len(found)] = asked
        size, time, stamp = locations.version(facts)
        found.append(Found(full, label, source.given, size, time, split, extra=text, stamp=stamp))
        advance(1)
    others.check(source.given)
    found, spelled = _without_others(found, respelled, gone, source.given)
    if not found:
        raise _nothing(source, folder, gone, counts, read_as)
    notes = [f"{source.given}: {read_as}"] if read_as else []
    labels = sorted({each.label for each in found})
    told = second.describe(labels, columns["label"]) if source.labelled else []
    notes += [f"{source.given}: {note}" for note in (*_left_out(counts), *spelled, *_doubtful(found), *told)]
    if gone:
        notes.append(f"{source.given}: {len(gone):,} listed files do not exist; the first is {gone[0].path}")
    return Listing(tuple(found), tuple(notes), tuple(labels), tuple(gone), moved=frozenset(moved))


def _without_others(
    found: list[Found], respelled: Mapping[int, str], gone: list[Quarantined], given: str
) -> tuple[list[Found], list[str]]:
    """Leaves out files found under another spelling that another row names, with another label.

    Args:
        found: the files of all rows.
        respelled: the listed paths of those that are spelled otherwise, by index.
        gone: takes the rows that are left out.
        given: the list.

    Returns:
        `(files, notes)`: the files that are left, and what to say of those that are spelled otherwise.
    """
    if not respelled:
        return found, []
    exact = {each.path: each.label for index, each in enumerate(found) if index not in respelled}
    taken = {index for index in respelled if exact.get(found[index].path, found[index].label) != found[index].label}
    gone += [
        Quarantined(
            respelled[index],
            found[index].label,
            f"listed in {given}, but it does not exist; {found[index].path} is listed, too",
        )
        for index in sorted(taken)
    ]
    notes = []
    left = [index for index in respelled if index not in taken]
    if used := [index for index in left if differ_in_spelling(respelled[index], found[index].path)]:
        listed, there = respelled[used[0]], found[used[0]].path
        many = counted(len(used), "listed file", "is", "are")
        notes = [f"{many} spelled otherwise on disk; the first is {there} (listed as {listed})"]
    return [each for index, each in enumerate(found) if index not in taken], notes


def _left_out(counts: Mapping[str, int]) -> list[str]:
    """Describes the rows that are left out."""
    tests, bare = counts["tests"], counts["bare"]
    notes = [f"{counted(tests, 'test image', 'was', 'were')} left out: for `kresume eval`"] if tests else []
    return notes + (
        [f"{counted(bare, 'picture')} without a label {'was' if bare == 1 else 'were'} left out"] if bare else []
    )


def _doubtful(found: Sequence[Found]) -> list[str]:
    """Describes labels that may be none, or several: each is a class here."""
    labels = Counter(each.label for each in found)
    notes = [
        f"{counted(count, 'picture', 'has', 'have')} the label {label!r}, which programs write where they know none; it is a "
        "class here"
        for label, count in labels.items()
        if label.lower() in UNKNOWN
    ]
    for join in JOINS:
        parts = {label: [part.strip() for part in label.split(join)] for label in labels}
        counts = Counter(part for each in parts.values() for part in each)
        alone = join == ","  # also a sign within names: a part must be a label of its own
        joined = [
            label
            for label, each in parts.items()
            if len(each) > 1 and any(part in labels if alone else counts[part] > 1 for part in each)
        ]
        if joined:
            many = counted(len(joined), "label")
            notes.append(f"{many} like {joined[0]!r} may name several classes; here each is one class; {ONE_LABEL}")
    return notes


def _nothing(
    source: Source, folder: str, gone: Sequence[Quarantined], counts: Mapping[str, int], read_as: str
) -> ImagesError:
    """Returns the error of a list without an image to train on."""
    if gone:
        return _NoFileError(
            f"{source.given} lists no file that exists ({len(gone):,} are missing, the first is {gone[0].path}): its paths are "
            f"relative to {folder}{f' ({read_as})' if read_as else ''}; if they have moved, `kresume train` takes "
            f"{option('remap', 'OLD=NEW')}",
            relative=counts["relative"] > 0,
        )
    if counts["tests"]:
        return ImagesError(
            f"{source.given} lists test images alone ({counts['tests']:,}): they are for `kresume eval`; without its column "
            "`split` all of them train"
        )
    return ImagesError(f"{source.given} lists no picture{' with a label' if counts['bare'] else ''}")


def _split(row: Mapping[str, Any], where: str) -> str | None:
    """Returns the split of a row, None if it names none.

    Raises:
        ImagesError: it names another one than train, val and test.
    """
    if not row.get("split"):
        return None
    split = SPLITS.get(str(row["split"]).strip().lower())
    if split is None:
        raise ImagesError(f"{where}: split {row['split']}: use train, val or test")
    return split


def _label(value: Any, path: str, where: str) -> str:
    """Returns the label of a row; a list of one label counts as that label.

    Raises:
        ImagesError: there is none, or several, or it is no text and no number.
    """
    if isinstance(value, (list, tuple)):
        if len(value) > 1:
            raise ImagesError(f"{where}: {len(value)} labels ({', '.join(map(str, value))}): {ONE_LABEL}")
        value = value[0] if len(value) else None
    if isinstance(value, (Mapping, list, tuple)):
        raise ImagesError(f"{where}: the label of {path} is {shorten(repr(value), 80)}: expected a text or a number")
    missing = value is None or (isinstance(value, float) and math.isnan(value))  # pandas writes NaN for no value
    label = "" if missing else canonical(str(value))
    if not label:
        raise ImagesError(f"{where}: the label of {path} is empty: give one, or leave the row out ({ONE_LABEL})")
    return label
