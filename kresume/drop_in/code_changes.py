"""Describes how the model, the loss and the arguments of `fit` differ from those of a backup.

    message(before, now)     # ["differs from the start that made the backup: dropout: rate 0.1 -> 0.5. It takes effect ..."]

A script may have been edited while it was interrupted, and its weights still fit. The edit takes effect, and the training is
no longer the one that was interrupted. `script_record` makes what is compared; only what both sides have is.

Other code is an edit. Other values may also be drawn at each start without a seed, or read from elsewhere; if the files of
the code are the same, they certainly are.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from difflib import SequenceMatcher
from typing import Any, NamedTuple

from kresume.drop_in.code_digest import is_code
from kresume.drop_in.flat_values import KEYS, Flat
from kresume.drop_in.script_record import CALLBACKS, GRAPH, ONLY_IF, ORDER

MOST = 5
"""Number of changes that are named."""
LONGEST = 80
"""Characters of a value."""
NO_UPDATE = {"metrics", "weighted_metrics", "steps_per_execution", "validation_freq"}
"""Settings that change no update of the weights."""
LAST_DIGITS = {"jit_compile", "run_eagerly"}
"""Settings that change the last digits alone."""
NOISE, DIGITS = 4 * 2**-23, 6
"""Difference of two float32 numbers of size 1 that rounding makes, and most digits of a number that is written by hand."""
EDITED = "changed in the script since the backup"
DIFFERS = "differs from the start that made the backup"


def message(
    before: Mapping[str, Any] | None, now: Mapping[str, Any], *, layers: bool = True, finished: bool = False
) -> list[str]:
    """Returns a message for the user; none if nothing changed.

    Args:
        before: the record of the backup; None in backups of earlier versions, empty if it could not be made.
        now: the record of this `fit`.
        layers: False compares only the code of layers, losses, metrics and callbacks: training may have changed their values.
        finished: True if the training of the backup had ended, so that none was interrupted.
    """
    if not before or not now:
        return []
    layers = layers and not before.get("used")  # an earlier fit had changed what the backup records
    same_files = before.get("files") is not None and before["files"] == now.get("files")
    changes = list(dict.fromkeys(_changes(before, now, layers=layers, callbacks=not same_files)))
    if not changes:
        return []
    more = f" and {len(changes) - MOST} more" if len(changes) > MOST else ""
    edited = not same_files and all(change.is_edit for change in changes)
    named = ", ".join(change.text for change in changes[:MOST])
    effect = _effect({change.root for change in changes}, _way_back(edited, same_files), finished=finished)
    return [f"{EDITED if edited else DIFFERS}: {named}{more}. {effect}"]


class Change(NamedTuple):
    """Holds a difference.

    Attributes:
        text: for the user.
        root: the setting that it belongs to, such as `loss`.
        is_edit: True for code and layers, which a script seldom draws.
    """

    text: str
    root: str
    is_edit: bool


def _changes(before: Mapping[str, Any], now: Mapping[str, Any], *, layers: bool, callbacks: bool) -> Iterator[Change]:
    """Yields the differences of the layers, of `compile`, of `fit` and of callbacks.

    Values of callbacks are not told where no file was edited: names of runs, numbers of processes and the like.
    """
    yield from (change for change in _of_layers(before, now) if layers or change.is_edit)
    for part in ("compile", "fit", *([CALLBACKS] if callbacks else [])):
        for path, old, new in _changed(before.get(part, {}), now.get(part, {})):
            if layers or part == "fit" or "." not in path or is_code(path):  # others may be of an object that counted
                yield Change(_text(path, old, new), re.split(r"[.\[ ]", path)[0], is_code(path))


def _way_back(edited: bool, same_files: bool) -> str:
    """Returns how to continue the interrupted training."""
    if edited:
        return " (to continue that one, change it back)"
    if same_files:
        return ". Your code is the same: it draws or reads this at each start, and a fixed seed keeps what it draws"
    return " (to continue that one, undo what you changed; a fixed seed keeps what the script draws at each start)"


def _effect(roots: set[str], way_back: str, *, finished: bool) -> str:
    """Returns what the differences of settings mean for the training."""
    if finished:
        return "It takes effect from this step on"
    if CALLBACKS in roots and roots <= NO_UPDATE | {CALLBACKS}:
        return (
            "It takes effect from this step on; the weights train as before, unless the callback acts on the training"
        )
    if roots <= NO_UPDATE:
        return "It takes effect from this step on; the weights train as before, unless a callback decides by it"
    if roots <= NO_UPDATE | LAST_DIGITS | {CALLBACKS}:
        return "It takes effect from this step on; the last digits of results may differ"
    return f"It takes effect from this step on, so this is no longer the training that was interrupted{way_back}"


def other_metrics(before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> bool:
    """Tests whether `compile` was given other metrics, so that the averages of the backup are not theirs."""
    if not before or not now:
        return False
    old, new = before["compile"], now["compile"]
    return any(path.startswith(("metrics", "weighted_metrics")) for path, _, _ in _changed(old, new))


def _of_layers(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[Change]:
    """Yields layers that were added and removed, then changed settings, equal ones as one."""
    old, new = (
        [(str(name), str(kind), record["settings"][index]) for name, kind, index in record["layers"]]
        for record in (before, now)
    )
    pairs, removed, added = _paired(old, new)
    for text in (*_counted("layers removed:", removed), *_counted("layers added:", added)):
        yield Change(text, "layers", True)
    found: dict[tuple[str, bool], list[str]] = {}
    for (_, _, was), (name, kind, is_now) in pairs:
        for path, one, other in _changed(was, is_now):
            found.setdefault((_text(path, one, other), is_code(path)), []).append(name or kind)
    for (text, is_edit), names in found.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        yield Change(f"{names[0]}{more}: {text}", "layers", is_edit)


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
    """Yields path, old and new value of settings that both have; no parts of an object that changed.

    A value that several functions use is one difference.
    """
    differ = [path for path in new if path in old and not _same(path, old[path], new[path], _size(path, old))]
    seen = set()
    for path in differ:
        if any(path != other and path.startswith((f"{other}.", f"{other}[")) for other in differ):
            continue
        if isinstance(new[path], list) and path.endswith(KEYS):
            if not any(map(is_code, differ)):  # other code may name other keys of the same dictionary
                yield from _other_keys(path.removesuffix(KEYS), old, new)
            continue
        shown = (path.rpartition(".")[2], _shown(path, old, new), _shown(path, new, old))
        same = (old[path], new[path]) if is_code(path) else shown
        if str(same) not in seen:
            yield path, *shown[1:]
        seen.add(str(same))


def _other_keys(path: str, old: Flat, new: Flat) -> Iterator[tuple[str, str, str]]:
    """Yields the keys that only one of two dictionaries has."""
    for key in sorted({*old[f"{path}{KEYS}"]} ^ {*new[f"{path}{KEYS}"]}):
        part = f"{path}[{key}]"
        was, is_now = ("none" if key not in flat[f"{path}{KEYS}"] else _shown(part, flat, {}) for flat in (old, new))
        yield part, was, is_now


def _size(path: str, flat: Flat) -> float:
    """Returns the size of the numbers that a value was computed from; for a mean it is their spread."""
    value = flat.get(f"{path.removesuffix('.mean')}.std", 1.0)
    if isinstance(flat[path], list):
        value = max((abs(each) for each in flat[path] if isinstance(each, (int, float))), default=1.0)
    return float(value) if isinstance(value, (int, float)) else 1.0


def _same(path: str, old: Any, new: Any, size: float = 1.0) -> bool:
    if is_code(path) and isinstance(old, str) and isinstance(new, str) and ":" in old and ":" in new:
        return old.partition(":")[0] != new.partition(":")[0] or old == new  # of another compiler: cannot be compared
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and all(_same("", one, other, size) for one, other in zip(old, new, strict=True))
    if isinstance(old, (int, float)) and isinstance(new, (int, float)):
        by_hand = all(float(f"{each:.{DIGITS}g}") == float(f"{each:.{DIGITS + 1}g}") for each in (old, new))
        return math.isclose(old, new, rel_tol=1e-5, abs_tol=0.0 if by_hand else NOISE * size)
    return bool(old == new)


def _plain(path: str) -> str:
    """Returns a path without its conditions."""
    return re.sub(rf"{re.escape(ONLY_IF)}[^.\[]*", "", path)


def _text(path: str, old: str, new: str) -> str:
    path = _plain(path)
    if path.endswith(KEYS):
        return f"number of entries of {path.removesuffix(KEYS)} {old} -> {new}"
    if path in {GRAPH, ORDER}:
        return path
    if is_code(path):
        return f"the code of {path.removesuffix('.code')}"
    return f"{path} {old} -> {new}"


def _shown(path: str, flat: Flat, other: Flat) -> str:
    """Returns a value as text; an object in place of none with its settings."""
    value = flat.get(path, "given")
    if isinstance(value, float):
        return f"{value:.6g}"
    parts = {
        name: part for name, part in flat.items() if name.startswith((f"{path}.", f"{path}[")) and KEYS not in name
    }
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
