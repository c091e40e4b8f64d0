"""Lays a run's lineage out as a graph: its ancestors, and their other descendants in the same folder.

    family = family_of(source)
    family.rows[0].lane, family.links

Newest first, one run per row, as `git log --graph` draws it: a run is in a lane, and a line leads to its parent.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kresume import runs
from kresume.reports.generation import Generation
from kresume.reports.lineage import Root, join, shown_time
from kresume.reports.page.source import Source
from kresume.reports.run_tree import parent_key

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
        parent: what became of its parent, or of this checkpoint itself, if it is known and worth a word.
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
    parent: str = ""


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


def family_of(source: Source) -> Family:
    """Returns the graph of a run's lineage."""
    chain = [source.run, *source.ancestors[:MOST_ANCESTORS]]
    listed = runs.list_runs(source.run.path.parent).runs
    found: dict[str, runs.Run | runs.Unreadable] = {os.path.realpath(run.path): run for run in listed}
    roots = {os.path.realpath(run.path) for run in chain}
    # The run itself may be further than its run.json: its page is written before it is finished.
    found |= {os.path.realpath(run.path): run for run in chain}
    everything = join(found)
    nodes: dict[str, Generation | Root] = {os.path.realpath(each.path): each for each in everything.generations}
    nodes |= {f"{root.path} {root.digest}": root for root in everything.checkpoints}
    parents = {key: parent_key(node, nodes) for key, node in nodes.items() if isinstance(node, Generation)}
    related = [key for key in nodes if key in parents and key not in roots and _descends(key, parents, roots)]
    kept = roots.union(related[: max(MOST_RUNS - len(chain), 0)])  # the newest come first
    keys = [key for key in nodes if key in kept]
    keys += [key for key in nodes if key not in parents and key in {parents.get(each) for each in kept}]
    lanes, links = _lanes(keys, parents)
    own = os.path.realpath(source.run.path)
    rows = (_node(nodes[key], lane, key == own, source) for key, lane in zip(keys, lanes, strict=True))
    return Family(tuple(rows), links, max(lanes) + 1, len(related) - len(kept - roots))


def _descends(key: str, parents: Mapping[str, str], roots: set[str]) -> bool:
    seen: set[str] = set()
    while key in parents and key not in seen:
        seen.add(key)
        key = parents[key]
        if key in roots:
            return True
    return False


def _lanes(keys: Sequence[str], parents: Mapping[str, str]) -> tuple[list[int], tuple[Link, ...]]:
    """Gives each row a lane and returns the lines.

    Args:
        keys: the runs, newest first, then the checkpoints from which they started.
        parents: the parent of each run.
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
    return lanes, tuple(links)


def _node(node: Generation | Root, lane: int, current: bool, source: Source) -> Node:
    if isinstance(node, Root):
        step = f", step {node.step:,}" if node.step is not None else ""
        state = f"{node.state}: {node.reason}" if node.reason else str(node.state)
        return Node(f"{Path(node.path).name} ({node.format}{step})", lane, "checkpoint", parent=state)
    path = Path(node.path)
    beside = os.path.realpath(path.parent) == os.path.realpath(source.run.path.parent)
    linked = beside and not current and (path / "report.html").is_file()
    return Node(
        path.name,
        lane,
        node.status,
        shown_time(node.created),
        node.images,
        node.added if node.start is not None else 0,
        node.classes,
        node.accuracy,
        node.old,
        node.new,
        current,
        tuple(str(version) for version in node.versions[-2:]),
        f"../{path.name}/report.html" if linked else "",
        str(node.start.state) if node.start is not None and node.start.state not in {"unchanged", "unknown"} else "",
    )
