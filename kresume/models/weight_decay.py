"""Leaves variables out of weight decay, as `optimizer.exclude_from_weight_decay` of Keras does.

    excluded(model.optimizer, model.trainable_variables)     # ("bias", "=head/gamma")
    exclude(optimizer, ("bias", "=head/gamma"))

No file of Keras holds what was left out: `get_config` does not return it. Here it is one more setting of an optimizer,
under `KEY`: a part of a variable's name as Keras takes it (a regular expression), or `=` and the path of one variable.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from kresume.backend import live_state
from kresume.errors import UsageError
from kresume.spelling import option
from kresume.values.state import UNDECAYED, SavedOptimizer

KEY = UNDECAYED
EXACT = "="
"""Begins the path of one variable."""


def excluded(optimizer: Any, weights: Iterable[Any] = ()) -> tuple[str, ...]:
    """Returns what an optimizer leaves out of weight decay; empty if it decays every variable.

    Args:
        optimizer: of Keras, wrapped for loss scaling or not, built or not.
        weights: the variables that the user may have named one by one; Keras keeps no more than their ids.
    """
    inner = live_state.inner(optimizer)
    own = getattr(inner, "kresume_undecayed", None)
    if own is not None:
        return tuple(own)
    ids = getattr(inner, "_exclude_from_weight_decay", None) or set()
    pattern = getattr(inner, "_exclude_from_weight_decay_pattern", None)
    paths = {EXACT + weight.path for weight in weights if inner._var_key(weight) in ids}
    return (*sorted(_parts(pattern.pattern) if pattern is not None else ()), *sorted(paths))


def _parts(pattern: str) -> Sequence[str]:
    """Splits the pattern that Keras joins from names, in an order that changes with each process."""
    return (pattern,) if set(pattern) & set("()[]\\") else pattern.split("|")


def exclude(optimizer: Any, names: Iterable[str]) -> None:
    """Leaves variables out of weight decay, whether the optimizer is built or not.

    Args:
        optimizer: of Keras, wrapped for loss scaling or not.
        names: what `excluded` returns.

    Raises:
        UsageError: a name is not a regular expression.
    """
    inner, names = live_state.inner(optimizer), tuple(names)
    left_out = _matcher(names)
    decayed: dict[Any, bool] = {}

    def decays(variable: Any) -> bool:
        # TensorFlow hands over its own variable, which has no path.
        if not decayed:
            decayed.update({inner._var_key(weight): not left_out(weight) for weight in inner._trainable_variables})
        return decayed.get(inner._var_key(variable), True)

    # Keras's own method raises once the optimizer is built, and takes variables that a rebuilt model has anew.
    inner._use_weight_decay = decays
    inner.kresume_undecayed = names


def as_compiled(saved: SavedOptimizer, own: SavedOptimizer | None) -> SavedOptimizer:
    """Returns a checkpoint's optimizer that leaves out what the function of the user's model leaves out.

    Args:
        saved: the checkpoint's.
        own: the one that the function compiles, if any.
    """
    names = (own.config or {}).get(KEY) if own is not None and own.class_name == saved.class_name else None
    if not names or KEY in (saved.config or {}):
        return saved
    return replace(saved, config={**(saved.config or {}), KEY: names})


def _matcher(names: Sequence[str]) -> Callable[[Any], bool]:
    """Returns a function that tests whether a variable of Keras is left out."""
    exact = {name.removeprefix(EXACT) for name in names if name.startswith(EXACT)}
    parts = [_compiled(name) for name in names if not name.startswith(EXACT)]
    return lambda weight: weight.path in exact or any(part.search(weight.name) for part in parts)


def _compiled(name: str) -> re.Pattern[str]:
    try:
        return re.compile(name)
    except re.error as error:
        raise UsageError(
            f"{option('exclude-from-weight-decay', name)}: this is no regular expression ({error})"
        ) from error


def count(names: Iterable[str], weights: Iterable[Any]) -> int:
    """Returns how many variables the names leave out."""
    return sum(map(_matcher(tuple(names)), weights))
