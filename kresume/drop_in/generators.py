"""Captures and restores the global generators of Python and numpy, from which callbacks may draw.

    state = capture()           # JSON
    restore(state)

`keras.utils.set_random_seed` seeds both. Keras itself draws from them: it shuffles a `keras.utils.PyDataset` by `random`
and, under JAX, arrays by numpy.
"""

from __future__ import annotations

import base64
import random
from collections.abc import Mapping
from typing import Any

import numpy as np

WORDS = "<u4"
"""Type of the words of a state, as both keep them."""


def capture() -> dict[str, Any]:
    """Returns the state of both as JSON; without numpy's if that is not of its default kind."""
    version, words, gauss = random.getstate()
    found: dict[str, Any] = {"python": [version, _packed(words), gauss]}
    if (state := _of_numpy()) is not None:
        inner = state["state"]
        found["numpy"] = [_packed(inner["key"]), int(inner["pos"]), int(state["has_gauss"]), float(state["gauss"])]
    return found


def restore(state: Mapping[str, Any] | None) -> None:
    """Sets both generators to what `capture` returned; does nothing for a backup of an earlier version.

    Args:
        state: the state, None if the backup has none.
    """
    if not state:
        return
    version, words, gauss = state["python"]
    random.setstate((version, tuple(_unpacked(words).tolist()), gauss))
    if "numpy" in state and _of_numpy() is not None:
        keys, *others = state["numpy"]
        np.random.set_state(("MT19937", _unpacked(keys), *others))


def after_shuffle(state: Mapping[str, Any], length: int) -> dict[str, Any]:
    """Returns a state as it is after Keras shuffled a `PyDataset` by Python's generator.

    Args:
        state: what `capture` returned before.
        length: the number of batches.
    """
    version, words, gauss = state["python"]
    generator = random.Random()
    generator.setstate((version, tuple(_unpacked(words).tolist()), gauss))
    generator.shuffle(list(range(length)))
    version, after, gauss = generator.getstate()
    return {**state, "python": [version, _packed(after), gauss]}


def _of_numpy() -> Any:
    """Returns the state of numpy's generator; None if another kind than its default is in use."""
    state: Any = np.random.get_state(legacy=False)
    return state if state["bit_generator"] == "MT19937" else None


def _packed(words: Any) -> str:
    return base64.b64encode(np.asarray(words, WORDS).tobytes()).decode()


def _unpacked(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), WORDS).astype(np.uint32)
