"""Follows the names of classes along the lineage of runs (`--rename`).

names = renames_between(parent, child)      # {"plum": "Pflaume"}: what a class of the parent is called in the child
"""

from __future__ import annotations

from kresume import runs
from kresume.class_renames import read_renames
from kresume.errors import KresumeError


def renames_between(one: runs.Run | None, other: runs.Run | None) -> dict[str, str]:
    """Returns the names that classes of one run have in another, by the names that differ.

    Empty if neither descends from the other, or if a run between them cannot be read.
    """
    if one is None or other is None:
        return {}
    down = _renames_since(one, other)
    if down is not None:
        return down
    up = _renames_since(other, one)
    return {new: old for old, new in (up or {}).items()}


def _renames_since(ancestor: runs.Run, run: runs.Run) -> dict[str, str] | None:
    """Returns the new names of the ancestor's classes; None if it is none."""
    steps, visited = [], set()
    while run.path.resolve() != ancestor.path.resolve():
        visited.add(run.path.resolve())
        steps.append(read_renames(run.record.options.get("rename")))
        above = run.parent_path()
        if above is None or above.resolve() in visited or not runs.is_run(above):
            return None
        try:
            run = runs.open_run(above)
        except KresumeError:
            return None
    names = {name: name for name in ancestor.record.card.classes}
    for step in reversed(steps):
        names = {first: step.get(now, now) for first, now in names.items()}
    return {first: now for first, now in names.items() if first != now}
