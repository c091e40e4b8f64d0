"""Reads and sets the state of generators of numpy and Python that a user's code makes.

    if is_generator(value):
        state = state_of(value)         # JSON
        set_state(value, state)

The global ones (`np.random.seed`, `random.seed`) are not among them.
"""

from __future__ import annotations

import base64
import random
from collections.abc import Mapping
from typing import Any

import numpy as np


def is_generator(value: Any) -> bool:
    """Tests for a generator whose state can be read, other than the global ones."""
    kind = type(value)  # `isinstance` would ask a proxy of the user's, which may raise
    if issubclass(kind, random.Random):
        return not issubclass(kind, random.SystemRandom) and value is not vars(random).get("_inst")
    return issubclass(kind, (np.random.Generator, np.random.RandomState)) and key_of(value) != _of_all()


def key_of(value: Any) -> int:
    """Returns a key that two generators share if they draw from one state."""
    source = value if isinstance(value, random.Random) else _source(value)
    return id(source)


def state_of(value: Any) -> Any:
    """Returns the state of a generator as JSON."""
    if isinstance(value, random.Random):
        version, words, gauss = value.getstate()
        return {"python": [version, list(words), gauss]}
    state = value.get_state(legacy=False) if isinstance(value, np.random.RandomState) else _source(value).state
    return {"numpy": _packed(state)}


def set_state(value: Any, state: Mapping[str, Any]) -> bool:
    """Sets the state that `state_of` returned; returns False if it is of another kind of generator."""
    of_python = isinstance(value, random.Random)
    if of_python != ("python" in state):
        return False
    try:
        if of_python:
            version, words, gauss = state["python"]
            value.setstate((version, tuple(words), gauss))
        elif isinstance(value, np.random.RandomState):
            value.set_state(_unpacked(state["numpy"]))
        else:
            _source(value).state = _unpacked(state["numpy"])
    except (TypeError, ValueError):  # the script uses another algorithm now
        return False
    return True


def _source(value: Any) -> Any:
    """Returns the bit generator, which several generators may share."""
    return value._bit_generator if isinstance(value, np.random.RandomState) else value.bit_generator


def _of_all() -> int:
    generator: Any = np.random.get_bit_generator()  # type: ignore[attr-defined]  # of numpy 1.24 and later
    return id(generator)


def _packed(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _packed(item) for name, item in value.items()}
    if isinstance(value, np.ndarray):
        return {"array": base64.b64encode(value.tobytes()).decode(), "dtype": value.dtype.str}
    return value.item() if isinstance(value, np.generic) else value


def _unpacked(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if set(value) == {"array", "dtype"}:
        return np.frombuffer(base64.b64decode(value["array"]), value["dtype"]).copy()
    return {name: _unpacked(item) for name, item in value.items()}
