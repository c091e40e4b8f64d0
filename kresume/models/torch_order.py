"""Recovers the order of a state dict whose file stores none.

    in_order(modules, units, fits)       # the one order in which every module fits its unit, or None

safetensors, for example, sorts its names, so `head` comes before `stem`. Modules under one name stay together, and
numbered ones (`blocks.0`, `conv1`, `ln_2`) keep the order of their numbers. The remaining orders are tried until every
module fits its unit. If several orders fit, none is used.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from kresume.models.torch_units import Module, Unit

MOST_TRIES = 100_000


def in_order(modules: Sequence[Module], units: Sequence[Unit], fits: set[tuple[int, int]]) -> list[Module] | None:
    """Returns the only order in which the modules fit the units one by one.

    Args:
        modules: as the file sorts them.
        units: in the model's order, equally many.
        fits: `(id(module), id(unit))` of every pair that fits.

    Returns:
        None if there is no such order, or several.
    """
    if len(modules) != len(units):
        return None
    tries = 0

    def orders_of(group: list[tuple[list[str], Module]], start: int) -> Iterator[list[Module]]:
        """Yields the orders of modules, given as remaining names, that fit from `start`."""
        nonlocal tries
        tries += 1
        if tries > MOST_TRIES:
            return
        if len(group) == 1 and len(group[0][0]) <= 1:
            if (id(group[0][1]), id(units[start])) in fits:
                yield [group[0][1]]
            return
        children: dict[str, list[tuple[list[str], Module]]] = {}
        for parts, module in group:
            children.setdefault(parts[0] if parts else "", []).append((parts[1:], module))
        yield from orders_of_children(children, start)

    def orders_of_children(children: dict[str, list[tuple[list[str], Module]]], start: int) -> Iterator[list[Module]]:
        if not children:
            yield []
            return
        for name in _may_come_first(list(children)):
            others = {other: group for other, group in children.items() if other != name}
            for first in orders_of(children[name], start):
                for rest in orders_of_children(others, start + len(first)):
                    yield [*first, *rest]

    found: list[list[Module]] = []
    for order in orders_of([(module.name.split("."), module) for module in modules], 0):
        found.append(order)
        if len(found) > 1:
            return None
    return found[0] if found and tries <= MOST_TRIES else None


def _may_come_first(names: Sequence[str]) -> list[str]:
    """Returns siblings without a number, and the lowest of each numbered series."""
    lowest: dict[str, tuple[int, str]] = {}
    for name in names:
        stem, number = re.fullmatch(r"(.*?)(\d*)", name).groups()  # type: ignore[union-attr]  # it always matches
        key = stem if number else f"{stem}."
        rank = int(number or 0)
        if key not in lowest or rank < lowest[key][0]:
            lowest[key] = (rank, name)
    return [name for _, name in lowest.values()]
