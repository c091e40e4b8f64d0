"""Says what a run forgot of its parent, and what nobody can know because no validation image shows it.

forgetting = forgetting_of(pair, added=("tulip",))
str(forgetting)     # "rose (-19.0 points, p = 0.012)"; "nothing by more than noise; no validation image is old"
forgetting.unknown  # "no validation image is old"; empty if old images and all classes were judged
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kresume.class_names import show_class
from kresume.evaluation.verdict import Pair, judge_classes, judge_origins

MOST_NAMED = 3
"""Classes that are named in a line."""


@dataclass(frozen=True)
class Forgetting:
    """Holds what a run forgot of its parent.

    Attributes:
        fell: on what it is worse by more than noise; None if nothing can be known.
        unknown: of what that cannot be known, and why; empty if of nothing.
    """

    fell: tuple[str, ...] | None
    unknown: str

    def __str__(self) -> str:
        if self.fell is None:
            return f"unknown: {self.unknown}"
        more = f" and {len(self.fell) - MOST_NAMED:,} more" if len(self.fell) > MOST_NAMED else ""
        words = f"{', '.join(self.fell[:MOST_NAMED])}{more}" if self.fell else "nothing by more than noise"
        return f"{words}; {self.unknown}" if self.unknown else words


def _shown(name: str) -> str:
    """Returns a class for a reader; `0 (-34.8 points)` alone reads as a number."""
    return f"class {name}" if name.isdecimal() else show_class(name)


def forgetting_of(pair: Pair, added: Sequence[str]) -> Forgetting:
    """Compares a run with its parent on old images and on each class that the parent knew.

    Args:
        pair: the answers of both to the same images.
        added: the classes that the run added.
    """
    origins, classes = judge_origins(pair.before, pair.after, pair.generation), judge_classes(pair.before, pair.after)
    known = [name for name in pair.after.classes if name not in added]
    unjudged = [name for name in known if name not in classes]
    if len(unjudged) == len(known):
        return Forgetting(None, "no validation image is of a class that the parent knew")
    worse = sorted((each for each in classes.items() if each[1].kind == "worse"), key=lambda each: each[1].difference)
    old = origins.get("old")
    fell = [f"old images ({old.facts})"] if old is not None and old.kind == "worse" else []
    unknown = [] if old is not None else ["no validation image is old"]
    if unjudged:
        rest = f" and {len(unjudged) - MOST_NAMED:,} more classes" if len(unjudged) > MOST_NAMED else ""
        unknown.append(f"no validation image of {', '.join(map(_shown, unjudged[:MOST_NAMED]))}{rest}")
    return Forgetting((*fell, *(f"{_shown(name)} ({each.facts})" for name, each in worse)), ", ".join(unknown))
