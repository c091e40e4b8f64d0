"""`kresume inspect`: what a checkpoint holds, without building a model.

print(describe(read_checkpoint("model.keras")))
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kresume.checkpoints.state import TrainState

FEW = 40


@dataclass(frozen=True)
class Inspection:
    """What a checkpoint says of itself.

    Attributes:
        path: as given.
        format: the reader's name.
        writer: who wrote it.
        written: when, ISO 8601.
        step: optimizer updates done, None if unknown.
        optimizer: its class, None if unnamed or absent.
        optimizer_variables: how many arrays of it are stored.
        rate: the learning rate: value, where it comes from, the schedule's class.
        parameters: numbers in arrays that are not the optimizer's, metrics' or callbacks'.
        variables: (name, type, shape) of every array.
        classes: names of the outputs, None if unknown.
        pixels: what the model eats, None if unknown.
        architecture: whether it holds one.
        missing: what a resume will have to be told, and how.
    """

    path: str
    format: str
    writer: str
    written: str
    step: int | None
    optimizer: str | None
    optimizer_variables: int
    rate: Mapping[str, Any] | None
    parameters: int
    variables: tuple[tuple[str, str, tuple[int, ...]], ...]
    classes: tuple[str, ...] | None
    pixels: str | None
    architecture: bool
    missing: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            **vars(self),
            "variables": [
                {"name": name, "dtype": dtype, "shape": list(shape)} for name, dtype, shape in self.variables
            ],
            "classes": list(self.classes) if self.classes is not None else None,
            "missing": list(self.missing),
        }

    def __str__(self) -> str:
        rate = "unknown"
        if self.rate is not None:
            schedule = f", of a {self.rate['schedule']}" if self.rate["schedule"] else ""
            rate = f"{self.rate['value']:g} ({self.rate['origin']}{schedule})"
        optimizer = f"{self.optimizer or 'unnamed'}, {self.optimizer_variables} variables"
        lines = [
            f"path        {self.path}",
            f"format      {self.format}, written by {self.writer or 'unknown'}{f' at {self.written}' if self.written else ''}",
            f"step        {'unknown' if self.step is None else f'{self.step:,}'}",
            f"optimizer   {optimizer if self.optimizer_variables else 'no state'}",
            f"rate        {rate}",
            f"model       {self.parameters:,} parameters, architecture {'included' if self.architecture else 'not included'}",
            f"classes     {', '.join(self.classes) if self.classes else 'unknown'}",
            f"pixels      {self.pixels or 'unknown'}",
        ]
        width = max((len(name) for name, _, _ in self.variables[:FEW]), default=0)
        lines += [f"  {name:<{width}}  {dtype:<8} {shape}" for name, dtype, shape in self.variables[:FEW]]
        if len(self.variables) > FEW:
            lines.append(f"  … and {len(self.variables) - FEW:,} more (--json lists all)")
        lines += [f"missing     {text}" for text in self.missing]
        return "\n".join(lines)


def describe(state: TrainState) -> Inspection:
    """Describes a checkpoint that was read."""
    missing = []
    if state.architecture is None:
        missing.append("the architecture: --model FILE.py:FUNCTION")
    if state.optimizer is None:
        missing.append("the optimizer's state: --optimizer NAME:reset")
    elif state.optimizer.class_name is None:
        missing.append("the optimizer's name: --optimizer NAME, unless --model compiles the model")
    if state.card is None:
        missing.append("the classes: sorted folders of --data, or --classes a,b,c")
        missing.append("the images it was trained on: --data")
    elif state.format != "run":
        missing.append("the images it was trained on: --data")
    return Inspection(
        path=state.source,
        format=state.format,
        writer=state.writer,
        written=state.written,
        step=state.step,
        optimizer=state.optimizer.class_name if state.optimizer else None,
        optimizer_variables=state.optimizer.variables if state.optimizer else 0,
        rate=_rate(state),
        parameters=sum(array.size for name, array in state.arrays.items() if _is_weight(name)),
        variables=tuple((name, str(array.dtype), tuple(array.shape)) for name, array in state.arrays.items()),
        classes=state.card.classes if state.card else None,
        pixels=state.card.pixels if state.card else None,
        architecture=state.architecture is not None,
        missing=tuple(missing),
    )


def _is_weight(name: str) -> bool:
    parts = name.split("/")
    if "_trainable_variables" in parts:
        return True  # TensorFlow may file a weight under the optimizer that trains it
    return not {"optimizer", "metrics", "callbacks", "save_counter"} & set(parts)


def _rate(state: TrainState) -> dict[str, Any] | None:
    if state.rate is None:
        return None
    schedule = state.rate.schedule
    return {
        "value": state.rate.value,
        "origin": state.rate.origin,
        "schedule": str(schedule.get("class_name")) if schedule else None,
    }
