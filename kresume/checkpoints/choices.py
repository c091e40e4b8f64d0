"""Which layers were trained, told from shapes alone: an answer only where there is exactly one.

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
        shapes: of each.
        can_train: False for statistics and states of seed generators.
    """

    shapes: tuple[Shape, ...]
    can_train: bool


def choose(items: Sequence[Item], trained: Sequence[Shape], others: Sequence[Shape] | None = None) -> list[bool] | None:
    """Finds the items that were trained.

    Args:
        items: of a model, in its order.
        trained: shapes of what was trained, in that order.
        others: shapes of all the rest, in that order; None where they are not known.

    Returns:
        For each item whether it was trained; None if no choice fits, or more than one.
    """
    wanted, rest = list(trained), None if others is None else list(others)
    before = [0]
    for item in items:
        before.append(before[-1] + len(item.shapes))

    def fits(listed: list[Shape], begin: int, item: Item) -> bool:
        return listed[begin : begin + len(item.shapes)] == list(item.shapes)

    @cache
    def ways(index: int, begin: int) -> int:
        """How many choices among the items from `index` on fit when `begin` shapes were used; 2 stands for more."""
        if index == len(items):
            return int(begin == len(wanted) and (rest is None or before[-1] - begin == len(rest)))
        item, count = items[index], 0
        if item.can_train and fits(wanted, begin, item):
            count += ways(index + 1, begin + len(item.shapes))
        if rest is None or fits(rest, before[index] - begin, item):
            count += ways(index + 1, begin)
        return min(2, count)

    for index in reversed(range(len(items))):  # from the end: the recursion stays shallow
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
