"""Finds the variables that an object of a user's code holds or uses.

    for address, variable in variables_in("model.helper", helper, Walk(model)):
        ...

An attribute may be a variable, a `keras.random.SeedGenerator`, a `tf.random.Generator`, a layer that Keras does not track, or
a plain object that has them. A function may use them by its closure, by arguments of `functools.partial`, or by the global
names in its code. Generators of numpy and Python are yielded, too.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from types import FunctionType, MethodType
from typing import Any, TypeGuard

import keras

from kresume.models import introspection, plain_generators

LIBRARIES = {"keras", "tensorflow", "tf_keras", "jax", "jaxlib", "torch", "numpy", "pandas", "scipy", "PIL", "kresume"}
LIBRARIES |= set(sys.stdlib_module_names) - {"__main__"}
"""Packages whose objects are not the user's."""
DEEPEST, MOST = 6, 10_000
"""How many objects may lie between a function and a variable, and the most items of a list in between."""
NOTHING = (str, bytes, int, float, complex, type(None))
"""Types of values that hold no variable. They do not count for a search's end."""
NO_NUMBERS = {"string", "resource", "variant"}
"""Types of variables that no backup can hold."""
MOST_LOOKED_AT = 200_000
"""Objects after which a search ends: the user's code may hold a whole data set."""


class Walk:
    """Remembers what was visited.

    Args:
        model: its layers are not looked into: Keras tracks their variables.
    """

    def __init__(self, model: keras.Model) -> None:
        self.seen = {id(layer) for layer in model._flatten_layers()} | {id(model.optimizer)}
        self.left = MOST_LOOKED_AT
        self._held: list[Any] = []  # an id is one object's only as long as that lives

    def visits(self, value: Any) -> bool:
        """Returns True the first time that it is called for an object."""
        first = id(value) not in self.seen
        self.seen.add(id(value))
        self._held.append(value)
        return first


def variables_in(
    address: str, content: Any, walk: Walk, depth: int = 0, by_code: bool = False
) -> Iterator[tuple[str, Any]]:
    """Yields variables, and generators of numpy and Python, with their addresses.

    Args:
        address: of the object.
        content: the object.
        walk: of one search.
        depth: how many objects were passed.
        by_code: True if a function led there: then a layer's trained weights are left out, which may be a large network's.
    """
    kind = type(content)  # `isinstance` would ask a proxy of the user's, which may raise
    if issubclass(kind, NOTHING) or kind.__module__ == "numpy" or depth > DEEPEST:
        return
    walk.left -= 1
    if walk.left < 0:
        return
    if issubclass(kind, keras.Variable) or _is_of_tensorflow(content) or plain_generators.is_generator(content):
        yield address, content
    elif issubclass(kind, keras.random.SeedGenerator) or _is_generator_of_tensorflow(kind):
        yield f"{address}.state", content.state
    elif issubclass(kind, (dict, list, tuple)) or _is_dictionary_of_tensorflow(content):
        if (by_code or depth) and len(content) > MOST:
            return
        for key, item in list(enumerate(content) if issubclass(kind, (list, tuple)) else content.items()):
            yield from variables_in(f"{address}[{key}]", item, walk, depth + 1, by_code)
    elif issubclass(kind, keras.Layer):
        if walk.visits(content):
            for index, variable in enumerate(_that_change(content, by_code)):
                yield f"{address}.variables[{index}]", variable
    elif issubclass(kind, partial):
        for name, item in (("func", content.func), ("args", content.args), ("keywords", content.keywords)):
            yield from variables_in(f"{address}.{name}", item, walk, depth + 1, True)
    elif issubclass(kind, MethodType):
        yield from variables_in(f"{address}.__self__", content.__self__, walk, depth + 1, by_code)
    elif issubclass(kind, FunctionType):
        if is_the_users(content.__module__) and walk.visits(content):
            yield from _used_by(address, content, walk, depth)
    elif is_the_users(kind.__module__) and not issubclass(kind, keras.optimizers.Optimizer) and walk.visits(content):
        for name, item in _attributes(content):
            yield from variables_in(f"{address}.{name}", item, walk, depth + 1, by_code)
        yield from used_by_methods(address, content, walk, depth)


def is_restored(value: Any) -> bool:
    """Tests for a variable or a generator, of those that are yielded."""
    kind = type(value)
    of_keras = issubclass(kind, (keras.Variable, keras.random.SeedGenerator))
    return (
        of_keras
        or _is_of_tensorflow(value)
        or _is_generator_of_tensorflow(kind)
        or plain_generators.is_generator(value)
    )


def _attributes(value: Any) -> list[tuple[str, Any]]:
    """Returns the attributes of an object, sorted by name, without those of TensorFlow's wrappers."""
    found = introspection.attributes_of(value).items()
    return sorted((each for each in found if not each[0].startswith("_self_")), key=lambda pair: pair[0])


def used_by_methods(address: str, value: Any, walk: Walk, depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Yields the variables that the code of an object's methods uses; only of the user's classes."""
    for kind in type(value).__mro__:
        for name, member in sorted(vars(kind).items()) if is_the_users(kind.__module__) else ():
            if isinstance(member, FunctionType) and walk.visits(member):
                yield from _used_by(f"{address}.{name}", member, walk, depth)


def _used_by(address: str, function: FunctionType, walk: Walk, depth: int) -> Iterator[tuple[str, Any]]:
    """Yields the variables of a function's closure and of the global names in its code."""
    for name, value in introspection.used_by(function).items():
        if not issubclass(type(value), type):
            yield from variables_in(f"{address}: {name}", value, walk, depth + 1, True)


def _that_change(layer: keras.Layer, by_code: bool) -> Sequence[Any]:
    """Returns the variables of a layer that training may change."""
    weights = {id(variable) for variable in layer.weights}
    if not layer.trainable:
        return [variable for variable in layer.variables if id(variable) not in weights]
    found: Sequence[Any] = layer.non_trainable_variables if by_code else layer.variables
    return found


def is_the_users(module: str | None) -> bool:
    """Tests whether a module is of none of the packages that a training uses."""
    return (module or "").partition(".")[0] not in LIBRARIES


def is_list(value: Any) -> TypeGuard[Sequence[Any]]:
    """Tests for a list or a tuple."""
    return isinstance(value, (list, tuple))


def _is_dictionary_of_tensorflow(value: Any) -> bool:
    """Tests for what TensorFlow makes of a dictionary that is an attribute of a model."""
    return type(value).__module__.startswith("tensorflow.") and isinstance(value, Mapping)


def _is_of_tensorflow(value: Any) -> bool:
    """Tests for a `tf.Variable` of numbers, without importing TensorFlow."""
    if not type(value).__module__.startswith("tensorflow."):
        return False
    dtype = getattr(getattr(value, "dtype", None), "name", "")
    return hasattr(value, "assign") and hasattr(value, "read_value") and dtype not in NO_NUMBERS


def _is_generator_of_tensorflow(kind: type) -> bool:
    """Tests for `tf.random.Generator` and classes that are derived from it, without importing TensorFlow."""
    random = getattr(sys.modules.get("tensorflow"), "random", None)
    return random is not None and issubclass(kind, random.Generator)
