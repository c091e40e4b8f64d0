"""Counts the iterators that anybody makes of the data of `fit`, and makes them again after a restart.

    draws = Draws([x, validation], first=0)     # when fit begins
    record = draws.record()                     # for a backup
    draws.continue_from(record, within=True)    # in another process, before the training makes its iterator
    draws.catch_up()                            # behind that
    draws.resume()                              # once the first batch is drawn

A `shuffle` of tf.data with a seed gives each iterator the next order, whoever makes it. `EarlierEpochs` and
`EarlierValidations` make those that Keras had made. A callback may read the same data, too, with `evaluate` or `take(1)`. So
the class of tf.data counts while a `fit` lasts. Where TensorFlow itself makes more of them, `seed_states` tells what was drawn.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

from kresume.drop_in import caches, seed_states

_made: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
"""The number of iterators of each `shuffle` that is watched."""


_lasting: weakref.WeakSet[Draws] = weakref.WeakSet()
"""The counts of each `fit` that lasts, or that raised and whose caller may still hold it."""
PLAIN = "plain"
"""Name of the method that counting wraps, on the method that counts."""


class Draws:
    """Counts for one `fit`.

    Args:
        data: the training data and the validation data; others than those of tf.data are not counted.
        first: the epoch at which the training begins: counts of another one are not continued.

    Attributes:
        unknown: True if the data draw in a way that nobody can count.
        are_late: True if not all draw as an iterator is made, but some as it is drawn from.
    """

    def __init__(self, data: Sequence[Any], first: int) -> None:
        self._shuffles: list[Any] = []
        for each in (shuffle for part in data for shuffle in caches.shuffles(part)):
            if not any(each is known for known in self._shuffles):
                self._shuffles.append(each)
                _made.setdefault(each, 0)
        if self._shuffles:
            _lasting.add(self)
            _count_all()
        states = seed_states.of(data)
        self.unknown, self._states = states is None, states or []
        self.are_late = bool(self._states)
        self._first, self._base = first, [_made[each] for each in self._shuffles]
        self._pass: dict[str, list[int]] | None = None
        self._rest: tuple[Sequence[int], Sequence[int]] | None = None
        self._later: Sequence[int] = ()
        self.between()

    def _now(self) -> list[int]:
        return [_made[each] - base for each, base in zip(self._shuffles, self._base, strict=True)]

    def _drawn(self) -> list[int]:
        return [state.read() for state in self._states]

    def ended(self) -> None:
        """Ends the counting with its `fit`, unless another one lasts."""
        _lasting.discard(self)
        dataset = sys.modules["tensorflow"].data.Dataset if self._shuffles else None
        if dataset is not None and not _lasting and hasattr(dataset.__iter__, PLAIN):
            dataset.__iter__ = getattr(dataset.__iter__, PLAIN)

    def between(self) -> None:
        """Remembers the counts between two epochs, before callbacks hear that the next one begins."""
        self._before, self._drawn_before = self._now(), self._drawn()

    def before_pass(self) -> None:
        """Remembers the counts before Keras makes the iterator that it draws several epochs from."""
        if self._states:
            self._pass = {"made": self._now(), "drawn": self._drawn()}

    def record(self) -> dict[str, Any]:
        """Returns the counts as JSON: before the epoch that runs, now, and before `before_pass`."""
        return {
            "first": self._first,
            "before": self._before,
            "now": self._now(),
            "drawn": self._drawn_before,
            "pass": self._pass,
        }

    def continue_from(self, record: Mapping[str, Any] | None, within: bool, over: bool = False) -> None:
        """Brings the data to where they were before the epoch of a backup.

        Args:
            record: of the backup; None in one of an earlier version.
            within: True if the epoch was interrupted: it makes the training's iterator itself, `resume` those after it.
            over: True if the training goes on in an iterator that lasts over epochs, and makes it itself.
        """
        self._rest = None
        if record and record["first"] == self._first and len(record["now"]) == len(self._shuffles):
            made, later = record["before" if within else "now"], record["now"] if within else ()
            if over:
                self._rest = made, later
                self._jump(record.get("pass") or {"made": (), "drawn": ()})
            else:
                self._later = later
                if not self._jump({"made": made, "drawn": record.get("drawn", ())}):
                    self._reach(made)
        self.between()

    def catch_up(self) -> None:
        """Makes the iterators of others that were made before the epoch, where `over` was given."""
        if self._rest is not None:
            made, self._later = self._rest
            self._reach(made)
            self._rest = None
            self.between()

    def resume(self) -> None:
        """Makes those that were made within the interrupted epoch; called when the training has its own."""
        if self._later:
            self._reach(self._later)
            self._later = ()

    def _jump(self, counts: Mapping[str, Sequence[int]]) -> bool:
        """Sets the data to counts of a backup; returns False if it has none of these data."""
        if not self._states or len(counts["drawn"]) != len(self._states):
            return False
        for state, drawn in zip(self._states, counts["drawn"], strict=True):
            state.set(drawn)
        made = zip(self._shuffles, counts["made"], strict=True)
        self._base = [_made[shuffle] - count for shuffle, count in made]
        return True

    def _reach(self, counts: Sequence[int]) -> None:
        for index, shuffle in enumerate(self._shuffles):  # the last step first: it makes one of those before it
            while self._now()[index] < counts[index]:
                iter(shuffle)


def _count_all() -> None:
    """Lets the class of all datasets count."""
    dataset = sys.modules["tensorflow"].data.Dataset
    if hasattr(dataset.__iter__, PLAIN):
        return
    make = dataset.__iter__

    def counted(self: Any) -> Any:
        for shuffle in caches.shuffles(self):
            if shuffle in _made:
                _made[shuffle] += 1
        return make(self)

    setattr(counted, PLAIN, make)
    dataset.__iter__ = counted
