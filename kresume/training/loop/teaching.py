"""Lets the parent teach a run while it trains.

with parent_teaches(model, run.record.teaching, read_teacher(run), loss.head, config) as prepared:
    model.fit(prepared(dataset))
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from kresume import runs
from kresume.backend.second_model import SecondModel
from kresume.checkpoints import sealed_arrays
from kresume.models.distill import build_teacher, taught
from kresume.options.given import code_of, given
from kresume.options.table import TrainConfig
from kresume.tasks.task import Head
from kresume.training.plan.teaching import Teacher
from kresume.values.teaching import Teaching


def read_teacher(run: runs.Run) -> Teacher | None:
    """Reads the teacher of an unfinished run; None if it has none.

    Raises:
        RunError: a file is damaged or gone.
    """
    if run.record.teaching is None:
        return None
    return Teacher(runs.read_sealed(run.path / runs.TEACHER_ARCHITECTURE), sealed_arrays.read(run.path / runs.TEACHER))


@contextmanager
def parent_teaches(
    model: Any, teaching: Teaching | None, teacher: Teacher | None, head: Head, config: TrainConfig
) -> Iterator[Callable[[Any], Any]]:
    """Adds the distance to the parent's answers to the loss during a block, for `--distill`.

    Args:
        model: compiled and built.
        teaching: what is compared; None if the parent does not teach.
        teacher: the parent as it predicts.
        head: how the model answers.
        config: the run's options.

    Yields:
        A function that prepares the run's dataset for `fit`.
    """
    if teaching is None or teacher is None:
        yield lambda dataset: dataset
        return
    built = build_teacher(teacher.architecture, teacher.arrays, code_of(given(config)), bool(config.trust))
    with taught(model, SecondModel(built), teaching, head) as prepared:
        yield prepared


def forget_teacher(run: runs.Run) -> None:
    """Removes the teacher of a finished run: only training needs it."""
    for name in (runs.TEACHER, runs.TEACHER_ARCHITECTURE):
        (run.path / name).unlink(missing_ok=True)
