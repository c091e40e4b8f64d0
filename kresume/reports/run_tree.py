"""Draws runs and their parents as a tree, newest first, as `git log --graph` draws commits.

    print(draw(lineage, 80))

    * runs/3-signs  accepted  2026-11-26 14:02
    |   from    runs/1-signs (unchanged)
    |-x runs/2-signs  rejected  2026-11-25 10:31
    |     from    runs/1-signs (unchanged)
    * runs/1-signs  accepted  2026-11-24 09:12

A run is above its parent. The column on the left is the line that goes on longest; a branch is to the right of it and ends
at `|-` above the run that it left. The characters are ASCII, for any terminal and file.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kresume.addresses import public
from kresume.class_renames import describe_renames
from kresume.reports.generation import Generation, Parent
from kresume.reports.lineage import Lineage, Root, real_paths
from kresume.runs import Unreadable, number_of
from kresume.spelling import in_percent

MARKS = {"accepted": "*", "rejected": "x", "running": ">", "interrupted": "~"}
CHECKPOINT, UNREADABLE = "o", "!"
LABEL = 9
SHORTEST = 40
"""Columns that text has at least, however deep a branch is."""
MOST_SOURCES, MOST_CHANGES, MOST_VERSIONS = 3, 8, 3


@dataclass(frozen=True)
class Row:
    """One run or root in its place.

    Attributes:
        node: what is there.
        lead: the lines of others to the left of it, and its own.
        below: the same beside its facts.
    """

    node: Generation | Root | Unreadable
    lead: str
    below: str


def draw(lineage: Lineage, width: int, *, short: bool = False) -> str:
    """Draws a lineage.

    Args:
        lineage: the runs.
        width: columns.
        short: one line per run.
    """
    rows = list(place(lineage))
    if short:
        return "\n".join(_table(rows, width))
    lines: list[str] = []
    for row in rows:
        head, facts = _words(row.node)
        lines += _wrapped(head, row.lead, row.below + "    ", width)
        for label, text in facts:
            lines += _wrapped(text, f"{row.below}  {label:<{LABEL}}", row.below + " " * (LABEL + 2), width)
        if row.below.strip() or row is not rows[-1]:
            lines.append(row.below.rstrip())
    return "\n".join(lines).rstrip()


def place(lineage: Lineage) -> Iterator[Row]:
    """Yields every run and root in the order in which they are drawn, with the lines beside it."""
    nodes: dict[str, Generation | Root | Unreadable] = {}
    keys: dict[int, str] = {}
    real = real_paths()
    nodes.update({real(each.path): each for each in lineage.generations})
    nodes.update({real(each.path): each for each in lineage.unreadable})
    for root in lineage.checkpoints:
        nodes[f"{root.path} {root.digest}"] = root
    children: dict[str, list[str]] = {key: [] for key in nodes}
    for generation in lineage.generations:
        key = real(generation.path)
        keys[id(generation)] = parent_key(generation, nodes, real)
        if keys[id(generation)] in children and not _is_above(keys[id(generation)], key, nodes, keys):
            children[keys[id(generation)]].append(key)
    placed = {child for each in children.values() for child in each}
    weight = _weights(nodes, children)
    for top in sorted((key for key in nodes if key not in placed), key=weight.__getitem__, reverse=True):
        yield from _branch(top, nodes, children, weight)


def parent_key(
    generation: Generation, nodes: Mapping[str, Any], real: Callable[[str | Path], str] = os.path.realpath
) -> str:
    """Returns the key of a run's parent; empty for a new model. `real` may remember folders."""
    start = generation.start
    if start is None:
        return ""
    own = f"{start.path} {start.digest}"
    if own in nodes:
        return own
    path = real(start.path)
    return path if path in nodes else os.path.dirname(path)


def _is_above(parent: str, key: str, nodes: Mapping[str, Any], keys: Mapping[int, str]) -> bool:
    """Returns True if a run is an ancestor of its own parent, which only an edited record can say."""
    seen = {key}
    while parent and parent not in seen:
        seen.add(parent)
        parent = keys.get(id(nodes.get(parent)), "")
    return parent == key


def _weights(nodes: Mapping[str, Any], children: Mapping[str, list[str]]) -> dict[str, tuple[bool, str, int]]:
    """Returns for each node if an accepted run descends from it, and when the newest such run was made.

    Of runs made within a second the one with the higher number is the newer one.
    """
    weight: dict[str, tuple[bool, str, int]] = {}
    stack = [(key, False) for key in nodes]
    while stack:
        key, ready = stack.pop()
        if key in weight:
            continue
        if not ready:
            stack += [(key, True), *((child, False) for child in children[key] if child not in weight)]
            continue
        node = nodes[key]
        made = getattr(node, "created", "")
        own = (getattr(node, "status", "") == "accepted", made, number_of(Path(node.path).name) if made else -1)
        weight[key] = max([own, *(weight[child] for child in children[key] if child in weight)])
    return weight


def _branch(
    top: str, nodes: Mapping[str, Any], children: Mapping[str, list[str]], weight: Mapping[str, tuple[bool, str, int]]
) -> Iterator[Row]:
    """Yields a tree, children before their parent, without recursion: a chain may have a thousand runs."""
    stack: list[tuple[str, int, bool, bool]] = [(top, 0, False, False)]
    while stack:
        key, depth, leaves, ready = stack.pop()
        if ready:
            rail = "| " * depth
            lead = f"{rail[:-2]}|-" if leaves else rail
            goes_on = key != top and not leaves
            yield Row(nodes[key], lead, f"{rail}|" if goes_on else f"{rail} ")
            continue
        stack.append((key, depth, leaves, True))
        first, *others = sorted(children[key], key=weight.__getitem__, reverse=True) or [""]
        stack += [(child, depth + 1, True, False) for child in reversed(others)]
        if first:
            stack.append((first, depth, False, False))


def _wrapped(text: str, first: str, following: str, width: int) -> list[str]:
    if len(first) + len(text) <= width:
        return [f"{first}{text}".rstrip()]
    room = max(width, len(following) + SHORTEST)
    return textwrap.wrap(
        text,
        room,
        initial_indent=first,
        subsequent_indent=following,
        break_long_words=False,
        break_on_hyphens=False,
        drop_whitespace=True,
    ) or [first.rstrip()]


def _words(node: Generation | Root | Unreadable) -> tuple[str, list[tuple[str, str]]]:
    """Returns the first line of a node, and its facts with their labels."""
    if isinstance(node, Generation):
        return _head(node), [(label, text) for label, text in _facts(node) if text]
    if isinstance(node, Root):
        step = "" if node.step is None else f", step {node.step:,}"
        facts = [("digest", node.digest[:12])] if node.digest else []
        return f"{CHECKPOINT} {public(node.path)}  {_kind(node.format)}{step}, {_state(node)}", facts
    return f"{UNREADABLE} {public(node.path)}  unreadable", [("reason", node.reason)]


def _kind(name: str) -> str:
    return "a run" if name == "run" else f"{name} checkpoint"


def _state(node: Root | Parent) -> str:
    if node.state == "unknown":
        return f"not compared: {node.reason}"
    return f"{node.state}: {node.reason}" if node.reason else str(node.state)


def _head(run: Generation) -> str:
    status = f"{run.status} ({run.trained_by})" if run.trained_by else run.status
    served = [version for version in run.versions if version.state == "newest"]
    tags = f"  [{', '.join(version.path for version in served)}]" if served else ""
    return f"{MARKS.get(run.status, '?')} {public(run.path)}  {status}  {run.created.replace('T', ' ')[:16]}{tags}"


def _facts(run: Generation) -> list[tuple[str, str]]:
    start = run.start
    parent = f", parent {start.digest[:12]}" if start else ""
    return [
        ("from", f"{public(start.path)} ({_state(start)})" if start else "a new model"),
        ("images", _images(run)),
        ("changed", _changes(run)),
        ("trained", _trained(run)),
        ("result", _result(run)),
        ("failed", "; ".join(run.failed)),
        ("export", _newest_first([str(version) for version in run.versions])),
        ("digest", f"images {run.manifest[:12]}{parent}"),
    ]


def _newest_first(versions: list[str]) -> str:
    more = f" and {len(versions) - MOST_VERSIONS:,} before" if len(versions) > MOST_VERSIONS else ""
    return ", ".join(reversed(versions[-MOST_VERSIONS:])) + more


def _images(run: Generation) -> str:
    named = ", ".join(run.sources[:MOST_SOURCES])
    more = f" and {len(run.sources) - MOST_SOURCES:,} more" if len(run.sources) > MOST_SOURCES else ""
    source = f" from {named}{more}" if named else ""
    added = f"+{run.added:,}{source}" if run.added else f"none new{source}"
    if run.start is None:
        added = f"all new{source}"
    added += f", {run.relabelled:,} with a new label" if run.relabelled else ""
    added += f", {run.left_out:,} of the parent's left out" if run.left_out else ""
    return f"{run.images:,} ({added}); {run.train:,} train, {run.validation:,} validation; {run.classes} classes"


def _changes(run: Generation) -> str:
    said = [str(change) for change in run.changes[:MOST_CHANGES]]
    if run.new_classes and run.start:
        said.insert(0, f"+{len(run.new_classes)} classes ({', '.join(run.new_classes[:MOST_CHANGES])})")
    if run.renamed:
        said.insert(0, f"renamed {describe_renames(run.renamed)}")
    if len(run.changes) > MOST_CHANGES:
        said.append(f"and {len(run.changes) - MOST_CHANGES:,} more")
    return "; ".join(said)


def _result(run: Generation) -> str:
    before, after = run.scores["before"] or {}, run.scores["after"] or {}
    names = [name for name in ("all", "old", "new") if (after.get(name) or before.get(name) or {}).get("images")]
    if "old" not in names or "new" not in names:
        names = names[:1]
    return ", ".join(f"{name} {_from_to(before.get(name), after.get(name))}" for name in names)


def _trained(run: Generation) -> str:
    finished = run.status in {"accepted", "rejected"}
    of = "" if finished else f" of {run.planned:,}"
    at = f", step {run.step:,}" if run.step is not None else ""
    rate = "" if run.rate is None else f", rate {run.rate:g}"
    mixed = f", averaged with {in_percent(run.average)} of the parent's weights" if run.average else ""
    return f"{run.epochs:,}{of} epoch{'' if run.epochs == 1 and finished else 's'}{at}{rate}{mixed}"


def _from_to(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> str:
    values = [each["accuracy"] for each in (before, after) if each and each.get("accuracy") is not None]
    return " -> ".join(percent(value) for value in values)


def percent(value: float | None) -> str:
    """Formats a share from 0 to 1."""
    return "-" if value is None else f"{100 * value:.1f} %"


COLUMNS = ("run", "status", "created", "images", "added", "all", "old", "new", "rate", "export")
LOST = frozenset({"gone", "replaced"})
"""States of exports that are no longer there."""
SPARE = ("rate", "created", "export", "added", "images", "old", "new")
"""Columns that are left out first where the terminal is narrow."""


def _table(rows: list[Row], width: int) -> list[str]:
    """Returns one line per run, with as many columns as fit."""
    cells = [dict(zip(COLUMNS, COLUMNS, strict=True)), *(_cells(row) for row in rows)]
    widths = {name: max(len(row.get(name, "")) for row in cells) for name in COLUMNS}
    kept = [name for name in COLUMNS if widths[name]]
    for name in SPARE:
        if sum(widths[each] + 2 for each in kept) - 2 > width and name in kept:
            kept.remove(name)
    lines = []
    for row in cells:
        left = [
            f"{row.get(name, ''):>{widths[name]}}" if name in NUMBERS else f"{row.get(name, ''):<{widths[name]}}"
            for name in kept
        ]
        lines.append("  ".join(left).rstrip())
    return lines


NUMBERS = frozenset({"images", "added", "all", "old", "new", "rate"})


def _cells(row: Row) -> dict[str, str]:
    node = row.node
    if not isinstance(node, Generation):
        head, _ = _words(node)
        name, _, said = head.partition("  ")
        return {"run": f"{row.lead}{name}", "status": said.split(",")[0]}
    return {
        "run": f"{row.lead}{MARKS.get(node.status, '?')} {public(node.path)}",
        "status": node.status,
        "created": node.created.replace("T", " ")[:16],
        "images": f"{node.images:,}",
        "added": f"+{node.added:,}",
        "all": percent(node.accuracy),
        "old": percent(node.old),
        "new": percent(node.new),
        "rate": "-" if node.rate is None else f"{node.rate:g}",
        "export": _newest_first([Path(each.path).name for each in node.versions if each.state not in LOST]),
    }
