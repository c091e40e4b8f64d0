"""`TrainState`: what a checkpoint means, free of backend and format.

A reader turns a file into one of these; `kresume.models.restore` turns one of these into the state of a live model.
Between the two there are only numpy arrays and names, so a checkpoint written under TensorFlow and one written under
JAX are the same thing here.

The names of the arrays are the format's own. How they map onto a live model is said by `layout`:

- `"groups"`: `trainable/0`, `non_trainable/3`, `optimizer/7`, `metrics/1`: by group and index (our snapshots);
  `records["structure"]` says where in the model each is. Seed generator states and BatchNorm statistics are in `non_trainable`;
  averages of EMA, slots, `iterations` and a float rate in `optimizer`.
- `"keras"`: the HDF5 paths of Keras's saving library: `layers/conv2d/vars/0`, `optimizer/vars/2`.
- `"layers"`: layers by name, in the order of `records["layers"]` (`[layer, [array, ...]]`); the optimizer's arrays by
  `records["slots"]` (`[attribute, variable, array]`) or `records["optimizer_order"]` (legacy HDF5).
- `"graph"`: TensorFlow's object graph, carried in `graph`.
- `"torch"`: names and layouts of a PyTorch state dict; `kresume.models.torch_map` turns them.
- `"tree"`: paths of a pytree (Orbax); `kresume.models.match_tree` finds their variables.
- `"mapped"`: the names of `"groups"`, from a foreign file whose arrays were matched and turned already; arrays that found no
  variable keep the file's names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from kresume.input_layout import RGB, InputLayout

Layout = Literal["groups", "keras", "layers", "graph", "torch", "tree", "mapped"]


@dataclass(frozen=True)
class GraphNode:
    """One object of a TensorFlow object graph.

    Attributes:
        children: edge name -> index of the node it leads to.
        array: name of the array that this node is, or None for a plain container.
        full_name: the variable's own name as its writer knew it, or an empty string.
        slots: legacy optimizers' slot variables: (index of the variable's node, slot name) -> index of the slot's node.
    """

    children: Mapping[str, int]
    array: str | None = None
    full_name: str = ""
    slots: Mapping[tuple[int, str], int] = field(default_factory=dict)


@dataclass(frozen=True)
class SavedOptimizer:
    """What a checkpoint says of its optimizer.

    Attributes:
        class_name: `"AdamW"`, or None where the format holds the variables but not the name.
        config: Keras's `optimizer.get_config()`, or None where the format does not hold it.
        variables: how many arrays it stored, without those of loss scaling.
        loss_scale: whether it was wrapped for loss scaling (mixed_float16); class and config are those of what is inside.
    """

    class_name: str | None
    config: Mapping[str, Any] | None
    variables: int
    loss_scale: bool = False


@dataclass(frozen=True)
class SavedRate:
    """The learning rate that a checkpoint was written with.

    Attributes:
        value: the rate that "the checkpoint's rate" means: our recorded peak, a schedule's initial or peak rate, or
            the float that was found.
        origin: `"run"` (our recorded peak), `"schedule"` or `"float"`.
        schedule: the schedule's Keras config (`{"class_name", "config"}`), if it was one.
    """

    value: float
    origin: Literal["run", "schedule", "float"]
    schedule: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Card:
    """What a model eats and what its outputs mean: the content of the archive member `kresume.json`.

    Attributes:
        classes: names of the outputs, in their order.
        image_size: `(height, width)` in pixels.
        pixels: the convention of the values that the model takes, a name of `kresume.images.conventions`.
        resize: `"stretch"`, `"crop"` or `"pad"`.
        interpolation: `"area"`, `"bilinear"`, `"antialias"` or `"nearest"`.
        lineage: where it came from: run, parent, generation, digests.
        input: how the model takes a picture: colours, order of axes.
    """

    classes: tuple[str, ...]
    image_size: tuple[int, int]
    pixels: str
    resize: str
    interpolation: str
    lineage: Mapping[str, Any] = field(default_factory=dict)
    input: InputLayout = RGB

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one picture as the model takes it."""
        return self.input.shape(self.image_size)

    def as_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "classes": list(self.classes),
            "image_size": list(self.image_size),
            "pixels": self.pixels,
            "resize": self.resize,
            "interpolation": self.interpolation,
            "lineage": dict(self.lineage),
            "input": self.input.as_dict(),
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Card:
        """Reads the JSON form; one without `input`, as earlier versions wrote it, means RGB pictures `(height, width, 3)`.

        Raises:
            KeyError, TypeError, ValueError: it is not one.
        """
        height, width = value["image_size"]
        return cls(
            classes=tuple(str(name) for name in value["classes"]),
            image_size=(int(height), int(width)),
            pixels=str(value["pixels"]),
            resize=str(value["resize"]),
            interpolation=str(value["interpolation"]),
            lineage=dict(value.get("lineage", {})),
            input=InputLayout.from_dict(value["input"]) if "input" in value else RGB,
        )


@dataclass(frozen=True)
class TrainState:
    """A saved training as named numpy arrays.

    Attributes:
        source: the path as the user gave it.
        format: the reader's name: `"keras"`, `"tf-checkpoint"`, `"snapshot"`.
        layout: how `arrays` map onto a live model, see the module's docstring.
        arrays: every array of the file, under the format's own name; treat as read-only.
        graph: the object graph, for the layout `"graph"`; node 0 is the root.
        architecture: the model as `keras.saving.serialize_keras_object` writes it, where the file holds it.
        compiled: Keras's compile config (optimizer, loss, metrics), where the file holds it.
        optimizer: what is known of the optimizer, None if the file holds no optimizer state at all.
        step: optimizer updates done, None if unknown.
        rate: the learning rate, None if unknown.
        card: classes, image size and pixels, where the file says them (files of ours do).
        writer: who wrote it: `"keras 3.15.1"`, `"kresume 0.1.0"`, or an empty string.
        written: when, as ISO 8601, or an empty string.
        records: anything else that the format keeps (a snapshot's position, callbacks' state and phase).
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
