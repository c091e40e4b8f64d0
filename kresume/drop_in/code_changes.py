"""Describes how the model, the loss and the arguments of `fit` differ from those of a backup.

    message(before, now)     # "changed in the script since the backup: dropout: rate 0.1 -> 0.5. It takes effect ..."

A script may have been edited while it was interrupted, and its weights still fit. The edit takes effect, and the training is
no longer the one that was interrupted. `script_record` makes what is compared; only what both sides have is.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from difflib import SequenceMatcher
from typing import Any

from kresume.drop_in.flat_values import Flat
from kresume.drop_in.script_record import GRAPH, ONLY_IF, ORDER

MOST = 5
"""Number of changes that are named."""
LONGEST = 80
"""Characters of a value."""
NO_UPDATE = {"metrics", "weighted_metrics", "steps_per_execution", "validation_freq"}
"""Settings that change no update of the weights."""
LAST_DIGITS = {"jit_compile", "run_eagerly"}
"""Settings that change the last digits alone."""


def message(
    before: Mapping[str, Any] | None, now: Mapping[str, Any], *, layers: bool = True, finished: bool = False
) -> list[str]:
    """Returns a message for the user; none if nothing changed.

    Args:
        before: the record of the backup; None in backups of earlier versions, empty if it could not be made.
        now: the record of this `fit`.
        layers: False does not compare the layers and attributes of losses and metrics, which training may have changed.
        finished: True if the training of the backup had ended, so that none was interrupted.
    """
    if not before or not now:
        return []
    layers = layers and not before.get("used")  # an earlier fit had changed what the backup records
    changes = list(_of_layers(before, now)) if layers else []
    roots = {"layers"} if changes else set()
    for part in ("compile", "fit"):
        for path, old, new in _changed(before[part], now[part]):
            if not layers and part == "compile" and "." in path:
                continue  # an object that may have counted its calls
            changes.append(_text(path, old, new))
            roots.add(re.split(r"[.\[ ]", path)[0])
    if not changes:
        return []
    more = f" and {len(changes) - MOST} more" if len(changes) > MOST else ""
    if finished:
        effect = "It takes effect from this step on"
    elif roots <= NO_UPDATE:
        effect = "It takes effect from this step on; the weights train as before, unless a callback decides by it"
    elif roots <= NO_UPDATE | LAST_DIGITS:
        effect = "It takes effect from this step on; the last digits of results may differ"
    else:
        effect = (
            "It takes effect from this step on, so this is no longer the training that was interrupted (to continue that one, "
            "change it back)"
        )
    return [f"changed in the script since the backup: {', '.join(changes[:MOST])}{more}. {effect}"]


def other_metrics(before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> bool:
    """Tests whether `compile` was given other metrics, so that the averages of the backup are not theirs."""
    if not before or not now:
        return False
    old, new = before["compile"], now["compile"]
    return any(path.startswith(("metrics", "weighted_metrics")) for path, _, _ in _changed(old, new))


def _of_layers(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Yields layers that were added and removed, then changed settings, equal ones as one."""
    old, new = (
        [(str(name), str(kind), record["settings"][index]) for name, kind, index in record["layers"]]
        for record in (before, now)
    )
    pairs, removed, added = _paired(old, new)
    yield from _counted("layers removed:", removed)
    yield from _counted("layers added:", added)
    found: dict[str, list[str]] = {}
    for (_, _, was), (name, kind, is_now) in pairs:
        for path, one, other in _changed(was, is_now):
            found.setdefault(_text(path, one, other), []).append(name or kind)
    for text, names in found.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        yield f"{names[0]}{more}: {text}"


Layer = tuple[str, str, Flat]


def _paired(old: list[Layer], new: list[Layer]) -> tuple[list[tuple[Layer, Layer]], list[str], list[str]]:
    """Pairs the layers of two models in order.

    Returns:
        Pairs, and the classes of the layers that only the first or only the second one has.
    """
    if [kind for _, kind, _ in old] == [kind for _, kind, _ in new]:
        return list(zip(old, new, strict=True)), [], []
    pairs: list[tuple[Layer, Layer]] = []
    removed: list[str] = []
    added: list[str] = []

    def match(first: list[Layer], second: list[Layer], *, settings: bool) -> None:
        one, other = ([f"{kind} {flat if settings else ''}" for _, kind, flat in each] for each in (first, second))
        for tag, a, b, c, d in SequenceMatcher(None, one, other, autojunk=False).get_opcodes():
            if tag == "equal":
                pairs.extend(zip(first[a:b], second[c:d], strict=True))
            elif settings:
                match(first[a:b], second[c:d], settings=False)
            else:
                removed.extend(kind for _, kind, _ in first[a:b])
                added.extend(kind for _, kind, _ in second[c:d])

    match(old, new, settings=True)
    both = Counter(removed) & Counter(added)  # only their order differs
    return pairs, list((Counter(removed) - both).elements()), list((Counter(added) - both).elements())


def _counted(what: str, kinds: list[str]) -> Iterator[str]:
    if kinds:
        counts = [f"{count} {kind}" if count > 1 else kind for kind, count in Counter(kinds).items()]
        yield f"{what} {', '.join(counts)}"


def _changed(old: Flat, new: Flat) -> Iterator[tuple[str, str, str]]:
    """Yields path, old and new value of settings that both have; no parts of an object that changed."""
    differ = [path for path in new if path in old and not _same(path, old[path], new[path])]
    for path in differ:
        if not any(path != other and path.startswith((f"{other}.", f"{other}[")) for other in differ):
            yield path, _shown(path, old, new), _shown(path, new, old)


def _same(path: str, old: Any, new: Any) -> bool:
    if path.endswith(".code") and isinstance(old, str) and isinstance(new, str) and ":" in old and ":" in new:
        return old.partition(":")[0] != new.partition(":")[0] or old == new  # of another compiler: cannot be compared
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and all(_same("", one, other) for one, other in zip(old, new, strict=True))
    if isinstance(old, (int, float)) and isinstance(new, (int, float)):
        return math.isclose(old, new, rel_tol=1e-5, abs_tol=1e-9)
    return bool(old == new)


def _text(path: str, old: str, new: str) -> str:
    path = re.sub(rf"{re.escape(ONLY_IF)}[^.]*", "", path)
    if path in {GRAPH, ORDER}:
        return path
    if path.endswith(".code"):
        return f"the code of {path.removesuffix('.code')}"
    return f"{path} {old} -> {new}"


def _shown(path: str, flat: Flat, other: Flat) -> str:
    """Returns a value as text; an object in place of none with its settings."""
    value = flat[path]
    if isinstance(value, float):
        return f"{value:.6g}"
    parts = {name: part for name, part in flat.items() if name.startswith((f"{path}.", f"{path}["))}
    if value in ("dict", "list"):
        inside = ", ".join(f"{name[len(path) :].strip('[]')}: {_shown(name, flat, other)}" for name in parts)
        return f"{{{inside}}}"[:LONGEST]
    own = [
        f"{name[len(path) + 1 :]}={_shown(name, flat, {})}"
        for name, part in parts.items()
        if name.startswith(f"{path}.") and name not in other and part is not None
        if "." not in name[len(path) + 1 :] and not name.endswith("code")
    ]
    text = "none" if value is None else str(value)
    return f"{text}({', '.join(own)})"[:LONGEST] if own and other.get(path) is None else text[:LONGEST]
