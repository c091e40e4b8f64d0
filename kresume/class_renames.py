"""Reads the new names that `--rename` gives to classes.

read_renames(["plum=Pflaume"])              # {"plum": "Pflaume"}
in_metrics("classes.plum.f1", renames)      # "classes.Pflaume.f1"
of_labels(renames)                          # how labels of folders and lists are read
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kresume.class_names import canonical, show_class
from kresume.errors import UsageError
from kresume.spelling import option

PAIR = re.compile(r"\s*(?P<old>\"(?:[^\"]|\"\")*\"|'[^']*'|[^=]*?)\s*=\s*(?P<new>.*?)\s*", re.DOTALL)
EXAMPLE = "plum=Pflaume"


def read_renames(given: Sequence[str] | None) -> dict[str, str]:
    """Reads `OLD=NEW` each; a name that holds `=` or a comma may be quoted.

    Returns:
        New names by old ones, in canonical form.

    Raises:
        UsageError: one has another form, a class is named twice, or two classes would have one name.
    """
    names: dict[str, str] = {}
    for pair in given or ():
        match = PAIR.fullmatch(pair)
        old, new = (canonical(_unquoted(match[side])) for side in ("old", "new")) if match else ("", "")
        if not old or not new:
            raise UsageError(f"{option('rename', pair)}: give OLD=NEW, for example {option('rename', EXAMPLE)}")
        if old in names:
            raise UsageError(
                f"{option('rename', pair)}: {old} is renamed twice, to {names[old]} and to {new}: give one of them"
            )
        if new in names.values():
            other = next(each for each, name in names.items() if name == new)
            raise UsageError(
                f"{option('rename', pair)}: {other} would be {new}, too, and a model has one output for each name: renaming "
                "merges no classes"
            )
        if old == new:
            raise UsageError(f"{option('rename', pair)}: that is its name already: leave it out")
        names[old] = new
    return names


def join_rename(old: str, new: str) -> str:
    """Returns a pair as `read_renames` reads it."""
    return f"{_quoted(old)}={_quoted(new)}"


def pairs_of(renames: Mapping[Any, Any]) -> tuple[str, ...]:
    """Returns a mapping of Python or YAML, `{"plum": "Pflaume"}`, as pairs."""
    return tuple(join_rename(str(old), str(new)) for old, new in renames.items())


def of_labels(renames: Mapping[str, str]) -> dict[str, str]:
    """Returns the new names of labels in folders and lists, without old names that another class has now."""
    return {old: new for old, new in renames.items() if old not in renames.values()}


def in_metrics(text: str, renames: Mapping[str, str]) -> str:
    """Renames classes in names of metrics, alone or in a condition such as `classes.plum.recall>=0.8`."""
    if not renames:
        return text
    names = "|".join(re.escape(name) for name in sorted(renames, key=len, reverse=True))
    return re.sub(
        rf"(?<![\w.])classes\.(?P<name>{names})\.(?=(?:recall|precision|f1)\b)",
        lambda match: f"classes.{renames[match['name']]}.",
        text,
    )


def in_options(options: Mapping[str, Any], renames: Mapping[str, str]) -> dict[str, Any]:
    """Returns the options of a parent run with its classes renamed where they name classes."""
    changed = dict(options)
    for name in ("monitor", "until"):
        if isinstance(changed.get(name), str):
            changed[name] = in_metrics(changed[name], renames)
    if changed.get("require"):
        changed["require"] = [in_metrics(text, renames) for text in changed["require"]]
    return changed


def describe_renames(renames: Mapping[str, str]) -> str:
    """Formats renames: `"plum -> Pflaume, apple -> Apfel"`."""
    return ", ".join(f"{show_class(old)} -> {show_class(new)}" for old, new in renames.items())


def renamed(names: Iterable[str], renames: Mapping[str, str]) -> tuple[str, ...]:
    """Returns names with those that are renamed replaced, all at once: two may swap."""
    return tuple(renames.get(name, name) for name in names)


def _unquoted(name: str) -> str:
    quoted = len(name) >= 2 and name[0] == name[-1] and name[0] in "\"'"
    return name[1:-1].replace('""', '"') if quoted and name[0] == '"' else name[1:-1] if quoted else name


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"' if re.search(r"[,\"'=]", name) or name != name.strip() else name
