"""Describes functions of the user's code, so that an edited one is noticed after a restart.

    list(describe(focal))           # [("", "focal"), ("code", "cpython-311:1f2e..."), ("gamma", 2.0)]
    methods_of(MyModel)             # {"call": ..., "train_step": ...}

A digest covers the instructions and constants of a function, without its comments, its docstring and its lines. It means
something within one minor version of Python, which it names. Functions of libraries are described by their name alone.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Iterator
from functools import cache, partial
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType
from typing import Any

import keras

from kresume.drop_in.fit_of_script import LIBRARIES
from kresume.models import introspection

TAG = f"{sys.implementation.cache_tag}-{sys.flags.optimize}"
"""The compiler of this process: digests of another one cannot be compared."""
NO_TRAINING = {"build", "get_config", "from_config", "get_build_config", "build_from_config", "compute_output_shape"}
NO_TRAINING |= {"compute_output_spec", "summary", "save", "get_compile_config", "compile_from_config", "get_state"}
NO_TRAINING |= {"set_state", "save_own_variables", "load_own_variables"}
"""Methods that do not run within a step, beside those of Python itself."""
DEEPEST = 4
FUNCTION = "function"


def is_function(value: Any) -> bool:
    """Tests for a function, a method, a `functools.partial`, or what TensorFlow or JAX compiles."""
    kind = type(value)
    return issubclass(kind, (FunctionType, MethodType, BuiltinFunctionType, partial)) or _inner(value) is not None


def describe(function: Any) -> Iterator[tuple[str, Any]]:
    """Yields the name of a function, the digest of its code, and the numbers and losses that it uses.

    Numbers are those of defaults, of `functools.partial`, of a closure, and of global names that it reads. Functions that
    it calls by a name are described, too.
    """
    yield from _described("", function, set(), 0)


def _described(path: str, function: Any, seen: set[int], depth: int) -> Iterator[tuple[str, Any]]:
    prefix = f"{path}." if path else ""
    if issubclass(type(function), partial):
        yield from _described(path, function.func, seen, depth + 1)
        given = {**{str(index): item for index, item in enumerate(function.args)}, **function.keywords}
        yield from _parts(prefix, given, seen, depth)
        return
    inner = _inner(function)
    function = inner if inner is not None else function
    function = function.__func__ if issubclass(type(function), MethodType) else function
    name = str(getattr(function, "__name__", FUNCTION))
    yield path, "lambda" if name == "<lambda>" else name
    if type(function) is not FunctionType or not is_the_users(function) or depth > DEEPEST:
        return
    if id(function.__code__) in seen:
        return
    seen.add(id(function.__code__))
    yield f"{prefix}code", f"{TAG}:{hashlib.sha256(_text(function.__code__).encode()).hexdigest()[:16]}"
    yield from _parts(prefix, _used_by(function), seen, depth)


def _parts(prefix: str, values: dict[str, Any], seen: set[int], depth: int) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        kind = type(value)
        if is_function(value):
            yield from _described(f"{prefix}{name}", value, seen, depth + 1)
        elif issubclass(kind, (bool, int, float, keras.losses.Loss, keras.regularizers.Regularizer)):
            yield f"{prefix}{name}", value


def _used_by(function: FunctionType) -> dict[str, Any]:
    """Returns the defaults, the closure and the global names of a function."""
    code = function.__code__
    names = code.co_varnames[: code.co_argcount]
    defaults = function.__defaults__ or ()
    used = dict(zip(names[len(names) - len(defaults) :], defaults, strict=True)) | (function.__kwdefaults__ or {})
    return used | introspection.used_by(function)


def methods_of(kind: type) -> dict[str, FunctionType]:
    """Returns the methods of the user's classes that may run within a step.

    Those of a base class that are overridden have the name `Base.method`.
    """
    found: dict[str, FunctionType] = {}
    for each in kind.__mro__:
        for name, member in sorted(vars(each).items()):
            runs = name not in NO_TRAINING and (not name.startswith("__") or name == "__call__")
            if runs and type(member) is FunctionType and is_the_users(member):
                found[f"{each.__name__}.{name}" if name in found else name] = member
    return found


def names_in(functions: Iterable[FunctionType]) -> set[str]:
    """Returns the names of all attributes that functions read."""
    return {
        name for function in functions for code in introspection.codes_in(function.__code__) for name in code.co_names
    }


def is_the_users(function: FunctionType) -> bool:
    """Tests whether a function is of no installed library."""
    return not function.__code__.co_filename.startswith((*LIBRARIES, "<frozen"))


def _inner(value: Any) -> Any:
    """Returns the Python function in one that TensorFlow or JAX compiles; None if it is none."""
    kind = type(value)
    if not kind.__module__.startswith(("tensorflow.", "jax", "functools")) or issubclass(kind, (type, partial)):
        return None
    try:
        found = getattr(value, "python_function", None) or getattr(value, "__wrapped__", None)
    except Exception:  # of an object that looks like one
        return None
    return found if type(found) is FunctionType else None


@cache
def _text(code: CodeType) -> str:
    """Writes code as a text that is the same in every process of one version."""
    constants = list(code.co_consts)
    if constants and isinstance(constants[0], str) and not code.co_name.startswith("<"):
        constants[0] = None  # the docstring
    parts = [code.co_code.hex(), *map(_constant, constants), *code.co_names]
    return "\0".join(parts)


def _constant(value: Any) -> str:
    if isinstance(value, CodeType):
        return _text(value)
    if isinstance(value, frozenset):  # strings follow in another order in each process
        return f"{{{', '.join(sorted(map(_constant, value)))}}}"
    if isinstance(value, tuple):
        return f"({', '.join(map(_constant, value))})"
    return repr(value)
