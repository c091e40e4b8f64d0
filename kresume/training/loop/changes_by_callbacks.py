"""Finds what the code of a callback changes beside the callback and the model.

    changed_by(callback)        # ["best", "data"]: global names and closures

A list that collects losses, a global count, a data set that is put into another order: no backup of a callback's attributes
holds them. The code is read, and not run.
"""

from __future__ import annotations

import dis
import itertools
import sys
from collections import deque
from collections.abc import Iterator, MutableMapping, MutableSequence, MutableSet
from dataclasses import dataclass
from functools import cache, partial
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import keras
import numpy as np

from kresume.models import found_variables, introspection

DEEPEST = 4
"""How many functions may lie between a callback's method and a change."""
CONTAINERS = (list, dict, set, deque, bytearray, np.ndarray, MutableSequence, MutableMapping, MutableSet)
CHANGING_FIRST = {
    "copyto",
    "heappop",
    "heappush",
    "heapreplace",
    "insort",
    "next",
    "place",
    "put",
    "putmask",
    "setattr",
    "shuffle",
}
"""Functions that change their first argument."""
CHANGING = {"appendleft", "extendleft", "fill", "partition", "popleft", "reverse", "rotate", "sort"}
"""Methods that change what they are called on, beside those of `introspection`."""
PASSING_ON = {"enumerate", "items", "iter", "reversed", "values", "zip"}
"""Functions and methods whose result holds the same objects."""


@dataclass(frozen=True)
class _Facts:
    """Describes what code does with names.

    Attributes:
        changed: names that it rebinds or changes.
        sources: local names -> the names that lines read which give them a value.
        added_to: local names that it changes by `+=` and the like.
    """

    changed: frozenset[str]
    sources: dict[str, frozenset[str]]
    added_to: frozenset[str]


def changed_by(callback: Any) -> list[str]:
    """Returns the names of what a callback's code changes beside itself and the model, sorted."""
    found: set[str] = set()
    seen: set[Any] = set()
    for function in _functions_of(callback):
        found |= _changed(function, seen, 0)
    for name, value in introspection.attributes_of(callback).items():
        bound = value.__self__ if type(value) is MethodType else value
        if (
            bound is not callback
            and callable(value)
            and _changes_itself(bound, {"__call__", getattr(value, "__name__", "")})
        ):
            found.add(name)
    return sorted(found)


def _functions_of(callback: Any) -> Iterator[FunctionType]:
    """Yields the user's methods of a callback, and the functions that it was given."""
    for kind in type(callback).__mro__:
        for member in vars(kind).values() if _is_the_users(kind) else ():
            if type(member) is FunctionType:
                yield member
    for value in introspection.attributes_of(callback).values():
        function = value
        while isinstance(function, (partial, MethodType)):
            function = function.func if isinstance(function, partial) else function.__func__
        if type(function) is FunctionType and _is_user_module(function.__module__ or "keras"):
            yield function


def _changed(function: FunctionType, seen: set[Any], depth: int) -> set[str]:
    """Returns the names of globals and closures that a function changes, or those that it calls."""
    if function in seen or depth > DEEPEST:
        return set()
    seen.add(function)
    outside, facts = introspection.used_by(function), _facts(function.__code__)
    own = set(function.__code__.co_varnames) - set(function.__code__.co_freevars)
    names = {name for name in facts.changed if name in outside or (name not in own and _is_global(name, function))}
    for local, sources in facts.sources.items():
        for source in sources & outside.keys():
            value = outside[source]
            in_place = local in facts.added_to and _of_arrays(value)
            if isinstance(value, CONTAINERS) and (local in facts.changed or in_place):
                names.add(source)
    used = {str(each) for part in introspection.codes_in(function.__code__) for each in part.co_names}
    found = {name for name in names if name not in outside or _may_change(outside[name])}
    for name, value in outside.items():
        if type(value) is FunctionType and _is_user_module(value.__module__ or ""):
            found |= _changed(value, seen, depth + 1)
        elif _changes_itself(value, used):
            found.add(name)
    return found


def _is_global(name: str, function: FunctionType) -> bool:
    return name in function.__globals__


def _may_change(value: Any) -> bool:
    """Tests whether a change of an object is a change that no backup holds."""
    kind = type(value)
    if isinstance(value, ModuleType):
        return _is_user_module(value.__name__)
    if issubclass(kind, (keras.Model, keras.optimizers.Optimizer)) or found_variables.is_restored(value):
        return False  # a model's rate and weights are in the backup
    kept = (*CONTAINERS, *found_variables.NOTHING, keras.utils.PyDataset, keras.Layer, Iterator)
    return issubclass(kind, kept) or issubclass(kind, type) or _is_the_users(kind)


def _changes_itself(value: Any, used: set[str]) -> bool:
    """Tests whether a method of these names, of a class of the user's, changes its object."""
    kind = type(value)
    if not _is_the_users(kind) or issubclass(kind, (keras.Model, keras.callbacks.Callback)):
        return False
    methods = (vars(base).get(name) for name in used for base in kind.__mro__ if _is_the_users(base))
    codes = (method.__code__ for method in methods if type(method) is FunctionType and method.__code__.co_argcount)
    return any(code.co_varnames[0] in _facts(code).changed for code in codes)


def _of_arrays(value: Any) -> bool:
    """Tests whether `+=` on what a container holds changes it in place."""
    if not isinstance(value, CONTAINERS) or isinstance(value, np.ndarray):
        return isinstance(value, np.ndarray)
    items = list(value.values()) if isinstance(value, MutableMapping) else list(value)[:1]
    return any(isinstance(item, np.ndarray) for item in items[:1])


def _is_the_users(kind: type) -> bool:
    return _is_user_module(kind.__module__)


@cache
def _is_user_module(name: str) -> bool:
    """Tests whether a module is the user's own, and no installed package."""
    if name.partition(".")[0] in found_variables.LIBRARIES:
        return False
    file = getattr(sys.modules.get(name), "__file__", None) or ""
    return "site-packages" not in file and "dist-packages" not in file


@cache
def _facts(code: CodeType) -> _Facts:
    changed = {name for name, scope in introspection.written_in(code) if scope != introspection.ATTRIBUTE}
    sources: dict[str, set[str]] = {}
    added: set[str] = set()
    for part in introspection.codes_in(code):
        lines: dict[Any, list[dis.Instruction]] = {}
        for each in dis.get_instructions(part):
            lines.setdefault(each.positions and each.positions.lineno, []).append(each)
        for line in lines.values():
            _look_at_line(line, changed, sources, added)
    return _Facts(frozenset(changed), {name: frozenset(found) for name, found in sources.items()}, frozenset(added))


def _look_at_line(
    line: list[dis.Instruction], changed: set[str], sources: dict[str, set[str]], added: set[str]
) -> None:
    """Adds what one line of code changes, and which names give a value to its local ones."""
    loads = [(str(each.argval), each.opname) for each in line if each.opname.startswith("LOAD_")]
    read = {name for name, operation in loads if operation.startswith(("LOAD_GLOBAL", "LOAD_NAME", "LOAD_DEREF"))}
    for (name, _), (first, _) in itertools.pairwise(loads):
        if name in CHANGING_FIRST:
            changed.add(first)
        elif first in CHANGING:
            changed.add(name)
    operations = {each.opname for each in line}
    calls = {name for name, operation in loads if operation.startswith(("LOAD_METHOD", "LOAD_ATTR"))} - PASSING_ON
    passes_on = "FOR_ITER" in operations or not (calls or any(name.startswith("CALL") for name in operations))
    in_place = any(each.opname == "BINARY_OP" and each.argrepr.endswith("=") for each in line)
    for each in line:
        if each.opname == "STORE_FAST" and in_place:
            added.add(str(each.argval))
        elif each.opname == "STORE_FAST" and passes_on:
            sources.setdefault(str(each.argval), set()).update(read)
