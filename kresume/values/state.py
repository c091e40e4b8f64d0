"""Defines `TrainState`: the content of a checkpoint, independent of backend and file format.

A reader turns a file into a `TrainState`. `kresume.models.restore` loads a `TrainState` into a live model. A
`TrainState` holds only numpy arrays and names, so a checkpoint written under TensorFlow and one written under JAX look
the same.

Array names are those of the format. `layout` says how they map onto a live model. What differs between layouts is in
two tables, `kresume.checkpoints.layouts` and `kresume.models.layouts`:

- `"groups"`: `trainable/0`, `non_trainable/3`, `optimizer/7`, `metrics/1`: by group and index (snapshots of kresume).
  `records["structure"]` gives the location of each variable in the model. `non_trainable` includes seed generator
  states and BatchNorm statistics; `optimizer` includes EMA averages, slots, `iterations` and a float rate.
- `"keras"`: the HDF5 paths of Keras's saving library: `layers/conv2d/vars/0`, `optimizer/vars/2`.
- `"layers"`: layers by name, in the order of `records["layers"]` (`[layer, [array, ...]]`). The optimizer's arrays are
  listed in `records["slots"]` (`[attribute, variable, array]`) or `records["optimizer_order"]` (legacy HDF5).
- `"graph"`: TensorFlow's object graph, stored in `graph`.
- `"torch"`: names and axis order of a PyTorch state dict; `kresume.models.torch_map` converts them.
- `"tree"`: paths of a pytree (Orbax); `kresume.models.match_tree` finds their variables.
- `"mapped"`: the names of `"groups"`, for a foreign file whose arrays are already matched and transposed. Arrays that
  match no variable keep the file's names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from kresume.values.card import Card

if TYPE_CHECKING:
    import numpy as np  # takes as long to import as a hundred runs take to list

Layout = Literal["groups", "keras", "layers", "graph", "torch", "tree", "mapped"]


@dataclass(frozen=True)
class GraphNode:
    """One object of a TensorFlow object graph.

    Attributes:
        children: edge name -> index of the child node.
        array: name of the array that this node stores, or None for a plain container.
        full_name: the variable's own name in the program that wrote it, or an empty string.
        slots: slot variables of legacy optimizers: (index of the variable's node, slot name) -> index of the slot's
            node.
    """

    children: Mapping[str, int]
    array: str | None = None
    full_name: str = ""
    slots: Mapping[tuple[int, str], int] = field(default_factory=dict)


EARLIER_STEPS = "earlier_steps"
"""The record of a run's state that says how many of its steps its parents did."""
UNDECAYED = "exclude_from_weight_decay"
"""The setting of an optimizer that says what it leaves out of weight decay; Keras's files do not hold it."""


@dataclass(frozen=True)
class SavedOptimizer:
    """The optimizer as a checkpoint describes it.

    Attributes:
        class_name: class name such as `"AdamW"`; None if the format stores the variables without the name.
        config: Keras's `optimizer.get_config()`, and `UNDECAYED` if something is left out of weight decay; None if the
            format does not store it.
        variables: number of stored arrays, without those of loss scaling.
        loss_scale: True if the optimizer was wrapped for loss scaling (mixed_float16). `class_name` and `config`
            describe the inner optimizer.
    """

    class_name: str | None
    config: Mapping[str, Any] | None
    variables: int
    loss_scale: bool = False

    @property
    def batches(self) -> int:
        """Returns the number of batches whose gradients make one update; 1 if the config does not say it."""
        return int((self.config or {}).get("gradient_accumulation_steps") or 1)


@dataclass(frozen=True)
class SavedRate:
    """The learning rate stored in a checkpoint.

    Attributes:
        value: the rate that "the checkpoint's rate" refers to: the peak that kresume recorded, a schedule's initial or
            peak rate, or the float in the file; None if the schedule is of the user's own class, which names no peak.
        origin: `"run"` (peak recorded by kresume), `"schedule"` or `"float"`.
        schedule: the schedule's Keras config (`{"class_name", "config"}`); None if the rate is no schedule.
        lowered_from: the rate before it was lowered for a run without old images; None if it was not.
    """

    value: float | None
    origin: Literal["run", "schedule", "float"]
    schedule: Mapping[str, Any] | None = None
    lowered_from: float | None = None

    def __str__(self) -> str:
        return self.custom if self.value is None else f"{self.value:g}"

    @property
    def custom(self) -> str:
        """Describes a schedule that does not say its peak: `"a custom schedule (HalfLR)"`."""
        return f"a custom schedule ({(self.schedule or {}).get('class_name')})"


@dataclass(frozen=True)
class TrainState:
    """A saved training as named numpy arrays.

    Attributes:
        source: the path as the user gave it.
        format: the reader's name: `"keras"`, `"tf-checkpoint"`, `"snapshot"`.
        layout: how `arrays` map onto a live model, see the module's docstring.
        arrays: every array of the file, under the format's own name; treat as read-only.
        graph: the object graph, for the layout `"graph"`; node 0 is the root.
        architecture: the model as `keras.saving.serialize_keras_object` writes it; None if the file does not store it.
        compiled: Keras's compile config (optimizer, loss, metrics); None if the file does not store it.
        optimizer: the optimizer as far as it is known; None if the file stores no optimizer state.
        step: number of optimizer updates, None if unknown.
        rate: the learning rate, None if unknown.
        card: the model card; None if the file has none (files written by kresume have one).
        writer: program that wrote the file: `"keras 3.15.1"`, `"kresume 0.1.0"`, or an empty string.
        written: time of writing as ISO 8601, or an empty string.
        records: everything else that the format stores (a snapshot's position, phase and callback states).
    """

    source: str
    format: str
    layout: Layout
    arrays: Mapping[str, np.ndarray]
    graph: tuple[GraphNode, ...] = ()
    architecture: Mapping[str, Any] | None = None
    compiled: Mapping[str, Any] | None = None
    optimizer: SavedOptimizer | None = None
    step: int | None = None
    rate: SavedRate | None = None
    card: Card | None = None
    writer: str = ""
    written: str = ""
    records: Mapping[str, Any] = field(default_factory=dict)

    @property
    def own_step(self) -> int:
        """Returns the step within the run, by which its snapshots are named; without a run the only one."""
        return int(self.step or 0) - int(self.records.get(EARLIER_STEPS) or 0)


def show_step(step: int, earlier: int) -> str:
    """Formats a step: `"43, 128 with its parents"`.

    Args:
        step: number of optimizer updates.
        earlier: how many of them are those of a run's parents.
    """
    return f"{step - earlier:,}, {step:,} with its parents" if earlier else f"{step:,}"
