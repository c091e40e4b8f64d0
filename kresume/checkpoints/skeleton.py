"""Writes a Keras skeleton of a PyTorch network: ordered layers with their sizes.

    Path("model.py").write_text(skeleton(state, "model.py"))

A state dict holds the layers and their sizes, but not the operations between them. Comments in the file mark each
unknown with `fill in`: strides, padding, pooling, activations, sums. The file runs as written. Its layers have the
names of PyTorch's modules, so the weights are mapped by name. The function computes the right result once all marks are
resolved.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kresume.checkpoints.layouts import names_of
from kresume.errors import UsageError
from kresume.storage.one_file import require_local
from kresume.values.state import TrainState

FILL_IN = "fill in"
"""Marks what a file does not say; `train` refuses a model file that still contains a mark."""
ROLES = ("weight", "bias", "running_mean", "running_var", "in_proj_weight", "in_proj_bias")
Shape = tuple[int, ...]


@dataclass
class _Script:
    """The lines of the function, and the tensors defined so far."""

    lines: list[str] = field(default_factory=list)
    current: str = "inputs"
    channels: int = 0
    spatial: bool = True
    by_channels: dict[int, tuple[str, bool]] = field(default_factory=dict)
    picture: tuple[str, int] = ("inputs", 0)
    left: tuple[str, int, bool] | None = None
    count: int = 0

    def add(self, call: str, channels: int, *, spatial: bool, note: str = "") -> None:
        self.count += 1
        self.lines.append(f"x{self.count} = {call}({self.current}){f'  # {note}' if note else ''}")
        self.current, self.channels, self.spatial = f"x{self.count}", channels, spatial
        self.by_channels[channels] = (self.current, spatial)
        if spatial:
            self.picture = (self.current, channels)

    def join(self) -> None:
        """Adds the saved branch to the current one if both have the same shape.

        `take` saves the current branch when it returns to an earlier tensor for a shortcut.
        """
        if self.left is None or self.left[1:] != (self.channels, self.spatial):
            return
        self.count += 1
        self.lines.append(
            f"x{self.count} = layers.Add()([{self.left[0]}, {self.current}])  # fill in: is this sum right?"
        )
        self.left, self.current = None, f"x{self.count}"
        self.by_channels[self.channels] = (self.current, self.spatial)
        if self.spatial:
            self.picture = (self.current, self.channels)

    def comment(self, text: str) -> None:
        self.lines.append(f"# {text}")

    def take(self, channels: int) -> str:
        """Continues from the last tensor with this number of channels.

        Returns a note for the user if that is not the current tensor, or no tensor has this number of channels.
        """
        if channels == self.channels:
            return ""
        if channels in self.by_channels:
            self.left = self.left or (self.current, self.channels, self.spatial)
            self.current, self.spatial = self.by_channels[channels]
            self.channels = channels
            return f"fill in: is the last tensor with {channels} channels its input? "
        return f"fill in: the layer expects {channels} channels, this tensor has {self.channels}; "


def skeleton(state: TrainState, file: str) -> str:
    """Returns the Python source of a module with a function `build(image_size)`.

    The function is `build()` if the network expects a row of numbers.

    Args:
        state: a PyTorch state dict.
        file: the name of the module's file, for its header.

    Raises:
        UsageError: if the checkpoint is not from PyTorch (its architecture is known, or its layers' kinds are unknown),
            or if the network expects images that are neither RGB nor grey.
    """
    if not names_of(state).skeleton:
        known = "holds its architecture" if state.architecture is not None else "does not identify its layers"
        raise UsageError(
            f"--write-model writes skeletons of PyTorch state dicts; {state.source} ({state.format}) {known}"
        )
    modules = _modules({name: tuple(array.shape) for name, array in state.arrays.items()})
    script = _Script()
    ordered = bool(state.records.get("ordered", True))
    numbers = _row_of_numbers(modules) if ordered else 0
    first = numbers or _colours(modules, state.source, ordered=ordered)
    script.channels = first
    script.spatial = not numbers
    if not numbers:
        script.picture = ("inputs", first)
    script.by_channels[first] = ("inputs", script.spatial)
    if not ordered:  # layers that need an image come first, so that the file runs
        modules.sort(key=lambda module: len(module[1].get("weight", ())) != 4 and "running_mean" not in module[1])
    for name, roles in modules:
        _emit(script, name, roles)
    script.join()
    if script.spatial:
        script.add("layers.GlobalAveragePooling2D()", script.channels, spatial=False, note="fill in: is this the head?")
    order = (
        ""
        if ordered
        else "\nThe file stores the layers sorted by name: put them into the order of the network first.\n"
    )
    body = "\n    ".join(script.lines)
    source, target = _one_line(Path(state.source).name), _one_line(Path(file).name)
    return f'''"""A skeleton of the network in {source}, written by `kresume inspect --write-model`.

The file contains the layers and their sizes. It does not contain strides, padding, pooling, activations and sums: each
line that needs them is marked `fill in`. Correct these lines and remove the marks.
Then: kresume train --from {source} --model {target}:build --data OLD --add NEW
{order}"""

import keras
from keras import layers


def build({"" if numbers else "image_size=(64, 64)"}):
    inputs = keras.Input(({f"{first}," if numbers else f"*image_size, {first}"}))
    {body}
    return keras.Model(inputs, {script.current})
'''


def _row_of_numbers(modules: Sequence[tuple[str, dict[str, Shape]]]) -> int:
    """Returns the input length of a network of dense layers, 0 for image inputs."""
    roles = [each for _, each in modules]
    if any("value" in each or "in_proj_weight" in each or len(each.get("weight", ())) > 2 for each in roles):
        return 0
    return next((each["weight"][1] for each in roles if len(each.get("weight", ())) == 2), 0)


def _colours(modules: Sequence[tuple[str, dict[str, Shape]]], source: str, *, ordered: bool) -> int:
    """Returns the number of image channels that the network expects, 3 or 1.

    Raises:
        UsageError: if the first convolution expects another number, so that no image fits the model.
    """
    taken = [roles["weight"][1] for _, roles in modules if len(roles.get("weight", ())) == 4]
    if not taken:
        return 3
    # PyTorch's depthwise convolutions have 1 input channel too: if the order is unknown, RGB is more likely.
    first = taken[0] if ordered else next((count for count in (3, 1) if count in taken), taken[0])
    if first not in {1, 3}:
        raise UsageError(
            f"--write-model: the first convolution of {source} has {first} input channels; kresume trains on RGB and grey "
            "images, so it cannot train this network"
        )
    return first


def _one_line(text: str) -> str:
    """Makes a name from a file safe for a comment or docstring.

    A name from a file must not become a line of code.
    """
    return re.sub(r"[^\w .:/()+=,@-]", "?", " ".join(text.split()))


def _modules(shapes: Mapping[str, Shape]) -> list[tuple[str, dict[str, Shape]]]:
    grouped: dict[str, dict[str, Shape]] = {}
    for key, shape in shapes.items():
        name = _one_line(key)
        prefix, _, role = name.rpartition(".")
        if name.startswith("optimizer/") or role == "num_batches_tracked":
            continue
        if role in ROLES:
            grouped.setdefault(prefix, {})[role] = shape
        else:
            grouped[name] = {"value": shape}
    return list(grouped.items())


def _emit(script: _Script, module: str, roles: Mapping[str, Shape]) -> None:
    name = re.sub(r"[^A-Za-z0-9_]+", "_", module) or "root"
    weight = roles.get("weight", ())
    bias = "" if "bias" in roles or "in_proj_bias" in roles else ", use_bias=False"
    if "in_proj_weight" in roles:
        _attention(script, name, roles["in_proj_weight"][1], bias)
    elif module.endswith(".out_proj") and any("attn" in part or "attention" in part for part in module.split(".")):
        script.comment(f"{module} is the output of the attention above")
    elif "value" in roles:
        script.comment(
            f"fill in: {module} {roles['value']} is a parameter outside of layers: add a layer with add_weight"
        )
    elif len(weight) == 4:
        _convolution(script, name, weight, bias)
    elif "running_mean" in roles:
        note = script.take(roles["running_mean"][0])
        affine = "" if weight else "center=False, scale=False, "
        call = f'layers.BatchNormalization({affine}epsilon=1e-5, momentum=0.9, name="{name}")'
        script.add(call, script.channels, spatial=script.spatial, note=f"{note}fill in: activation, sum")
    elif len(weight) == 1:
        note = script.take(weight[0])
        center = "" if "bias" in roles else "center=False, "
        call = f'layers.LayerNormalization({center}epsilon=1e-5, name="{name}")'
        script.add(call, script.channels, spatial=script.spatial, note=f"{note}fill in: or GroupNormalization?")
    elif len(weight) == 2:
        _dense(script, name, weight, bias)
    else:
        script.comment(f"fill in: {module} {dict(roles)}: the sizes do not show what kind of layer this is")


def _convolution(script: _Script, name: str, weight: Shape, bias: str) -> None:
    outputs, inputs, *kernel = weight
    script.join()
    if not script.spatial:
        script.current, script.channels = script.picture
        script.spatial = True
    size = str(kernel[0]) if len(set(kernel)) == 1 else str(tuple(kernel))
    rest = f'strides=1, padding="same"{bias}, name="{name}"'
    note = "fill in: strides, padding, activation"
    if inputs == 1 and script.channels > 1 and outputs % script.channels == 0:
        multiplier = outputs // script.channels
        more = f"depth_multiplier={multiplier}, " if multiplier > 1 else ""
        script.add(f"layers.DepthwiseConv2D({size}, {more}{rest})", outputs, spatial=True, note=note)
        return
    groups = ""
    if inputs != script.channels and inputs not in script.by_channels and inputs and script.channels % inputs == 0:
        groups = f"groups={script.channels // inputs}, "
    else:
        note = script.take(inputs) + note
    script.add(f"layers.Conv2D({outputs}, {size}, {groups}{rest})", outputs, spatial=True, note=note)


def _dense(script: _Script, name: str, weight: Shape, bias: str) -> None:
    outputs, inputs = weight
    script.join()
    note = "fill in: activation"
    if script.spatial and inputs != script.channels and inputs % script.channels == 0:
        side = math.isqrt(inputs // script.channels)
        if side * side == inputs // script.channels:
            pool = ", ".join(f"max({script.current}.shape[{axis}] // {side}, 1)" for axis in (1, 2))
            script.add(
                f"layers.AveragePooling2D(({pool}))",
                script.channels,
                spatial=True,
                note=f"fill in: replace this by the strides and pooling that reduce the image to {side}x{side}",
            )
            script.add("layers.Flatten()", inputs, spatial=False)
    elif script.spatial and inputs == script.channels:
        script.add(
            "layers.GlobalAveragePooling2D()", inputs, spatial=False, note="fill in: does the network average here?"
        )
    if inputs != script.channels:
        note = script.take(inputs) + note
    script.add(f'layers.Dense({outputs}{bias}, name="{name}")', outputs, spatial=script.spatial, note=note)


def _attention(script: _Script, name: str, width: int, bias: str) -> None:
    note = script.take(width)
    if script.spatial:
        script.add(f"layers.Reshape((-1, {width}))", width, spatial=False, note="fill in: tokens, positions")
    before = script.current
    script.count += 1
    script.lines.append(
        f'x{script.count} = layers.MultiHeadAttention(1, {width}{bias}, name="{name}")({before}, {before})'
        f"  # {note}fill in: heads H and {width} // H, sum"
    )
    script.current, script.channels = f"x{script.count}", width
    script.by_channels[width] = (script.current, False)


def check_free(path: str) -> Path:
    """Returns the path to write.

    Raises:
        UsageError: if the file exists, or its folder does not.
    """
    require_local("write-model", path)
    file = Path(path)
    if file.exists():
        raise UsageError(f"--write-model {path}: the file already exists; give another name, or remove it")
    if not file.absolute().parent.is_dir():
        raise UsageError(f"--write-model {path}: the folder {file.parent} does not exist")
    return file


def describe_next(state: TrainState, file: Path) -> Sequence[str]:
    """Returns the next steps for the user, after the file is written."""
    return (
        f"wrote {file}: complete the marked lines and remove the marks, then",
        f"kresume train --from {state.source} --model {file}:build --data OLD --add NEW",
    )
