"""Looks into functions and objects of the user's without running their code.

used_by(loss)                    # {"gamma": 2.0, "SCALE": 3}: its closure, and the global names that it reads
attributes_of(layer)             # {"rate": 0.1, ...}
written_by(loss)                 # {"calls"}: names whose value code of its module changes
"""

from __future__ import annotations

import dis
from collections.abc import Iterable, Iterator
from functools import cache
from types import CodeType, FunctionType
from typing import Any

GLOBAL, OWN, ATTRIBUTE = "global", "own", "attribute"
"""Scopes of a name in code; names of closures and arguments are a function's own."""
REBINDING = {"STORE_GLOBAL", "DELETE_GLOBAL", "STORE_DEREF"}
WRITING = {"STORE_SUBSCR", "DELETE_SUBSCR", "STORE_SLICE", "STORE_ATTR", "DELETE_ATTR"}
CHANGING = {"append", "extend", "insert", "pop", "popitem", "update", "setdefault", "clear", "add", "remove", "discard"}
"""Methods that change the list, dictionary or set that they are called on."""


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


def written_by(function: FunctionType) -> set[str]:
    """Returns the names to which a function or another one of its module gives a new value.

    These are counters and caches rather than settings: `global calls`, `STATE["calls"] += 1`, `seen.append(x)`.
    """
    own = {name for name, scope in written_in(function.__code__) if scope != ATTRIBUTE}
    return own | globals_written_by(function.__globals__)


def names_written_by(function: FunctionType) -> set[str]:
    """Returns the names of closures and the global names to which a function itself gives a new value."""
    own = {name for name, scope in written_in(function.__code__) if scope == OWN}
    return {name for name, scope in written_in(function.__code__) if scope == GLOBAL} | own & {
        *function.__code__.co_freevars
    }


def globals_written_by(namespace: dict[str, Any]) -> set[str]:
    """Returns the global names to which the functions and methods of a module give a new value."""
    written: set[str] = set()
    for value in list(namespace.values()):
        members = list(vars(value).values()) if issubclass(type(value), type) else [value]
        for each in members:
            if type(each) is FunctionType and each.__globals__ is namespace:
                written |= {name for name, scope in written_in(each.__code__) if scope == GLOBAL}
    return written


def attributes_written_by(functions: Iterable[FunctionType]) -> set[str]:
    """Returns the names of attributes that functions give a new value, or whose parts they write."""
    return {name for each in functions for name, scope in written_in(each.__code__) if scope == ATTRIBUTE}


@cache
def written_in(code: CodeType) -> frozenset[tuple[str, str]]:
    """Returns the names that code rebinds or whose parts it writes, each with its scope."""
    found: set[tuple[str, str]] = set()
    for part in codes_in(code):
        read: list[tuple[Any, str, str]] = []
        written: set[Any] = set()
        for each in dis.get_instructions(part):
            place = each.positions and (each.positions.lineno, each.positions.col_offset)
            name, scope = str(each.argval), _scope(each.opname)
            if each.opname in REBINDING:
                found.add((name, OWN if each.opname == "STORE_DEREF" else GLOBAL))
            elif each.opname in WRITING or (scope == ATTRIBUTE and name in CHANGING):
                written.add(place)  # `a` of `a["x"] = 1` begins where the whole target does
            if scope and name not in CHANGING:
                read.append((place, name, scope))
        found.update((name, scope) for place, name, scope in read if place in written)
    return frozenset(found)


def _scope(operation: str) -> str:
    """Returns the scope of the name that an instruction reads or sets; empty for other instructions."""
    if operation.startswith(("LOAD_GLOBAL", "LOAD_NAME")):
        return GLOBAL
    if operation.startswith(("LOAD_ATTR", "LOAD_METHOD", "STORE_ATTR")):
        return ATTRIBUTE
    return OWN if operation.startswith(("LOAD_DEREF", "LOAD_FAST")) else ""


@cache
def _global_names(code: CodeType) -> frozenset[str]:
    """Returns the global names that code reads; those of attributes are none."""
    read = (each for part in codes_in(code) for each in dis.get_instructions(part))
    return frozenset(str(each.argval) for each in read if each.opname in {"LOAD_GLOBAL", "LOAD_NAME"})
