"""Looks into functions and objects of the user's without running their code.

used_by(loss)                    # {"gamma": 2.0, "SCALE": 3}: its closure, and the global names that it reads
attributes_of(layer)             # {"rate": 0.1, ...}
"""

from __future__ import annotations

import dis
from collections.abc import Iterator
from functools import cache
from types import CodeType, FunctionType
from typing import Any


def attributes_of(value: Any) -> dict[str, Any]:
    """Returns the attributes of an object by name; empty for one that hides them."""
    try:
        held = object.__getattribute__(value, "__dict__")
    except Exception:  # a class with slots, or whose `__dict__` is a property of the user's
        return {}
    return {str(name): item for name, item in list(dict.items(held))} if type(held) is dict else {}


def used_by(function: FunctionType) -> dict[str, Any]:
    """Returns the closure of a function, and then the global names that its code reads, sorted."""
    used: dict[str, Any] = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            used[name] = cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    names = sorted(_global_names(function.__code__) & function.__globals__.keys())
    return used | {name: function.__globals__[name] for name in names}


def codes_in(code: CodeType) -> Iterator[CodeType]:
    """Yields code and that of the functions in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from codes_in(constant)


@cache
def _global_names(code: CodeType) -> frozenset[str]:
    """Returns the global names that code reads; those of attributes are none."""
    read = (each for part in codes_in(code) for each in dis.get_instructions(part))
    return frozenset(str(each.argval) for each in read if each.opname in {"LOAD_GLOBAL", "LOAD_NAME"})
