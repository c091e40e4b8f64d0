"""Lays a run's lineage out as a graph: its ancestors, and their other descendants in the same folder.

    family = family_of(run)
    family.rows[0].lane, family.links

Newest first, one run per row, as `git log --graph` draws it: a run is in a lane, and a line leads to its parent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kresume import runs
from kresume.errors import KresumeError
from kresume.reports.page.source import ancestors, open_parent

MOST_RUNS = 24
MOST_ANCESTORS = 16


@dataclass(frozen=True)
class Node:
    """One run, or the foreign checkpoint that the first one extends.

    Attributes:
        name: of its folder or file.
        lane: its column, 0 is the leftmost.
        status: of the run; `"checkpoint"` for a foreign one.
        created: date and time.
        images: how many it has.
        added: how many it added.
        classes: how many it has.
        accuracy: on all validation images, from 0 to 1; None if unknown.
        old: on the old ones.
        new: on the new ones.
        current: True for the run of the page.
        exports: format and path of its exports, the newest last.
        href: relative link to its own report; empty if it has none.
    """

    name: str
    lane: int
    status: str
    created: str = ""
    images: int = 0
    added: int = 0
    classes: int = 0
    accuracy: float | None = None
    old: float | None = None
    new: float | None = None
    current: bool = False
    exports: tuple[str, ...] = ()
    href: str = ""


@dataclass(frozen=True)
class Link:
    """A line from a child (row and lane) to its parent."""

    row: int
    lane: int
    to_row: int
    to_lane: int


@dataclass(frozen=True)
class Family:
    """The graph: rows from the newest to the oldest, and the lines between them."""

    rows: tuple[Node, ...]
    links: tuple[Link, ...]
    lanes: int
    hidden: int = 0


def family_of(run: runs.Run) -> Family:
    """Returns the graph of a run's lineage."""
    chain = [run, *ancestors(run, MOST_ANCESTORS)]
    try:
        near = runs.list_runs(run.path.parent)
    except KresumeError:
        near = []  # another run's record is damaged: not a reason to show nothing
    parents = _parents([*near, *chain])
    roots = {_key(each) for each in chain}
    related = [each for each in near if _key(each) not in roots and _descends(_key(each), parents, roots)]
    shown = related[-max(MOST_RUNS - len(chain), 0) :] if len(chain) < MOST_RUNS else []
    members = sorted([*chain, *shown], key=lambda each: (each.record.created, each.generation), reverse=True)
    keys = [_key(each) for each in members]
    foreign = chain[-1].record.parent if open_parent(chain[-1]) is None else None
    lanes, links = _lanes(keys, parents, _key(chain[-1]) if foreign else None)
    nodes = [_node(each, lane, run) for each, lane in zip(members, lanes, strict=False)]
    if foreign is not None:
        step = f", step {foreign.step:,}" if foreign.step is not None else ""
        nodes.append(Node(f"{Path(foreign.path).name} ({foreign.format}{step})", lanes[-1], "checkpoint"))
    return Family(tuple(nodes), links, max(lanes) + 1, len(related) - len(shown))


def _key(run: runs.Run) -> str:
    return str(run.path.resolve())


def _parents(members: Sequence[runs.Run]) -> dict[str, str]:
    """Returns the parent of each run, by path; the parent may be a run's own `model.keras`."""
    found: dict[str, str] = {}
    for run in members:
        path = run.parent_path()
        if path is not None:
            folder = path.resolve()
            found[_key(run)] = str(folder.parent if folder.suffix == ".keras" else folder)
    return found


def _descends(key: str, parents: Mapping[str, str], roots: set[str]) -> bool:
    seen: set[str] = set()
    while key in parents and key not in seen:
        seen.add(key)
        key = parents[key]
        if key in roots:
            return True
    return False


def _lanes(keys: Sequence[str], parents: Mapping[str, str], extra: str | None) -> tuple[list[int], tuple[Link, ...]]:
    """Gives each row a lane and returns the lines.

    Args:
        keys: the runs, newest first.
        parents: the parent of each run.
        extra: the run whose parent is the foreign checkpoint in the last row.
    """
    waiting: list[str | None] = []  # for each lane the run that it leads to
    lanes: list[int] = []
    row_of = {key: row for row, key in enumerate(keys)}
    for key in keys:
        mine = [lane for lane, wanted in enumerate(waiting) if wanted == key]
        if mine:
            lane = mine[0]
        elif None in waiting:
            lane = waiting.index(None)
        else:
            waiting.append(None)
            lane = len(waiting) - 1
        for other in mine[1:]:
            waiting[other] = None
        parent = parents.get(key)
        waiting[lane] = parent if parent in row_of else None
        lanes.append(lane)
    links = [
        Link(row, lanes[row], row_of[parents[key]], lanes[row_of[parents[key]]])
        for row, key in enumerate(keys)
        if parents.get(key) in row_of
    ]
    if extra is not None:
        lanes.append(lanes[row_of[extra]])
        links.append(Link(row_of[extra], lanes[-1], len(keys), lanes[-1]))
    return lanes, tuple(links)


def _node(run: runs.Run, lane: int, current: runs.Run) -> Node:
    record = run.record
    scores: Mapping[str, Any] = record.result.scores if record.result else {}
    accuracy = {name: (scores.get(name) or {}).get("accuracy") for name in ("all", "old", "new")}
    here = _key(run) == _key(current)
    report = run.path / "report.html"
    beside = run.path.parent.resolve() == current.path.parent.resolve()
    return Node(
        run.path.name,
        lane,
        run.status,
        record.created.replace("T", " ")[:16],
        int(record.images.get("total", 0)),
        int(record.images.get("added", 0)),
        len(record.card.classes),
        accuracy["all"],
        accuracy["old"],
        accuracy["new"],
        here,
        tuple(f"{event.get('format', '')} {Path(str(event.get('path', ''))).name}" for event in run.events("exported")),
        f"../{run.path.name}/report.html" if beside and not here and report.is_file() else "",
    )
