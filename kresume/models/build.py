"""Builds a model by name, with a user's function, or from a checkpoint's architecture.

    model = build_model("convnet", state=None, num_classes=10, image_size=(64, 64))
    model = build_model(None, state=read_checkpoint("model.keras"), num_classes=10, image_size=None)
    model = build_model("mymodel.py:build", state=state, num_classes=10, image_size=None)

Built-in models contain their Rescaling and expect `0-255`. Weights are freshly initialised; `restore.py` fills them.
"""

from __future__ import annotations

import difflib
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras

from kresume.backend import live_state
from kresume.backend.keras_settings import channels_last
from kresume.checkpoints import content, keras_2, keras_file, legacy_h5, saved_model
from kresume.checkpoints.layouts import names_of
from kresume.errors import ModelError
from kresume.models import architecture, structure
from kresume.models.freeze import freeze_as_saved
from kresume.models.hub import HUB, from_preset, is_classifier, require_for
from kresume.models.new_head import new_head
from kresume.models.own_code import call_function, innermost, is_function, last_line, run_files
from kresume.models.precision import with_precision
from kresume.models.pretrained import applications, untrained
from kresume.models.recompile import compile_alike, compile_as
from kresume.models.shapes import build_once
from kresume.options.model_objects import is_object, model_of
from kresume.options.resolve import default_image_size
from kresume.options.settings import DEFAULTS
from kresume.spelling import option
from kresume.values.state import TrainState

MOST_NAMED = 6


def build_model(
    spec: str | None,
    *,
    state: TrainState | None,
    num_classes: int | None,
    image_size: tuple[int, int] | None,
    imports: Sequence[str] = (),
    precision: str | None = None,
    trust: bool = False,
) -> keras.Model:
    """Builds the model that a spec or a checkpoint describes.

    Args:
        spec: `convnet`, `applications:NAME`, `hub:PRESET`, `file.py:function`, `package.module:function`, a file that
            holds an architecture (`.json`, `.keras`, a full `.h5`), or the name of an object that Python gave; None means the
            checkpoint's architecture, else `convnet`.
        state: the checkpoint; None for a new model.
        num_classes: number of outputs of a new head; None uses the default of the user's function.
        image_size: `(height, width)` in pixels; None uses the model's own.
        imports: Python files to run first; they register custom objects with Keras.
        precision: dtype policy that replaces the layers' own. A user's function uses the global policy.
        trust: run code that an architecture holds (Lambda layers).

    Returns:
        A built model, compiled if the user's function compiles it or what `spec` names holds a compiled model.

    Raises:
        ModelError: the model cannot be built; the message says what to give.
    """
    own = run_files(imports)
    if spec is None:
        if state is not None and state.architecture is not None:
            model = from_config(state.architecture, own, precision, trust, state.writer)
            build_once(model, image_size or default_image_size(), state.source)
            freeze_as_saved(model, state)
            return model
        if state is not None:
            skeleton = (
                f", or start from a skeleton of its layers: kresume inspect {state.source} --write-model model.py"
                if names_of(state).skeleton
                else ""
            )
            raise ModelError(
                f"{state.source} holds variables but no architecture: give the model that wrote it, for example "
                f"{option('model', 'mymodel.py:build')}{skeleton}"
            )
        spec = DEFAULTS.model
    size = image_size or default_image_size()
    if is_object(spec):
        return _from_object(spec, own, precision, trust, size)
    if spec == "convnet":
        return convnet(_required(num_classes, spec), size)
    if spec.startswith("applications:"):
        return untrained(spec.partition(":")[2], _required(num_classes, spec), size)
    if spec.startswith(HUB):
        return from_preset(spec.removeprefix(HUB), _required(num_classes, spec), image_size, weights=False)[0]
    if spec.endswith((".json", ".keras", ".h5", ".hdf5")) or saved_model.accepts(spec) or _is_file(spec):
        config = _architecture_of(Path(spec))
        model = from_config(config, own, precision, trust, holder=spec)
        compile_as(model, config.get("compile_config"), own, fresh=state is None)
        return model
    if is_function(spec):
        return _from_function(spec, num_classes, image_size)
    if near := difflib.get_close_matches(spec.lower(), names := {name.lower(): name for name in applications()}, 1):
        raise ModelError(f"{option('model', spec)}: did you mean applications:{names[near[0]]}?")
    raise ModelError(
        f"{option('model', spec)}: use convnet, applications:NAME, hub:PRESET, file.py:function, package.module:function, or a "
        ".json, .keras or .h5 file or a SavedModel of Keras 2 with an architecture"
    )


def from_architecture(
    config: Mapping[str, Any],
    imports: Sequence[str] = (),
    *,
    precision: str | None = None,
    trust: bool = False,
    writer: str = "",
) -> keras.Model:
    """Builds an uncompiled model from the result of `keras.saving.serialize_keras_object(model)`.

    Args:
        config: the serialized model. Code in it is not run without `trust`.
        imports: Python files to run first; they register custom objects with Keras.
        precision: dtype policy that replaces the layers' own.
        trust: run code that the architecture holds (Lambda layers).
        writer: library and version that wrote the file (`"keras 3.9.0"`), for messages.

    Raises:
        ModelError: Keras does not know one of its classes, or the architecture holds a Lambda layer.
    """
    return from_config(config, run_files(imports), precision, trust, writer)


def from_config(
    config: Mapping[str, Any],
    own: Mapping[str, Any],
    precision: str | None,
    trust: bool,
    writer: str = "",
    holder: str = "the checkpoint",
) -> keras.Model:
    """Builds an uncompiled model from its serialized configuration.

    Args:
        config: the serialized model.
        own: custom classes by name.
        precision: dtype policy that replaces the layers' own.
        trust: run code that the configuration holds.
        writer: see `from_architecture`.
        holder: where the configuration comes from, for messages.

    Raises:
        ModelError: it cannot be built; the message says what to give.
    """
    require_for(config, holder)
    if precision is not None:
        config = with_precision(config, precision)
    if is_classifier(config):
        config = {**config, "config": {**config["config"], "compile": False}}  # it would compile itself
    try:
        with keras.saving.custom_object_scope(own), warnings.catch_warnings():
            # `build_once` reports the reason; this warning does not.
            warnings.filterwarnings("ignore", message="Model .* had a build config")
            model = keras.saving.deserialize_keras_object({**config, "compile_config": None}, safe_mode=not trust)
    except Exception as error:  # custom classes may raise anything
        later = f", written by {writer} (installed: keras {keras.__version__})," if _is_later(writer) else ""
        raise ModelError(
            f"the architecture in {holder}{later} cannot be built ({last_line(error)}): {_hint(error)}build it from your code "
            f"with {option('model', 'FILE.py:FUNCTION')}"
        ) from error
    if not isinstance(model, keras.Model):
        raise ModelError(f"the architecture in {holder} is a {type(model).__name__}, expected a keras.Model")
    architecture.complete(model, config)
    return model


def _hint(error: Exception) -> str:
    """Returns a hint for the most common reasons why Keras cannot build a model."""
    reason = innermost(error).lower()
    if "lambda" in reason:
        return f"the code of a Lambda layer runs only with {option('trust', True)}, for a file that you trust; or "
    unknown = ("could not locate", "unknown layer", "unknown object", "custom", "get_config", "from_config")
    custom = any(part in reason for part in unknown)
    return f"register custom classes with {option('import', 'FILE.py')}, or " if custom else ""


def _is_later(writer: str) -> bool:
    name, _, version = writer.partition(" ")
    numbers = [[int(part) for part in text.split(".")[:2] if part.isdigit()] for text in (version, keras.__version__)]
    return name == "keras" and numbers[0] > numbers[1]


@channels_last()
def convnet(num_classes: int, image_size: tuple[int, int]) -> keras.Model:
    """Builds a small convolutional network that expects `0-255`.

    It suits a few hundred to a few thousand pictures on a CPU. Blocks of convolution, batch normalization and pooling
    repeat until the feature map is about 6 pixels wide. Global average pooling and one output layer follow.

    Args:
        num_classes: number of outputs, at least 2.
        image_size: `(height, width)` in pixels, at least 8.

    Raises:
        ModelError: the image size is too small.
    """
    if min(image_size) < 8:
        raise ModelError(f"{option('image-size', '{}x{}'.format(*image_size))}: convnet needs at least 8x8 pixels")
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
    outputs = new_head(num_classes)(x)
    return keras.Model(inputs, outputs, name="convnet")


def _architecture_of(path: Path) -> Mapping[str, Any]:
    """Reads the architecture that a file holds, with its compile config if it has one."""
    given = option("model", str(path))
    if saved_model.accepts(str(path)):
        inside = saved_model.read_architecture(str(path))
        if inside is None:
            raise ModelError(f"{given} is a SavedModel without Keras's metadata: it holds operations, not layers")
        return inside
    if not path.is_file():
        raise ModelError(f"{given}: the file does not exist")
    kind = content.kind_of(path)
    if kind == "keras-archive" or (kind is None and path.suffix == ".keras"):
        return keras_file.read_architecture(str(path))
    if kind == "hdf5" or (kind is None and path.suffix in {".h5", ".hdf5"}):
        found = legacy_h5.read(str(path)) if legacy_h5.accepts(str(path)) or kind is None else None
        if found is None or found.architecture is None:
            raise ModelError(f"{given} holds weights, but no architecture")
        return {**found.architecture, "compile_config": found.compiled}
    if kind is not None:
        raise ModelError(f"{given} holds variables, but no architecture ({kind}): give it as {option('from')}")
    try:
        return keras_2.from_json(json.loads(path.read_text(encoding="utf-8")), str(path))
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{given} holds no architecture that can be read ({error})") from error


def _is_file(spec: str) -> bool:
    """Returns True if the spec names an existing file other than Python code."""
    return Path(spec).is_file() and not spec.endswith(".py")


def _required(num_classes: int | None, spec: str) -> int:
    if num_classes is None:
        raise ModelError(
            f"{option('model', spec)}: the number of classes is unknown: give {option('classes', 'a,b,c')}"
        )
    return num_classes


def _from_object(
    spec: str, own: Mapping[str, Any], precision: str | None, trust: bool, size: tuple[int, int]
) -> keras.Model:
    """Builds a model like the user's object, with its weights, compiled alike; the object stays as it is.

    Its classes must be registered with Keras, as for `load_model`: the run has to build it again without the object.
    """
    given, said = model_of(spec), option("model", spec)
    if given is None:
        raise ModelError(
            f"{said} is a model that a Python program had in memory: give it there as model=, or name what builds it, "
            f"{option('model', 'file.py:function')} for example"
        )
    model = from_config(architecture.serialize(given), own, precision, trust, holder="model=")
    build_once(model, size, said)
    if given.built:
        for variable, value in _paired(model, given):
            variable.assign(live_state.host_array(value.value))
    if given.compiled:
        compile_alike(model, given, own)
    return model


def _paired(model: keras.Model, given: keras.Model) -> list[tuple[Any, Any]]:
    """Returns the weights of a model, each with that of the object that it was built like.

    Raises:
        ModelError: one has weights that the other lacks, those of a layer that its `call` does not use for example.
    """
    mine, theirs = (
        {addresses[id(variable)].position: variable for variable in each.weights}
        for each, addresses in ((model, structure.address_of(model)), (given, structure.address_of(given)))
    )
    if differing := mine.keys() ^ theirs.keys():
        named = sorted(str(theirs[place].path if place in theirs else mine[place].path) for place in differing)
        has = "the object alone has" if differing <= theirs.keys() else "the object does not have"
        raise ModelError(
            f"model=: kresume builds the object again, from its configuration and one call on images, and {has} the weights "
            f"{', '.join(named[:MOST_NAMED])}: let its call use the layer, build all layers in __init__ or build, or remove it"
        )
    return [(variable, theirs[place]) for place, variable in mine.items()]


def _from_function(spec: str, num_classes: int | None, image_size: tuple[int, int] | None) -> keras.Model:
    model = call_function(spec, {"num_classes": num_classes, "image_size": image_size})
    if not isinstance(model, keras.Model):
        raise ModelError(f"{option('model', spec)} returned a {type(model).__name__}, expected a keras.Model")
    build_once(model, image_size or default_image_size(), option("model", spec))
    return model
