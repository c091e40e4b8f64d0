"""Renumbers the names that Keras generates (`dense_4`), to compare them between processes.

Their numbers count the layers that a process created before, so only their order carries information.

by_new_number([(variable, ("dense_4", "kernel")), ...])        # {("dense#0", "kernel"): variable}
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

Path = tuple[str, ...]


def by_new_number(entries: Sequence[tuple[Any, Path]]) -> dict[Path, Any]:
    """Indexes entries by their path with generated names (`dense_4`) renumbered.

    Args:
        entries: pairs of any object and its path.

    Returns:
        `{path: object}`, where `dense_4` is `dense#0` if it is the lowest among its siblings. Paths that occur twice
        are left out.
    """
    siblings: dict[tuple[Path, str], set[tuple[int, str]]] = {}
    for _, path in entries:
        for depth, name in enumerate(path[:-1]):
            base, number = split_number(name)
            siblings.setdefault((path[:depth], base), set()).add((number, name))
    indices = {
        (parent, name): f"{base}#{index}"
        for (parent, base), names in siblings.items()
        for index, (_, name) in enumerate(sorted(names))
    }
    found: dict[Path, Any] = {}
    twice = set()
    for entry, path in entries:
        key = (*(indices[path[:depth], name] for depth, name in enumerate(path[:-1])), *path[-1:])
        if key in found:
            twice.add(key)
        found[key] = entry
    return {key: entry for key, entry in found.items() if key not in twice}


def split_number(name: str) -> tuple[str, int]:
    """Splits `"dense_4"` into `("dense", 4)`; a name without a number gets 0."""
    found = re.fullmatch(r"(.*?)_(\d+)", name)
    return (found.group(1), int(found.group(2))) if found else (name, 0)
