"""Implements `kresume inspect`: lists a checkpoint's content and what a resume still needs.

    print(describe(read_checkpoint("model.keras")))

No model is built. docs/checkpoint-formats.md describes the JSON form field by field.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from kresume.checkpoints.graph_nodes import models
from kresume.checkpoints.graph_optimizer import find_optimizers
from kresume.checkpoints.hub_classes import INSTALL, is_hubs, is_installed, needs_hub
from kresume.checkpoints.input_shape import describe_input
from kresume.checkpoints.layers import LayerRow, adapted_of, layer_table
from kresume.checkpoints.layouts import names_of, natural
from kresume.values.first_layers import of_architecture, pixels_of
from kresume.values.state import EARLIER_STEPS, TrainState, show_step

FEW = 40


@dataclass(frozen=True)
class Inspection:
    """The description of a checkpoint.

    Attributes:
        path: the path as given.
        format: the reader's name.
        writer: program that wrote the checkpoint.
        written: time of writing, ISO 8601.
        step: number of optimizer updates, None if unknown.
        optimizer: the optimizer's class, None if unnamed or absent.
        optimizer_variables: number of stored optimizer arrays.
        rate: the learning rate: value (of a schedule: that at its start or peak; None of a custom one), origin, the
            schedule's class.
        parameters: number of elements in all weights.
        layers: (name, ((role, shape), ...), parameters) in file order; empty if the names identify no layers.
        variables: (name, dtype, shape) of every array.
        classes: names of the outputs, None if unknown.
        pixels: pixel convention that the model expects, None if unknown.
        input: layout of the input image: colours, order of axes, size; None if unknown.
        architecture: True if the checkpoint holds the architecture.
        notes: other facts for the user.
        missing: information that a resume needs from the user, each with its option.
        earlier_steps: those of a run's parents, which `step` counts, too.
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
    layers: tuple[LayerRow, ...]
    variables: tuple[tuple[str, str, tuple[int, ...]], ...]
    classes: tuple[str, ...] | None
    pixels: str | None
    input: str | None
    architecture: bool
    notes: tuple[str, ...]
    missing: tuple[str, ...]
    earlier_steps: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Returns the JSON form."""
        return {
            **vars(self),
            "layers": [
                {
                    "name": row.name,
                    "arrays": [{"role": role, "shape": list(shape)} for role, shape in row.arrays],
                    "parameters": row.parameters,
                }
                for row in self.layers
            ],
            "variables": [
                {"name": name, "dtype": dtype, "shape": list(shape)} for name, dtype, shape in self.variables
            ],
            "classes": list(self.classes) if self.classes is not None else None,
            "notes": list(self.notes),
            "missing": list(self.missing),
        }

    def __str__(self) -> str:
        rate = "unknown"
        if self.rate is not None and self.rate["value"] is None:
            rate = f"a custom schedule, {self.rate['schedule']}, which does not say its peak"
        elif self.rate is not None:
            schedule = (
                f", at the start or peak of its schedule {self.rate['schedule']}" if self.rate["schedule"] else ""
            )
            rate = f"{self.rate['value']:g}{schedule} ({self.rate['origin']})"
        optimizer = f"{self.optimizer or 'unnamed'}, {self.optimizer_variables} variables"
        lines = [
            f"path        {self.path}",
            f"format      {self.format}, written by {self.writer or 'unknown'}{f' at {self.written}' if self.written else ''}",
            f"step        {'unknown' if self.step is None else show_step(self.step, self.earlier_steps)}",
            f"optimizer   {optimizer if self.optimizer_variables else 'no state'}",
            f"rate        {rate}",
            f"model       {self.parameters:,} parameters, architecture {'included' if self.architecture else 'not included'}",
            f"classes     {', '.join(self.classes) if self.classes else 'unknown'}",
            f"input       {self.input or 'unknown'}",
            f"pixels      {self.pixels or 'unknown: kresume train finds it on old images, or give --pixels NAME'}",
        ]
        lines += self._table()
        lines += [f"note        {text}" for text in self.notes]
        lines += [f"missing     {text}" for text in self.missing]
        return "\n".join(lines)

    def _table(self) -> list[str]:
        """Formats one line per layer, or per array if the names identify no layers."""
        if self.layers:
            shown = [(row.name, f"{row.parameters:,}", _shapes(row)) for row in self.layers]
        else:
            shown = [(name, dtype, str(shape)) for name, dtype, shape in self.variables]
        width = max((len(name) for name, _, _ in shown[:FEW]), default=0)
        middle = max((len(text) for _, text, _ in shown[:FEW]), default=0)
        align = ">" if self.layers else "<"
        lines = [f"  {name:<{width}}  {text:{align}{middle}}  {rest}" for name, text, rest in shown[:FEW]]
        if len(shown) > FEW:
            lines.append(f"  … and {len(shown) - FEW:,} more (--json lists all)")
        return lines


def _shapes(row: LayerRow) -> str:
    return ", ".join(f"{role} {shape}" for role, shape in row.arrays)


def describe(state: TrainState) -> Inspection:
    """Describes a checkpoint that was read."""
    return Inspection(
        path=state.source,
        format=state.format,
        writer=state.writer,
        written=state.written,
        step=state.step,
        optimizer=state.optimizer.class_name if state.optimizer else None,
        optimizer_variables=state.optimizer.variables if state.optimizer else 0,
        rate=_rate(state),
        parameters=sum(state.arrays[name].size for name in names_of(state).weights(state)),
        layers=layer_table(state),
        variables=tuple(
            (name, str(array.dtype), tuple(array.shape))
            for name, array in sorted(state.arrays.items(), key=lambda item: natural(item[0]))
        ),
        classes=state.card.classes if state.card else state.records.get("classes"),
        pixels=state.card.pixels
        if state.card
        else pixels_of(of_architecture(state.architecture, partial(adapted_of, state))),
        input=describe_input(state),
        architecture=state.architecture is not None,
        notes=(*state.records.get("notes", ()), *_models(state), *_outputs(state)),
        missing=tuple(_missing(state)),
        earlier_steps=int(state.records.get(EARLIER_STEPS) or 0),
    )


def _models(state: TrainState) -> Iterator[str]:
    """Names the copies of a model in an object graph."""
    names = models(state.graph, state.arrays, find_optimizers(state.graph))
    if names:
        yield (
            f"the file holds models of the same shapes ({', '.join(names)}): kresume train reads the one that the optimizer "
            "trains, without an optimizer the one with a usual name"
        )


def _outputs(state: TrainState) -> Iterator[str]:
    """Explains why a model with several outputs cannot be trained."""
    ends = ((state.architecture or {}).get("config") or {}).get("output_layers")
    if isinstance(ends, Mapping):
        names = [str(name) for name in ends]
    elif isinstance(ends, list) and len(ends) > 1 and all(isinstance(end, list) for end in ends):
        names = [str(end[0]) for end in ends]
    else:
        return
    if len(names) > 1:
        yield (
            f"the model has {len(names)} outputs ({', '.join(names)}), but kresume train supports one label per image: use "
            "kresume.BackupAndRestore in your own fit"
        )


def own_names(config: Any) -> set[str]:
    """Returns the user's own classes and functions in a serialized model or loss."""
    if isinstance(config, (list, tuple)):
        return {name for item in config for name in own_names(item)}
    if not isinstance(config, Mapping):
        return set()
    inside = {name for key, item in config.items() if key != "compile_config" for name in own_names(item)}
    name, module = config.get("class_name"), config.get("module")
    if not isinstance(name, str) or "registered_name" not in config:
        return inside
    registered = str(config["registered_name"] or "")
    if name == "function":
        return inside | {str(config.get("config"))}
    theirs = ">" in registered or module is None or not str(module).startswith(("keras", "builtins"))
    theirs = theirs and not is_hubs(config)
    return inside | ({registered.rpartition(">")[2] or name} if theirs and not name.startswith("__") else set())


def _missing(state: TrainState) -> Iterator[str]:
    """Yields each piece of information that a resume needs, with its option."""
    names = names_of(state)
    if state.architecture is None:
        skeleton = f" (a skeleton: kresume inspect {state.source} --write-model model.py)" if names.skeleton else ""
        yield f"the architecture: --model FILE.py:FUNCTION{skeleton}"
    if own := sorted(own_names(state.architecture)):
        yield f"the code of {', '.join(own)}: --import FILE.py"
    if needs_hub(state.architecture) and not is_installed():
        yield f"keras-hub, whose classes the architecture holds: {INSTALL}"
    if own := sorted(own_names((state.compiled or {}).get("loss")) - own_names(state.architecture)):
        yield f"the loss {', '.join(own)}: --import FILE.py, or another with --loss NAME"
    if names.proved_on_images:
        yield "proof that layers are matched correctly: labelled old images (--data) that the model recognises; --map-out FILE"
    why = state.records.get("cannot_keep")
    decay = state.records.get("coupled_decay")
    if state.optimizer is None:
        yield "the optimizer's state: --optimizer NAME:reset"
    elif why:
        yield f"an optimizer state that Keras can use ({why}): --optimizer NAME:reset"
    elif state.optimizer.class_name is None:
        either = "adam or adamw, which PyTorch wrote alike" if state.optimizer.config is not None else "NAME"
        yield f"the optimizer's name: --optimizer {either}, unless --model compiles the model"
    if decay and not why:
        yield f"a replacement for the weight decay of {decay:g} inside the gradient: --weight-decay F (0 for none)"
    if state.rate is None:
        yield "the learning rate: --lr F, or compile the model with its schedule in the function of --model"
    elif state.rate.value is None:
        yield f"the peak of {state.rate.custom}: --lr F; or --lr-schedule keep, with its class from --import FILE.py"
    if state.card is None and not state.records.get("classes"):
        yield "the classes: sorted folders of --data, or --classes a,b,c"
    if state.card is None or state.format != "run":
        yield "the images it was trained on: --data"


def _rate(state: TrainState) -> dict[str, Any] | None:
    if state.rate is None:
        return None
    schedule = state.rate.schedule
    return {
        "value": state.rate.value,
        "origin": state.rate.origin,
        "schedule": str(schedule.get("class_name")) if schedule else None,
    }
