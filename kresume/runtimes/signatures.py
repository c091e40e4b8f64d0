"""Reads the signatures of a SavedModel without running it.

    signatures = read_signatures(find_saved_model("serving/flowers"))
    signatures["serving_default"].input.kind        # "bytes", "pictures" or "values"
    signatures["serving_default"].outputs           # scores, labels, class_index ... under the model's own names

Dtypes and shapes determine the meaning of a tensor. Inputs: strings are encoded files, `uint8` are pictures, `float32`
are the model's input values. Outputs: a row of floats as long as the classes is the scores, strings are labels,
integers are class indices. A single float for two classes is the score of the second.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from kresume.backend.selection import import_tensorflow
from kresume.errors import CheckpointError, UsageError
from kresume.runtimes.operations import input_scale, last_operation
from kresume.values.first_layers import LARGEST_SCALE, SMALLEST_SCALE
from kresume.values.input_layout import InputLayout, read_layout

InputKind = Literal["bytes", "pictures", "values"]
OutputKind = Literal["scores", "top_scores", "labels", "class_index", "class_indices", "error", "embedding", "other"]
Shape = tuple[int | None, ...]

DEFAULT = "serving_default"
LABELS = "labels.txt"
SCORES = ("scores", "probabilities", "predictions", "softmax", "logits")
"""Names by which the scores are told from other rows of as many numbers, in their order of preference."""
INTERNAL = "__saved_model"


@dataclass(frozen=True)
class Input:
    """The only input of a signature.

    Attributes:
        name: its name.
        kind: its meaning.
        dtype: the type of its numbers.
        shape: its shape; None for any length.
        scale: the factor by which the model multiplies it first; None if unknown.
    """

    name: str
    kind: InputKind
    dtype: str
    shape: Shape
    scale: float | None = None

    @property
    def pixels(self) -> str | None:
        """Returns `"0-255"` if the model scales bytes down by itself, else None.

        The order of their channels, and whether they are inverted, the graph does not show.
        """
        shown = self.kind == "values" and self.scale is not None and SMALLEST_SCALE <= self.scale <= LARGEST_SCALE
        return "0-255" if shown else None

    def layout(self, size: tuple[int, int] | None = None, likely: InputLayout | None = None) -> InputLayout:
        """Determines the input layout of a signature with array input.

        Args:
            size: `(height, width)` of its pictures, if known.
            likely: the layout to use if the shape fits it.

        Raises:
            UsageError: the shape is not that of a picture.
        """
        shape = _picture_shape(self.shape)
        return likely if likely is not None and likely.sizes(shape, size) else read_layout(shape, size)[0]

    def size(self, layout: InputLayout) -> tuple[int, int] | None:
        """Returns the `(height, width)` that the shape fixes, None if it accepts any."""
        return next(iter(layout.sizes(_picture_shape(self.shape))), None)


def _picture_shape(shape: Shape) -> Shape:
    """Returns the shape without the batch axis; an unknown number of channels becomes 3."""
    return (*shape[1:3], 3) if len(shape) == 4 and shape[3] is None else shape[1:]


@dataclass(frozen=True)
class Output:
    """An output of a signature.

    Attributes:
        name: its name.
        kind: its meaning.
        dtype: the type of its numbers.
        shape: its shape; None for any length.
        operation: the operation that computes it, `"Softmax"` for example; empty if unknown.
    """

    name: str
    kind: OutputKind
    dtype: str
    shape: Shape
    operation: str = ""


@dataclass(frozen=True)
class Signature:
    """The input and outputs of a signature."""

    name: str
    input: Input
    outputs: tuple[Output, ...]

    def output(self, *kinds: OutputKind) -> Output | None:
        """Returns the first output of the given kinds, in their order of preference."""
        return next((output for kind in kinds for output in self.outputs if output.kind == kind), None)

    @property
    def answers_classes(self) -> bool:
        """Returns True if an output tells the class of an image."""
        return self.output("scores", "labels", "class_index", "class_indices") is not None

    @property
    def may_be_single(self) -> bool:
        """Returns True if the scores may be one number per image.

        It is the score of the second of two classes.
        """
        scores = self.output("scores")
        return scores is not None and scores.shape[1:] in {(), (1,), (None,)}

    def as_dict(self) -> dict[str, Any]:
        """Returns the JSON form."""
        return {
            "input": {"name": self.input.name, "dtype": self.input.dtype, "shape": list(self.input.shape)},
            "outputs": {output.name: {"dtype": output.dtype, "shape": list(output.shape)} for output in self.outputs},
        }


def labels_of(folder: Path) -> tuple[str, ...] | None:
    """Returns the recorded names of a SavedModel's outputs in order, or None.

    They are read from `export.json` or `assets/labels.txt`.
    """
    record = folder / "export.json"
    if record.is_file():
        try:
            told = json.loads(record.read_text(encoding="utf-8"))
            # `labels` is the order of the served outputs; with `--like` it may differ from the model's own.
            return tuple(told.get("labels") or told["card"]["classes"])
        except (ValueError, KeyError, TypeError, AttributeError):
            pass  # another program's file of that name
    labels = folder / "assets" / LABELS
    if labels.is_file():
        return tuple(line for line in labels.read_text(encoding="utf-8").splitlines() if line)
    return None


def read_raw(folder: Path) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Reads names, dtypes and shapes of every signature.

    Returns:
        `{signature: ({input: (dtype, shape)}, {output: (dtype, shape)})}`.

    Raises:
        CheckpointError: the folder has no readable SavedModel, or none for serving.
    """
    return _signatures_of(_graph(folder))


def _signatures_of(graph: Any) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Returns what `read_raw` does, of a graph."""
    tf = import_tensorflow()

    def tensor(info: Any) -> tuple[str, Shape | None]:
        unknown = info.tensor_shape.unknown_rank
        shape = None if unknown else tuple(int(d.size) if d.size >= 0 else None for d in info.tensor_shape.dim)
        return tf.dtypes.as_dtype(info.dtype).name, shape

    return {
        name: (
            {key: tensor(info) for key, info in definition.inputs.items()},
            {key: tensor(info) for key, info in definition.outputs.items()},
        )
        for name, definition in sorted(graph.signature_def.items())
        if not name.startswith(INTERNAL)
    }


def _graph(folder: Path) -> Any:
    """Reads the graph for serving, a `MetaGraphDef`.

    Raises:
        CheckpointError: the folder has no readable SavedModel, or none for serving.
    """
    import_tensorflow()
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf import saved_model_pb2

    try:
        message = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    except (OSError, DecodeError) as error:
        raise CheckpointError(f"{folder} is not a readable SavedModel ({error}): use an earlier copy") from error
    graphs = [graph for graph in message.meta_graphs if "serve" in graph.meta_info_def.tags]
    if not graphs:
        raise CheckpointError(f"{folder} has no graph with the tag `serve`: it was not written for serving")
    return graphs[0]


def has_signatures(folder: Path) -> bool:
    """Returns False if a SavedModel was saved without a signature; one that cannot be read may have some."""
    try:
        return bool(read_raw(folder))
    except CheckpointError:
        return True


def read_signatures(folder: Path, classes: int | None = None) -> dict[str, Signature]:
    """Reads the signatures of a SavedModel that fit a classifier.

    Args:
        folder: contains `saved_model.pb`.
        classes: number of classes; None uses the number of its labels, or the width of its only row of floats.

    Raises:
        CheckpointError: `serving_default` (or the first signature) does not fit a classifier; the message says why.
    """
    graph = _graph(folder)
    raw = _signatures_of(graph)
    named = labels_of(folder)
    count = classes if classes is not None else len(named) if named else None
    found: dict[str, Signature] = {}
    reasons: dict[str, str] = {}
    for name, (inputs, outputs) in raw.items():
        try:
            found[name] = understand(name, inputs, outputs, count)
        except ValueError as error:
            reasons[name] = str(error)
    wanted = DEFAULT if DEFAULT in raw else next(iter(raw), DEFAULT)
    if wanted not in found:
        raise CheckpointError(
            f"the signature {wanted} of {folder} cannot be used: {reasons.get(wanted, 'there is no signature')}"
        )
    found = {name: _with_operations(signature, graph) for name, signature in found.items()}
    return {wanted: found.pop(wanted), **found}


def _with_operations(signature: Signature, graph: Any) -> Signature:
    """Returns the signature with what its graph shows of its input and its scores."""
    outputs = tuple(
        replace(output, operation=last_operation(graph, signature.name, output.name))
        if output.kind == "scores"
        else output
        for output in signature.outputs
    )
    given = signature.input
    if given.kind == "values":
        given = replace(given, scale=input_scale(graph, signature.name, given.name))
    return replace(signature, input=given, outputs=outputs)


def understand(
    name: str, inputs: Mapping[str, tuple[str, Shape | None]], outputs: Mapping[str, Any], classes: int | None
) -> Signature:
    """Determines the meaning of each tensor of a signature.

    Raises:
        ValueError: the signature has several inputs, or a tensor of unknown meaning; the message names it.
    """
    if len(inputs) != 1:
        raise ValueError(f"it takes {len(inputs)} inputs ({', '.join(sorted(inputs))}), expected one: images")
    (key, (dtype, shape)), *_ = inputs.items()
    found = [_output(key, outputs, classes) for key in sorted(outputs)]
    return Signature(name, _input(key, dtype, shape), tuple(_with_one_row_of_scores(found)))


def _with_one_row_of_scores(outputs: list[Output]) -> list[Output]:
    """Returns the outputs with one row of scores, told by its name from other rows of as many numbers.

    Raises:
        ValueError: no name tells it.
    """
    rows = [output.name for output in outputs if output.kind == "scores"]
    if len(rows) < 2:
        return outputs
    named = next((name for name in SCORES if name in rows), None)
    if named is None:
        raise ValueError(
            f"its outputs {', '.join(rows)} could all be the scores: save a model with one of them, or name it `scores`"
        )
    return [replace(each, kind="other") if each.kind == "scores" and each.name != named else each for each in outputs]


def _input(name: str, dtype: str, shape: Shape | None) -> Input:
    pictures = shape is not None and len(shape) > 1 and _is_picture(shape)
    if dtype == "string" and shape is not None and len(shape) == 1:
        return Input(name, "bytes", dtype, shape)
    if dtype == "uint8" and pictures and shape is not None:
        return Input(name, "pictures", dtype, shape)
    if dtype in {"float32", "float16", "bfloat16", "float64"} and pictures and shape is not None:
        return Input(name, "values", dtype, shape)
    raise ValueError(
        f"its input {name} is {dtype} {_words(shape)}, expected string (batch,), uint8 or float32 (batch, height, width, 3)"
    )


def _is_picture(shape: Shape) -> bool:
    try:
        read_layout(_picture_shape(shape))
    except UsageError:
        return False
    return True


def _output(name: str, outputs: Mapping[str, tuple[str, Shape | None]], classes: int | None) -> Output:
    dtype, shape = outputs[name]
    rank = len(shape) if shape is not None else None
    if shape is not None and dtype == "string" and rank in {1, 2}:
        return Output(name, "error" if name == "error" and rank == 1 else "labels", dtype, shape)
    if shape is not None and dtype in {"int32", "int64"} and rank in {1, 2}:
        return Output(name, "class_index" if rank == 1 else "class_indices", dtype, shape)
    if shape is not None and shape[1:] in {(), (1,)} and classes == 2 and _is_alone(name, outputs):
        return Output(name, "scores", dtype, shape)
    if shape is not None and dtype.startswith(("float", "bfloat")) and rank == 1:
        return Output(name, "top_scores", dtype, shape)
    if shape is not None and dtype.startswith(("float", "bfloat")) and rank == 2:
        if name == "embedding":
            return Output(name, "embedding", dtype, shape)
        rows = [
            key
            for key, (kind, size) in outputs.items()
            if kind.startswith(("float", "bfloat")) and len(size or ()) == 2
        ]
        if shape[1] is not None and shape[1] == classes:
            return Output(name, "scores", dtype, shape)
        if len(rows) == 1 and (classes is None or shape[1] is None):
            return Output(name, "scores", dtype, shape)
        if any(kind == "string" and size is not None and size[1:] == shape[1:] for kind, size in outputs.values()):
            return Output(name, "top_scores", dtype, shape)
        raise ValueError(f"its output {name} has {shape[1]} numbers per image, the model has {classes} classes")
    raise ValueError(f"its output {name} is {dtype} {_words(shape)}, which is neither scores nor labels")


def _is_alone(name: str, outputs: Mapping[str, tuple[str, Shape | None]]) -> bool:
    """Returns True if a float output is the only one that tells the class."""
    others = [key for key in outputs if key not in {name, "embedding", "error"}]
    return name != "embedding" and not others and outputs[name][0].startswith(("float", "bfloat"))


def _words(shape: Shape | None) -> str:
    return "of any shape" if shape is None else "(" + ", ".join("any" if n is None else str(n) for n in shape) + ")"
