"""Reads the names of a model's outputs, in order, from text or a file.

    read_classes("cat,dog")                    # ("cat", "dog")
    read_classes("labels.txt")                 # one name per line, or `0 ROCK` as Teachable Machine writes them
    read_classes("class_indices.json")         # {"cat": 0, "dog": 1} of Keras's generators, {"0": "cat"}, or a list
    join_classes(("a, b", "c"))                # '"a, b",c', which `read_classes` reads back

Files may be in the formats that users and common tools write.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, KeysView, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from kresume.errors import UsageError
from kresume.spelling import option
from kresume.storage import one_file

FORMS = (
    'one name per line, "0 cat" lines, {"cat": 0}, {"0": "cat"}, ["cat", "dog"], or CSV with a column of names and, if it '
    "has one, a column of numbers"
)
HEADERS = frozenset({"class", "classes", "class_name", "classname", "name", "names", "label", "labels", "category"})
NUMBER_HEADERS = frozenset({"id", "index", "idx", "number", "classid", "classindex", "labelid", "labelindex", "output"})
"""Headers, without _, of the column that numbers the outputs."""
NUMBERED = re.compile(r"(\d+)(?:\s*[:=;,\t]\s*|\s+)(\S.*)")
QUOTED = re.compile(r"\"(?:[^\"]|\"\")*\"|'[^']*'")


def read_classes(value: str) -> tuple[str, ...]:
    """Reads class names in order from a file or from text such as `a,b,c`.

    Names that hold commas are quoted.

    Raises:
        UsageError: if a name occurs twice, there are no names, or the numbers have a gap.
    """
    path, said = Path(value), option("classes", value)
    is_file = _is_file(value)
    try:
        names = _read_file(value) if is_file else tuple(_row(value))
    except _NoNamesError as error:
        raise UsageError(f"{said}: {error}; a file holds {FORMS}") from None
    if not names or not all(names):
        raise UsageError(f"{said}: holds no name" if not names else f"{said}: one name is empty")
    counts = Counter(map(canonical, names))
    twice = sorted({name for name in names if counts[canonical(name)] > 1})
    if twice:
        raise UsageError(f"{said}: stands twice: {', '.join(twice)}")
    if len(names) == 1 and not is_file and (path.suffix.lower() in {".txt", ".json", ".csv", ".tsv"} or "/" in value):
        raise UsageError(f"{said}: there is no such file")
    return names


def canonical(label: str) -> str:
    """Returns a label in canonical form, so that labels that look alike are equal.

    Unicode is composed, because archives made on a Mac decompose it. Blanks around the label are removed. So is a final
    `.0`, which a column of whole numbers gets where a value is missing.
    """
    composed = label if label.isascii() else unicodedata.normalize("NFC", label)
    composed = composed.strip()
    return (
        composed.removesuffix(".0") if composed.endswith(".0") and composed[:-2].lstrip("-").isdecimal() else composed
    )


def as_known(names: Sequence[str], known: Iterable[str]) -> tuple[str, ...]:
    """Returns names with those of the same canonical form spelled as the known ones are."""
    same = set(known)
    spelled = {canonical(name): name for name in same}
    return tuple(name if name in same else spelled.get(canonical(name), name) for name in names)


def spelled_alike(name: str, known: Iterable[str]) -> str | None:
    """Returns the known name that differs only in case, signs or leading zeros; None if there is none."""
    letters = _letters(name)
    return next((other for other in known if _letters(other) == letters), None)


def note_alike(classes: Sequence[str]) -> tuple[str, ...]:
    """Returns a note for each class whose name differs from an earlier one in its spelling alone."""
    pairs = [(spelled_alike(name, classes[:at]), name) for at, name in enumerate(classes)]
    return tuple(
        f"the classes {other} and {name} differ in their spelling alone: rename one of them if they are one class"
        for other, name in pairs
        if other is not None
    )


def _letters(name: str) -> str:
    """Returns the letters and digits of a name, in lower case; 01 is 1."""
    letters = "".join(letter for letter in canonical(name).casefold() if letter.isalnum())
    return letters.lstrip("0") or "0" if letters.isdecimal() else letters or name


def join_classes(names: Iterable[str]) -> str:
    """Formats names for `--classes`, quoting names that hold commas or quotes."""
    return ",".join(
        '"' + name.replace('"', '""') + '"' if re.search(r"[,\"']", name) or name != name.strip() else name
        for name in names
    )


def show_class(name: str) -> str:
    """Returns a name for a reader, quoted if it holds commas or quotes."""
    return join_classes((name,))


def show_classes(names: Iterable[str]) -> str:
    """Lists names for a reader, quoting those that hold commas or quotes."""
    return ", ".join(map(show_class, names))


def names_of(classes: str | Sequence[str] | Mapping[Any, Any] | None) -> tuple[str, ...] | None:
    """Reads class names given in Python: text, a sequence, or a mapping with numbers.

    Text has the format of `--classes`. A mapping maps names to numbers or numbers to names.

    Raises:
        UsageError: as `read_classes` does, and for a set, which has no order.
    """
    if isinstance(classes, str) and classes:
        return read_classes(classes)
    if isinstance(classes, Set) and not isinstance(classes, KeysView):
        raise UsageError("classes: a set has no order, and the order is that of the model's outputs: give a list")
    if isinstance(classes, os.PathLike):
        return read_classes(os.fspath(classes))
    if isinstance(classes, bytes) or not (classes is None or isinstance(classes, Iterable)):
        raise UsageError(f"classes: give the names in the order of the model's outputs, not a {type(classes).__name__}")
    if not isinstance(classes, Mapping):
        return tuple(map(str, () if classes is None else classes)) or None
    if not classes:
        return None
    try:
        return _ordered(classes)
    except _NoNamesError as error:
        raise UsageError(f"classes: {error}") from None


class _NoNamesError(Exception):
    """Raised if a text gives no ordered names; the message is the reason."""


def _is_file(path: str) -> bool:
    try:
        return one_file.is_file(path)
    except OSError:  # a long list of names exceeds the length limit of a path
        return False


def _read_file(file: str) -> tuple[str, ...]:
    path = Path(file)
    try:
        text = one_file.read_text(file)
    except UnicodeDecodeError:
        raise _NoNamesError("it is no text in UTF-8") from None
    if path.suffix.lower() == ".json" or text.lstrip()[:1] in {"{", "["}:
        return _from_json(text)
    if path.suffix.lower() in {".csv", ".tsv"}:
        return _from_table(text, "\t" if path.suffix.lower() == ".tsv" else ",")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    found = [NUMBERED.fullmatch(line) for line in lines]
    pairs = [(int(match[1]), _unquoted(match[2])) for match in found if match]
    if len(pairs) == len(lines) and _counts([number for number, _ in pairs]):
        return tuple(name for _, name in sorted(pairs))
    if len(lines) == 1 and "," in lines[0]:
        return tuple(_row(lines[0]))
    return tuple(_unquoted(line) for line in lines)


def _from_json(text: str) -> tuple[str, ...]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise _NoNamesError(f"this is no JSON ({error})") from None
    if isinstance(value, Mapping):
        return _ordered(value)
    if isinstance(value, list) and all(isinstance(name, (str, int)) for name in value):
        return tuple(str(name) for name in value)
    raise _NoNamesError("its JSON is neither a list of names nor names with numbers")


def _ordered(indices: Mapping[Any, Any]) -> tuple[str, ...]:
    by_name = [(_number(number), str(name)) for name, number in indices.items()]
    by_number = [(_number(number), str(name)) for number, name in indices.items()]
    found = [pairs for pairs in (by_name, by_number) if all(number is not None for number, _ in pairs)]
    fitting = [pairs for pairs in found if _numbers_outputs([number for number, _ in pairs])]
    if len(found) == 2 and len(fitting) == 1:  # the names are numbers, too
        found = fitting
    elif len(found) == 2:
        found = [by_number if all(isinstance(value, str) for value in indices.values()) else by_name]
    if not found:
        raise _NoNamesError("its JSON does not give each name one number")
    pairs = [(int(number or 0), name) for number, name in found[0]]
    numbers = sorted(number for number, _ in pairs)
    if twice := [name for name, count in Counter(name for _, name in pairs).items() if count > 1]:
        raise _NoNamesError(f"{twice[0]} stands twice")
    if not _numbers_outputs(numbers):
        raise _NoNamesError(
            f"its numbers are {', '.join(map(str, numbers[:8]))}{', …' if len(numbers) > 8 else ''}, and outputs are numbered "
            f"from 0 to {max(len(numbers) - 1, 0)}"
        )
    return tuple(name for _, name in sorted(pairs))


def _numbers_outputs(numbers: Collection[int | None]) -> bool:
    return {*numbers} == {*range(len(numbers))}


def _number(value: Any) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    text = value.strip() if isinstance(value, str) else ""
    return int(text) if text.isascii() and text.isdigit() else None


def take_separator(text: str) -> tuple[str, str]:
    """Takes the first line `sep=;` off a table, which tells spreadsheets the separator.

    Returns:
        `(text, separator)`: the text without that line, and `""` if there is none.
    """
    told = re.match(r'"?sep=(.)"?\r?\n', text, re.IGNORECASE)
    return (text[told.end() :], told[1]) if told else (text, "")


def _from_table(text: str, delimiter: str) -> tuple[str, ...]:
    text, told = take_separator(text)
    delimiter = told or delimiter
    rows = [
        [cell.strip() for cell in row]
        for row in csv.reader(io.StringIO(text), delimiter=delimiter, skipinitialspace=True)
        if any(cell.strip() for cell in row)
    ]
    width = max((len(row) for row in rows), default=0)
    if len(rows) == 1 and (width != 2 or None not in map(_number, rows[0])):
        return tuple(rows[0])
    if width == 1:
        names = [row[0] for row in rows]
        return tuple(names[1:] if names and names[0].lower() in HEADERS else names)
    for body in (rows, rows[1:]):
        if not body or any(len(row) != width for row in body):
            continue
        header = rows[0] if body is not rows else ()
        column = _number_column(header, body, width)
        if column is not None:
            other = _name_column(header, body, column, width)
            pairs = sorted((int(row[column]), row[other]) for row in body)
            return tuple(name for _, name in pairs)
    if len(rows) == 1:
        return tuple(rows[0])
    raise _NoNamesError("no column of it counts the outputs from 0")


def _number_column(header: Sequence[str], body: Sequence[Sequence[str]], width: int) -> int | None:
    """Returns the column that numbers the outputs; None if no column counts them.

    Of several, because the names are numbers too, it is the one whose header says so, or beside which another says that it
    holds the names, else the only one that counts row by row.

    Raises:
        _NoNamesError: nothing tells which it is.
    """
    columns = [[_number(row[column]) for row in body] for column in range(width)]
    counting = [at for at, numbers in enumerate(columns) if None not in numbers and _counts(_known(numbers))]
    if len(counting) < 2:
        return counting[0] if counting else None
    if all(columns[at] == columns[counting[0]] for at in counting):
        return counting[0]
    said = {at: header[at].lower() for at in counting} if header else {}
    numbered = [at for at, name in said.items() if name.replace("_", "") in NUMBER_HEADERS]
    if len(numbered) == 1:
        return numbered[0]
    unnamed = [at for at, name in said.items() if name not in HEADERS]
    by_row = [at for at in counting if columns[at] == sorted(_known(columns[at]))]
    told = {each[0] for each in (unnamed, by_row) if len(each) == 1}
    if len(told) == 1:
        return told.pop()
    raise _NoNamesError(
        "several of its columns count the outputs: name the one with the numbers `index`, and the other `name`"
    )


def _known(numbers: Sequence[int | None]) -> list[int]:
    """Returns the numbers that are there."""
    return [number for number in numbers if number is not None]


def _name_column(header: Sequence[str], body: Sequence[Sequence[str]], numbers: int, width: int) -> int:
    """Returns the column of names.

    This is the column whose header says so, else the first that holds words, else the first that does not hold the numbers.
    """
    others = [column for column in range(width) if column != numbers]
    others.sort(key=lambda column: all(_number(row[column]) is not None for row in body))  # words come before numbers
    named = [column for column in others if column < len(header) and header[column].lower() in HEADERS]
    return (named or others)[0]


def _counts(numbers: Sequence[int]) -> bool:
    """Returns True if the sorted numbers count from 0 or from 1 without gaps."""
    return bool(numbers) and sorted(numbers) in (list(range(len(numbers))), list(range(1, len(numbers) + 1)))


def _row(text: str) -> list[str]:
    """Splits names at commas outside single or double quotes."""
    parts = re.findall(r"\s*(\"(?:[^\"]|\"\")*\"|'[^']*'|[^,]*?)\s*(?:,|$)", text)
    return [_unquoted(part) for part in parts if part]


def _unquoted(name: str) -> str:
    if len(name) >= 2 and QUOTED.fullmatch(name):
        return name[1:-1].replace('""', '"') if name[0] == '"' else name[1:-1]
    return name
