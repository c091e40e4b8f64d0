"""Describes how the optimizer that a script compiles differs from the one of its backup.

    describe(before, now)       # ["optimizer: beta_1 0.9 -> 0.8"]

Its state is restored into the new one, whose settings take effect.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

RATE = "learning_rate"
MOST = 4
"""Number of settings that are named."""


def describe(before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> list[str]:
    """Returns a message for the user; none if nothing changed.

    A changed rate that is a number has a message of its own.

    Args:
        before: the serialized optimizer of the backup; None in backups of earlier versions, empty if it cannot be serialized.
        now: the one that `compile` made; empty likewise.
    """
    if not before or not now:
        return []
    old, new = dict(_settings(before)), dict(_settings(now))
    if isinstance(old.get(RATE), float) and isinstance(new.get(RATE), float):
        del old[RATE]
    names = [name for name in {**old, **new} if name in new and name in old and old[name] != new[name]]
    changed = [f"{name} {_shown(old[name])} -> {_shown(new[name])}" for name in names]
    rates = [each.get(RATE, each.get(f"{RATE}.class")) for each in (old, new)]
    if None not in rates and (RATE in old) != (RATE in new):
        changed.insert(0, f"{RATE} {_shown(rates[0])} -> {_shown(rates[1])}")
    more = f" and {len(changed) - MOST} more" if len(changed) > MOST else ""
    return [f"optimizer: {', '.join(changed[:MOST])}{more}"] if changed else []


def _settings(entry: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the class and the settings, those of a schedule or of a wrapped optimizer by their path."""
    yield f"{prefix}class", entry.get("class_name")
    for name, value in (entry.get("config") or {}).items():
        if isinstance(value, Mapping) and "class_name" in value:
            yield from _settings(value, f"{prefix}{name}.")
        elif name not in {"name", "build_config"}:
            yield f"{prefix}{name}", value


def _shown(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
