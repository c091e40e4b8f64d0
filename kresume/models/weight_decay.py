"""Leaves variables out of weight decay, as `optimizer.exclude_from_weight_decay` of Keras does.

    left_out(model.optimizer, model)              # ("conv/bias", "head/bias"), addresses in the model
    mark(optimizer, ("conv/bias", "head/bias"))
    settle(optimizer, model)                      # before the optimizer trains

No file of Keras holds what was left out: `get_config` does not return it. Here it is one more setting of an optimizer,
under `KEY`: the addresses of the variables (`structure.address_of`), which a rebuilt model keeps. Keras itself searches
names that differ between backends and change when a model is rebuilt.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import keras

from kresume.backend import live_state
from kresume.errors import ModelError, UsageError
from kresume.models import structure
from kresume.spelling import option
from kresume.values.state import UNDECAYED, SavedOptimizer

KEY = UNDECAYED
NONE = "none"


def left_out(optimizer: Any, model: Any | None = None) -> tuple[str, ...] | None:
    """Returns the addresses of the variables that an optimizer leaves out of weight decay.

    Args:
        optimizer: of Keras, wrapped for loss scaling or not, built or not.
        model: the model that a user's optimizer trains: it knows variables, and a model has addresses.

    Returns:
        None if nothing says what is left out.
    """
    inner = live_state.inner(optimizer)
    marked = getattr(inner, "kresume_undecayed", None)
    if marked is not None:
        return tuple(marked)
    pattern = getattr(inner, "_exclude_from_weight_decay_pattern", None)
    if model is None or not (pattern is not None or getattr(inner, "_exclude_from_weight_decay", None)):
        return None
    addresses = structure.address_of(model)
    of_tensorflow = (
        keras.config.backend() == "tensorflow"
    )  # Keras hands over TensorFlow's variable, which has another name
    return tuple(
        addresses[id(weight)].name
        for weight in structure.can_train(model)
        if not inner._use_weight_decay(weight.value if of_tensorflow else weight)
    )


def mark(optimizer: Any, addresses: Iterable[str]) -> None:
    """Says what an optimizer leaves out; `settle` must follow before it trains."""

    def decays(variable: Any) -> bool:
        raise ModelError("this optimizer does not know its model yet: a bug of kresume")

    inner = live_state.inner(optimizer)
    inner.kresume_undecayed = tuple(addresses)
    inner._use_weight_decay = decays


def settle(optimizer: Any, model: Any) -> None:
    """Lets an optimizer that was marked leave out the variables of a model.

    Keras's own method raises once the optimizer is built, and takes variables, which a rebuilt model has anew.

    Args:
        optimizer: built on weights of the model, or not built yet.
        model: built.
    """
    inner = live_state.inner(optimizer)
    marked = frozenset(getattr(inner, "kresume_undecayed", None) or ())
    if not marked:
        inner.__dict__.pop("_use_weight_decay", None)
        return
    addresses = structure.address_of(model)
    # TensorFlow hands over its own variable.
    spared = {inner._var_key(weight) for weight in model.weights if addresses[id(weight)].name in marked}
    inner._use_weight_decay = lambda variable: inner._var_key(variable) not in spared


def as_compiled(saved: SavedOptimizer, own: SavedOptimizer | None, asked: str | None = None) -> SavedOptimizer:
    """Returns a checkpoint's optimizer that leaves out what the function of the user's model leaves out.

    Args:
        saved: the checkpoint's.
        own: the one that the function compiles, if any.
        asked: the class to which it will change, if any.
    """
    if own is None or own.class_name != (asked or saved.class_name) or KEY in (saved.config or {}):
        return saved
    names = (own.config or {}).get(KEY)
    return replace(saved, config={**(saved.config or {}), KEY: names}) if names else saved


def find(given: Sequence[str], model: Any) -> list[str]:
    """Returns the addresses of the weights whose paths hold a text.

    Args:
        given: parts of paths, as regular expressions; several in one are separated by commas. `none` finds nothing.
        model: built.

    Raises:
        UsageError: a text is not a regular expression, or no path holds it.
    """
    addresses, weights = structure.address_of(model), structure.can_train(model)
    found: set[str] = set()
    for text in (part.strip() for each in given for part in ([each] if "{" in each else each.split(","))):
        if text in {"", NONE}:
            continue
        shown = option("exclude-from-weight-decay", text)
        try:
            here = {addresses[id(weight)].name for weight in weights if re.search(text, weight.path)}
        except re.error as error:
            raise UsageError(f"{shown}: this is no regular expression ({error})") from error
        if not here:
            some = ", ".join(weight.path for weight in weights[:6])
            raise UsageError(f"{shown}: no weight's path holds this; there are {some}{' ...' * (len(weights) > 6)}")
        found |= here
    return sorted(found)


def equal_decay(stored: SavedOptimizer | None, decay: float) -> float:
    """Converts a decay inside the gradient, which SGD's momentum accumulates, to an equal decoupled decay.

    Args:
        stored: the optimizer that had it, as far as it is known.
        decay: the decay inside the gradient.
    """
    momentum = float((stored.config or {}).get("momentum", 0.0)) if stored else 0.0
    return decay / (1.0 - momentum)
