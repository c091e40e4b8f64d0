"""Checks that a model of the user's code is the model that Keras records of it.

    check_recorded(model, (64, 64), code_of(options), "mymodel.py:build")

A run holds the architecture of its model and not its code: continued, extended and served is what Keras builds from that
record. A class whose `get_config` leaves an argument out, or a regularizer that was set after its layer was built, gives
another model then, without a message.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np

from kresume.backend import live_state
from kresume.errors import ModelError
from kresume.models import architecture, build, structure
from kresume.models.own_code import as_model_error, last_line
from kresume.models.shapes import build_once, input_shape_of
from kresume.spelling import option

PLAIN = (bool, int, float, str, type(None))
"""Types of settings that can be compared."""
KERAS = ("keras", "keras_hub", "keras_nlp", "keras_cv")
MOST = 3


def check_recorded(
    model: keras.Model, size: tuple[int, int], imports: Sequence[str], spec: str, trust: bool = False
) -> None:
    """Raises if a model that is built again from its record is another one.

    Args:
        model: built by the user's function; its variables stay as they are.
        size: `(height, width)` of the pictures.
        imports: files with its classes.
        spec: value of `--model`, for messages.
        trust: run code that the record holds (Lambda layers).

    Raises:
        ModelError: it cannot be built again, or differs; the message says in what, and what to do.
    """
    shape = input_shape_of(model)
    if not isinstance(shape, tuple):
        return  # several inputs: refused elsewhere
    open_sides = iter(size)
    sizes = tuple(side or next(open_sides, 3) for side in shape[1:])
    with live_state.random_kept():
        try:
            again = build.from_architecture(copy.deepcopy(architecture.serialize(model)), imports, trust=trust)
            if not again.built:
                build_once(again, size, option("model", spec))
        except (ModelError, NotImplementedError, TypeError, ValueError) as error:
            reason = last_line(error.__cause__ or error)
            raise ModelError(
                f"{option('model', spec)}: Keras cannot build this model again from its record, so a run could not continue "
                f"({reason}): let get_config of your classes return every argument of their constructors"
            ) from error
        found = list(_differences(model, again, sizes))
    if found:
        more = f"; and {len(found) - MOST} more" if len(found) > MOST else ""
        raise ModelError(
            f"{option('model', spec)}: the model that Keras builds again from its record is another one, and a run would "
            f"continue with that: {'; '.join(found[:MOST])}{more}"
        )


def _differences(model: keras.Model, again: keras.Model, sizes: tuple[int, ...]) -> Iterator[str]:
    mine, theirs = ([tuple(variable.shape) for variable in each.variables] for each in (model, again))
    if mine != theirs:
        yield (
            f"it has other weights ({len(theirs)} with {again.count_params():,} numbers, not {len(mine)} with "
            f"{model.count_params():,}): let get_config return every argument that decides about them"
        )
        return
    yield from _settings(model, again)
    addresses = structure.address_of(model)
    for one, other in zip(model.variables, again.variables, strict=True):
        if _described(one.regularizer) != _described(other.regularizer):
            yield (
                f"{addresses[id(one)].name} has the regularizer {_described(other.regularizer)}, not "
                f"{_described(one.regularizer)}: give it to the layer as an argument, because Keras ignores it later"
            )
    difference = _answers_apart(model, again, sizes)
    if difference:
        yield (
            f"its answers differ by up to {difference:.1e} with the same weights: let get_config of your classes return every "
            "argument"
        )


def _settings(model: keras.Model, again: keras.Model) -> Iterator[str]:
    """Yields the settings of the user's own layers that differ.

    A setting is an attribute with the name of an argument of the constructor.
    """
    others = {position: layer for layer, position, _ in structure.visited(again)}
    for layer, position, name in structure.visited(model):
        other = others.get(position)
        if other is None or type(layer).__module__.partition(".")[0] in KERAS:
            continue
        for key in inspect.signature(type(layer).__init__).parameters:
            value, now = (getattr(each, key, None) for each in (layer, other))
            if key != "name" and isinstance(value, PLAIN) and repr(now) != repr(value):
                yield (
                    f"{name or model.name}: {key} is {now!r}, not {value!r}: let get_config of {type(layer).__name__} return "
                    f"it, and its constructor take it"
                )


def _described(regularizer: Any) -> str:
    if regularizer is None:
        return "none"
    config = keras.saving.serialize_keras_object(regularizer)
    return f"{config['class_name']}({config['config']})" if isinstance(config, dict) else str(config)


def _answers_apart(model: keras.Model, again: keras.Model, sizes: tuple[int, ...]) -> float:
    """Returns the largest difference of the answers with the same variables; 0 if it is rounding."""
    arrays = [live_state.host_array(variable.value).copy() for variable in model.variables]
    live_state.assign(again.variables, arrays)
    images = np.random.default_rng(0).random((2, *sizes), "float32")
    with as_model_error(f"calling the model {model.name} on images of the shape {sizes}"):
        one, other = (_flat(each(images, training=False)) for each in (model, again))
    live_state.assign(model.variables, arrays)  # of seed generators, which draw in some models also here
    if one.shape != other.shape:
        return float("inf")
    with np.errstate(invalid="ignore"):
        difference = np.nan_to_num(np.abs(one - other))
    scale = np.nan_to_num(np.abs(one)).max(initial=1e-6)
    return float(difference.max(initial=0)) if difference.max(initial=0) > 1e-3 * scale else 0.0


def _flat(outputs: Any) -> np.ndarray:
    leaves = [np.asarray(keras.ops.convert_to_numpy(each), "float64").ravel() for each in keras.tree.flatten(outputs)]
    return np.concatenate(leaves)
