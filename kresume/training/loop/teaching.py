"""Lets the parent teach a run while it trains.

with parent_teaches(run, model, loss, config) as prepared:
    model.fit(prepared(dataset))
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from kresume import runs
from kresume.backend.second_model import SecondModel
from kresume.errors import RunError
from kresume.models.distill import build_teacher, taught
from kresume.models.losses import LossChoice
from kresume.options.given import code_of, given
from kresume.options.table import TrainConfig
from kresume.storage import atomic


@contextmanager
def parent_teaches(run: runs.Run, model: Any, loss: LossChoice, config: TrainConfig) -> Iterator[Callable[[Any], Any]]:
    """Adds the distance to the parent's answers to the loss during a block, for `--distill`.

    Args:
        run: holds its teacher.
        model: compiled and built.
        loss: how it answers.
        config: its options.

    Yields:
        A function that prepares the run's dataset for `fit`.

    Raises:
        RunError: a file of the teacher is damaged or gone.
    """
    teaching = run.record.teaching
    if teaching is None:
        yield lambda dataset: dataset
        return
    from safetensors import SafetensorError
    from safetensors.numpy import load

    file = run.path / runs.TEACHER
    try:
        arrays = load(file.read_bytes())
        architecture = atomic.read_json(run.path / runs.TEACHER_ARCHITECTURE)
    except (OSError, ValueError, SafetensorError) as error:
        raise RunError(f"{file} is damaged or gone ({error}): restore it from a copy of the run") from error
    teacher = build_teacher(architecture, arrays, code_of(given(config)), bool(config.trust))
    with taught(model, SecondModel(teacher), teaching, loss.head) as prepared:
        yield prepared


def forget_teacher(run: runs.Run) -> None:
    """Removes the teacher of a finished run: only training needs it."""
    for name in (runs.TEACHER, runs.TEACHER_ARCHITECTURE):
        (run.path / name).unlink(missing_ok=True)
