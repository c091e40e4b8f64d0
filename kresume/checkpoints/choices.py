"""Infers from shapes alone which layers were trained; answers only if one choice fits.

chosen = choose([Item(((4, 4), (4,)), True), ...], shapes)       # [True, False, ...], or None
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Item:
    """Variables that are trained together or not at all.

    Attributes:
        shapes: shape of each variable.
        can_train: False for statistics and seed generator states.
    """

    shapes: tuple[Shape, ...]
    can_train: bool


def choose(items: Sequence[Item], trained: Sequence[Shape], others: Sequence[Shape] | None = None) -> list[bool] | None:
    """Finds the items that were trained.

    Args:
        items: items of the model, in its order.
        trained: shapes of the trained variables, in that order.
        others: shapes of all other variables, in that order; None if unknown.

    Returns:
        For each item True if it was trained; None if no choice fits, or more than one.
    """
    wanted, rest = list(trained), None if others is None else list(others)
    before = [0]
    for item in items:
        before.append(before[-1] + len(item.shapes))

    def fits(listed: list[Shape], begin: int, item: Item) -> bool:
        return listed[begin : begin + len(item.shapes)] == list(item.shapes)

    @cache
    def ways(index: int, begin: int) -> int:
        """Counts the fitting choices for items from `index` on with `begin` shapes used.

        Returns at most 2, which means "more than one".
        """
        if index == len(items):
            return int(begin == len(wanted) and (rest is None or before[-1] - begin == len(rest)))
        item, count = items[index], 0
        if item.can_train and fits(wanted, begin, item):
            count += ways(index + 1, begin + len(item.shapes))
        if rest is None or fits(rest, before[index] - begin, item):
            count += ways(index + 1, begin)
        return min(2, count)

    for index in reversed(range(len(items))):  # from the end, so that the recursion stays shallow
        for begin in range(min(before[index], len(wanted)) + 1):
            ways(index, begin)
    if ways(0, 0) != 1:
        return None
    chosen: list[bool] = []
    begin = 0
    for index, item in enumerate(items):
        taken = item.can_train and fits(wanted, begin, item) and bool(ways(index + 1, begin + len(item.shapes)))
        chosen.append(taken)
        begin += len(item.shapes) if taken else 0
    return chosen
