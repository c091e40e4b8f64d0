"""Builds a model: a new one by name or by a user's function, or the one that a checkpoint describes.

    model = build_model("convnet", state=None, num_classes=10, image_size=(64, 64))
    model = build_model(None, state=read_checkpoint("model.keras"), num_classes=10, image_size=None)
    model = build_model("mymodel.py:build", state=state, num_classes=10, image_size=None)

Built-in models contain their Rescaling: they eat `0-255`. Weights are as initialised; `restore.py` fills them.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import json
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras

from kresume.checkpoints import keras_2, keras_file, legacy_h5, saved_model
from kresume.checkpoints.state import TrainState
from kresume.errors import ModelError
from kresume.models.precision import with_precision

DEFAULT_SIZE = (64, 64)


def build_model(
    spec: str | None,
    *,
    state: TrainState | None,
    num_classes: int,
    image_size: tuple[int, int] | None,
    imports: Sequence[str] = (),
    precision: str | None = None,
    trust: bool = False,
) -> keras.Model:
    """Builds the model that a spec or a checkpoint describes.

    Args:
        spec: `convnet`, `applications:NAME`, `file.py:function`, `package.module:function`, or a file that holds an
            architecture (`.json`, `.keras`, a full `.h5`); None means the checkpoint's own, else `convnet`.
        state: the checkpoint, None for a new model.
        num_classes: how many outputs a new head has.
        image_size: `(height, width)` in pixels, None for the model's own.
        imports: Python files to run first: they register custom objects with Keras.
        precision: the policy that its layers get instead of their own; a user's function makes its layers under the global one.
        trust: run code that an architecture holds (Lambda layers).

    Returns:
        A built model, compiled if the user's function compiles it.

    Raises:
        ModelError: it cannot be built; the message says what to give.
    """
    own = _objects_in(imports)
    if spec is None:
        if state is not None and state.architecture is not None:
            return _from_config(state.architecture, own, precision, trust, state.writer)
        if state is not None:
            skeleton = (
                f", or begin with a skeleton of its layers: kresume inspect {state.source} --write-model model.py"
                if state.layout == "torch"
                else ""
            )
            raise ModelError(
                f"{state.source} holds variables but no architecture: give the model it was made with, for example "
                f"--model mymodel.py:build{skeleton}"
            )
        spec = "convnet"
    size = image_size or DEFAULT_SIZE
    if spec == "convnet":
        return convnet(num_classes, size)
    if spec.startswith("applications:"):
        return _application(spec.partition(":")[2], num_classes, size)
    if spec.endswith((".json", ".keras", ".h5", ".hdf5")):
        return _from_config(_architecture_of(Path(spec)), own, precision, trust, holder=spec)
    if saved_model.accepts(spec):
        return _from_config(_architecture_of(Path(spec)), own, precision, trust, holder=spec)
    if ":" in spec:
        return _from_function(spec, num_classes, image_size)
    if near := difflib.get_close_matches(spec.lower(), names := {name.lower(): name for name in _applications()}, 1):
        raise ModelError(f"--model {spec}: did you mean applications:{names[near[0]]}?")
    raise ModelError(
        f"--model {spec}: use convnet, applications:NAME, file.py:function, package.module:function, or a .json, .keras "
        "or .h5 file or a SavedModel of Keras 2 with an architecture"
    )


def from_architecture(
    config: Mapping[str, Any],
    imports: Sequence[str] = (),
    *,
    precision: str | None = None,
    trust: bool = False,
    writer: str = "",
) -> keras.Model:
    """Builds a model from what `keras.saving.serialize_keras_object(model)` gave, uncompiled.

    Args:
        config: the serialized model. Code in it is not run without `trust`.
        imports: Python files to run first: they register custom objects with Keras.
        precision: the policy that its layers get instead of their own.
        trust: run code that the architecture holds (Lambda layers).
        writer: who wrote the file, for messages.

    Raises:
        ModelError: a class in it is not known to Keras, or it holds a Lambda.
    """
    return _from_config(config, _objects_in(imports), precision, trust, writer)


def _from_config(
    config: Mapping[str, Any],
    own: Mapping[str, Any],
    precision: str | None,
    trust: bool,
    writer: str = "",
    holder: str = "the checkpoint",
) -> keras.Model:
    if precision is not None:
        config = with_precision(config, precision)
    try:
        with keras.saving.custom_object_scope(own):
            model = keras.saving.deserialize_keras_object({**config, "compile_config": None}, safe_mode=not trust)
    except (TypeError, ValueError, KeyError, IndexError, ImportError, AttributeError, RecursionError) as error:
        # Keras wraps the error of a layer in one for each model around it; the innermost says what is wrong.
        said = str(error).rpartition("Exception encountered: ")[2].strip()
        reason = said.splitlines()[0] if said else type(error).__name__
        later = f", which {writer} wrote, and this is keras {keras.__version__}" if _is_later(writer) else ""
        raise ModelError(
            f"the architecture in {holder}{later} cannot be built ({reason[:300]}): custom classes are registered with "
            "--import FILE.py; a Lambda layer's code is never run unless --trust says that the file is yours; --model "
            "FILE.py:FUNCTION builds it from your code"
        ) from error
    if not isinstance(model, keras.Model):
        raise ModelError(f"the architecture in {holder} is a {type(model).__name__}, expected a keras.Model")
    return model


def _is_later(writer: str) -> bool:
    name, _, version = writer.partition(" ")
    numbers = [[int(part) for part in text.split(".")[:2] if part.isdigit()] for text in (version, keras.__version__)]
    return name == "keras" and numbers[0] > numbers[1]


def convnet(num_classes: int, image_size: tuple[int, int]) -> keras.Model:
    """A small convolutional network for a few hundred to a few thousand pictures on a CPU.

    Blocks of convolution, batch normalization and pooling until the picture is about 6 pixels wide, then averages and one
    layer of outputs. Eats `0-255`.

    Args:
        num_classes: how many outputs, at least 2.
        image_size: `(height, width)` in pixels, at least 8.
    """
    if min(image_size) < 8:
        raise ModelError(f"--image-size {image_size[0]}x{image_size[1]}: convnet needs at least 8x8 pixels")
    layers = keras.layers
    inputs = keras.Input((*image_size, 3), name="images")
    x = layers.Rescaling(1 / 127.5, offset=-1.0)(inputs)
    size, filters = min(image_size), 24
    while True:
        x = layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
        x = layers.BatchNormalization(momentum=0.9)(x)
        x = layers.ReLU()(x)
        if size < 12:
            break
        x = layers.MaxPooling2D()(x)
        size, filters = size // 2, min(2 * filters, 192)
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dropout(0.3)(x)
    outputs = layers.Dense(num_classes, activation="softmax", dtype="float32", name="head")(x)
    return keras.Model(inputs, outputs, name="convnet")


def _applications() -> list[str]:
    return sorted(name for name in dir(keras.applications) if name[0].isupper())


def _application(name: str, num_classes: int, image_size: tuple[int, int]) -> keras.Model:
    function = getattr(keras.applications, name, None)
    if not callable(function):
        raise ModelError(f"--model applications:{name}: Keras has {', '.join(_applications())}")
    try:
        base = function(weights=None, include_top=False, input_shape=(*image_size, 3), pooling="avg")
    except ValueError as error:
        raise ModelError(f"--model applications:{name}: {str(error).splitlines()[0]}") from error
    # Those of Keras's families that hold their preprocessing eat 0-255 already; the others get a Rescaling in front.
    inputs = keras.Input((*image_size, 3), name="images")
    from kresume.models.pixels import read_convention

    x = inputs if read_convention(base) == "0-255" else keras.layers.Rescaling(1 / 127.5, offset=-1.0)(inputs)
    x = base(x)
    x = keras.layers.Dropout(0.2)(x)
    outputs = keras.layers.Dense(num_classes, activation="softmax", dtype="float32", name="head")(x)
    return keras.Model(inputs, outputs, name=name.lower())


def _architecture_of(path: Path) -> Mapping[str, Any]:
    if saved_model.accepts(str(path)):
        inside = saved_model.read_architecture(str(path))
        if inside is None:
            raise ModelError(f"--model {path} is a SavedModel without Keras's metadata: it holds operations, no layers")
        return inside
    if not path.is_file():
        raise ModelError(f"--model {path}: there is no such file")
    if path.suffix == ".keras":
        return keras_file.read_architecture(str(path))
    if path.suffix in {".h5", ".hdf5"}:
        found = legacy_h5.read(str(path)).architecture
        if found is None:
            raise ModelError(f"--model {path} holds weights and no architecture")
        return found
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        old = "module" not in config or keras_2.is_keras_2(config.get("keras_version", "3"))
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"--model {path} holds no architecture that can be read ({error})") from error
    return keras_2.architecture(config) if old else config


def _load_file(file: str, option: str) -> Any:
    path = Path(file)
    if not path.is_file():
        raise ModelError(f"{option} {file}: there is no such file (looked from {Path.cwd()})")
    name = f"kresume_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ModelError(f"{option} {file}: it is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # so that Keras and pickle find classes that it defines
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)  # its neighbours are found as by `python FILE.py`
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # it is the user's code: whatever it raises is said in a line, the rest is in the cause
        frames = traceback.extract_tb(error.__traceback__)
        line = next((frame.lineno for frame in reversed(frames) if frame.filename == str(path)), None)
        where = f", line {line}" if line else ""
        raise ModelError(f"{option} {file}{where}: it cannot be run ({type(error).__name__}: {error})") from error
    finally:
        sys.path.remove(folder)
        if folder not in sys.path:
            sys.path.append(folder)  # for what its functions import when they are called
    return module


def _objects_in(imports: Sequence[str]) -> dict[str, Any]:
    """Runs Python files; the classes and functions that they define, by name, whether they register them or not."""
    modules = [_load_file(file, "--import") for file in imports]
    return {
        name: value
        for module in modules
        for name, value in vars(module).items()
        if callable(value) and getattr(value, "__module__", None) == module.__name__
    }


def _from_function(spec: str, num_classes: int, image_size: tuple[int, int] | None) -> keras.Model:
    place, _, name = spec.rpartition(":")
    if place.endswith(".py"):
        module = _load_file(place, "--model")
    else:
        try:
            module = importlib.import_module(place)
        except ModuleNotFoundError as error:
            raise ModelError(f"--model {spec}: there is no module {place} ({error})") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise ModelError(f"--model {spec}: {place} has no function {name}")
    model = function(**_accepted(function, {"num_classes": num_classes, "image_size": image_size}))
    if not isinstance(model, keras.Model):
        raise ModelError(f"--model {spec} gave a {type(model).__name__}, expected a keras.Model")
    if not model.built:
        size = image_size or DEFAULT_SIZE
        model(keras.KerasTensor((1, *size, 3), "float32"))
    return model


def _accepted(function: Callable[..., Any], offered: Mapping[str, Any]) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return {name: value for name, value in offered.items() if (takes_any or name in parameters) and value is not None}
