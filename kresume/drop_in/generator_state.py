"""Finds what the generators of `Dataset.from_generator` keep from one epoch to the next.

    changed_by_generators(data)         # ["state", "self.count", "rng"]; empty for a generator that begins alike each time

A generator may count its epochs in a global name, a closure or an attribute, or draw from a random generator of its own. A
process that continues has run none of the earlier epochs, so all of these begin anew.
"""

from __future__ import annotations

import inspect
import os
import random
import sys
from collections.abc import Iterator
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import numpy as np

from kresume.drop_in import caches, seed_states
from kresume.models.introspection import attributes_of, attributes_written_by, names_written_by, used_by

MOVING = (np.random.Generator, np.random.RandomState, random.Random, Iterator)
"""Kinds of objects that change whenever they are drawn from."""
OF_TENSORFLOW = "_GeneratorState"
"""The class in which TensorFlow keeps the user's generator."""
GENERATES = inspect.CO_GENERATOR
"""Marks the code of a generator function."""
DEPTH = 4
"""How far functions are followed that call others."""


def changed_by_generators(data: Any) -> list[str]:
    """Names what generators in a `tf.data.Dataset` change beside their own variables, sorted.

    Args:
        data: any data of `fit`; only datasets of TensorFlow are looked at.
    """
    found: set[str] = set()
    for generator in _generators(data):
        found |= _changed(generator, DEPTH)
    return sorted(found)


def _generators(data: Any) -> Iterator[Any]:
    for each in seed_states.functions(data):
        yield from _within(getattr(each, "_func", None), DEPTH)
    for part in caches._inputs(data):
        yield from _generators(part)


def _within(value: Any, depth: int) -> Iterator[Any]:
    """Yields the generators to which a function refers: TensorFlow's own, or one of the user's."""
    if type(value).__name__ == OF_TENSORFLOW:
        yield value._generator
    elif hasattr(value, "element_spec") and hasattr(value, "cardinality"):
        yield from _generators(value)
    elif isinstance(value, FunctionType) and value.__code__.co_flags & GENERATES:
        yield value
    elif depth:
        for each in seed_states.referred(value):
            yield from _within(each, depth - 1)


def _changed(value: Any, depth: int) -> set[str]:
    """Names what a function and those that it calls change."""
    if isinstance(value, partial):
        moving = {f"an argument of {type(each).__name__}" for each in value.args if isinstance(each, MOVING)}
        moving |= {name for name, each in value.keywords.items() if isinstance(each, MOVING)}
        return moving | _changed(value.func, depth)
    if isinstance(value, MethodType):
        return _of_object(value.__self__, depth) | _changed(value.__func__, depth)
    if not isinstance(value, FunctionType):
        return set() if isinstance(value, type) else _of_object(value, depth)
    used = used_by(value)
    found = {name for name, each in used.items() if isinstance(each, MOVING)}
    found |= names_written_by(value) & (used.keys() | value.__globals__.keys())
    for each in used.values() if depth else ():
        if _is_own(each):
            found |= _changed(each, depth - 1)
    return found


def _is_own(value: Any) -> bool:
    """Tests for a function of the user's, not of a library."""
    function = value.func if isinstance(value, partial) else getattr(value, "__func__", value)
    path = function.__code__.co_filename if isinstance(function, FunctionType) else sys.prefix
    return "site-packages" not in path and not path.startswith((sys.prefix, os.path.dirname(os.__file__)))


def _of_object(held: Any, depth: int) -> set[str]:
    """Names the attributes that the methods of an object change."""
    methods = [each for kind in type(held).__mro__ for each in vars(kind).values() if isinstance(each, FunctionType)]
    if type(held).__module__.split(".")[0] in {"tensorflow", "keras", "numpy", "builtins"}:
        return set()
    attributes = attributes_of(held)
    written = attributes_written_by(each for each in methods if each.__name__ != "__init__") & attributes.keys()
    moving = {name for name, each in attributes.items() if isinstance(each, MOVING)}
    others = set().union(*(_changed(each, depth - 1) for each in methods)) if depth else set()
    return {f"self.{name}" for name in written | moving} | others
