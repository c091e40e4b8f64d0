"""Describes functions of the user's code, so that an edited one is noticed after a restart.

    list(describe(focal))           # parts ("", "focal"), ("code", "cpython-311:1f2e..."), ("gamma", 2.0)
    methods_of(MyModel)             # {"call": ..., "train_step": ...}

A digest covers the instructions and constants of a function, without its comments, its docstring and its lines. It means
something within one minor version of Python, which it names. Functions of libraries are described by their name alone.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Iterator
from functools import cache, cached_property, partial
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

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
WRITTEN = " | written"
"""Follows the path of a value that the code itself changes, and that an earlier `fit` of the process may have changed."""


class Part(NamedTuple):
    """Holds a value that a function uses.

    Attributes:
        path: of the value below the function; empty for its name.
        value: the name, the digest of the code, or what it uses.
        named: the names of attributes and the texts in its code: of an object or a dictionary it uses these.
    """

    path: str
    value: Any
    named: frozenset[str] = frozenset()


def is_function(value: Any) -> bool:
    """Tests for a function, a method, a `functools.partial`, or what TensorFlow or JAX compiles."""
    kind = type(value)
    return issubclass(kind, (FunctionType, MethodType, BuiltinFunctionType, partial)) or _inner(value) is not None


def describe(function: Any) -> Iterator[Part]:
    """Yields the name of a function, the digest of its code, and the values that it uses.

    Values are those of defaults, of `functools.partial`, of a closure, of global names that it reads, and of the user's
    modules and classes. Functions that it calls by a name are described, too.
    """
    yield from _described("", function, set(), 0)


def _described(path: str, function: Any, seen: set[int], depth: int) -> Iterator[Part]:
    prefix = f"{path}." if path else ""
    if issubclass(type(function), partial):
        if is_function(function.func):
            yield from _described(path, function.func, seen, depth + 1)
        else:
            yield Part(path, function.func)
        given = {**{str(index): item for index, item in enumerate(function.args)}, **function.keywords}
        yield from _parts(prefix, given, frozenset(), seen, depth)
        return
    inner = _inner(function)
    function = inner if inner is not None else function
    owner = function.__self__ if issubclass(type(function), MethodType) else None
    function = function.__func__ if issubclass(type(function), MethodType) else function
    name = str(getattr(function, "__name__", FUNCTION))
    yield Part(path, "lambda" if name == "<lambda>" else name)
    if type(function) is not FunctionType or not is_the_users(function) or depth > DEEPEST:
        return
    if id(function.__code__) in seen:
        return
    seen.add(id(function.__code__))
    yield Part(f"{prefix}code", f"{TAG}:{hashlib.sha256(_text(function.__code__).encode()).hexdigest()[:16]}")
    used = _used_by(function) | ({} if owner is None else {"self": owner})
    named, written = frozenset(words_in([function])), introspection.written_by(function)
    yield from _marked(prefix, used, written, named, seen, depth)


def _marked(
    prefix: str, values: dict[str, Any], written: set[str], named: frozenset[str], seen: set[int], depth: int
) -> Iterator[Part]:
    """Yields the parts of values, with a mark on those whose names are `written`."""
    for name, value in values.items():
        for part in _parts(prefix, {name: value}, named, seen, depth):
            yield part._replace(path=f"{part.path}{WRITTEN}") if name in written and not is_code(part.path) else part


def _parts(prefix: str, values: dict[str, Any], named: frozenset[str], seen: set[int], depth: int) -> Iterator[Part]:
    """Yields what functions, modules and classes hold; other values as they are."""
    for name, value in values.items():
        if is_function(value):
            yield from _described(f"{prefix}{name}", value, seen, depth + 1)
        elif not issubclass(type(value), (ModuleType, type)):
            yield Part(f"{prefix}{name}", value, named)
        elif is_users_kind(value) and depth <= DEEPEST:
            written = introspection.globals_written_by(vars(value)) if issubclass(type(value), ModuleType) else set()
            yield from _marked(f"{prefix}{name}.", _read_of(value, named), written, named, seen, depth + 1)


def _read_of(holder: Any, named: frozenset[str]) -> dict[str, Any]:
    """Returns what code reads of a module or class of the user's; of a class also its `call`."""
    if issubclass(type(holder), ModuleType):
        return {name: value for name, value in sorted(vars(holder).items()) if name in named}
    methods = {name: method for name, method in methods_of(holder).items() if name in {*named, "call", "__call__"}}
    return {name: value for name, value in class_values(holder).items() if name in named} | methods


def is_code(path: str) -> bool:
    """Tests for the path of a digest of code."""
    return path == "code" or path.endswith(".code")


def _used_by(function: FunctionType) -> dict[str, Any]:
    """Returns the defaults, the closure and the global names of a function."""
    code = function.__code__
    names = code.co_varnames[: code.co_argcount]
    defaults = function.__defaults__ or ()
    used = dict(zip(names[len(names) - len(defaults) :], defaults, strict=True)) | (function.__kwdefaults__ or {})
    used |= introspection.used_by(function)
    return {name: value for name, value in used.items() if name != "__class__"}  # the cell of `super()`


def methods_of(kind: type) -> dict[str, FunctionType]:
    """Returns the methods of the user's classes that may run within a step.

    Those of a base class that are overridden have the name `Base.method`.
    """
    found: dict[str, FunctionType] = {}
    for each in kind.__mro__:
        for name, member in sorted(vars(each).items()):
            runs = name not in NO_TRAINING and (not name.startswith("__") or name == "__call__")
            method = _method(member) if runs else None
            if method is not None and is_the_users(method):
                found[f"{each.__name__}.{name}" if name in found else name] = method
    return found


def _method(member: Any) -> FunctionType | None:
    """Returns the function of a method or a property, also of one that TensorFlow or JAX compiles."""
    kind = type(member)
    if issubclass(kind, property):
        member = member.fget
    elif issubclass(kind, (staticmethod, classmethod)):
        member = member.__func__
    elif issubclass(kind, cached_property):
        member = member.func
    inner = _inner(member)
    found = inner if inner is not None else member
    return found if type(found) is FunctionType else None


def class_values(kind: type) -> dict[str, Any]:
    """Returns the attributes of the user's classes that are no methods."""
    found: dict[str, Any] = {}
    for each in reversed(kind.__mro__):
        if is_users_kind(each):
            members = ((name, member) for name, member in sorted(vars(each).items()) if not name.startswith("__"))
            found |= {name: member for name, member in members if not hasattr(type(member), "__get__")}
    return found


def words_in(functions: Iterable[FunctionType]) -> set[str]:
    """Returns the attributes that functions and those that they call read, and texts in their code."""
    waiting, seen = list(functions), set()
    while waiting:
        function = waiting.pop()
        if function.__code__ not in seen and is_the_users(function):
            seen.add(function.__code__)
            waiting.extend(each for each in introspection.used_by(function).values() if type(each) is FunctionType)
    codes = [code for each in seen for code in introspection.codes_in(each)]
    texts = {each for code in codes for each in code.co_consts if type(each) is str}
    return texts.union(*(code.co_names for code in codes))


def is_the_users(function: FunctionType) -> bool:
    """Tests whether a function is of no installed library."""
    return not function.__code__.co_filename.startswith((*LIBRARIES, "<frozen"))


def is_users_kind(value: Any) -> bool:
    """Tests whether a class or a module is of no installed library; one without a file is of a notebook."""
    module = value if issubclass(type(value), ModuleType) else sys.modules.get(str(value.__module__))
    if getattr(module, "__file__", None) is None:
        return module is not None and module.__name__ == "__main__"
    return is_users_module(module)


def is_users_module(module: Any) -> bool:
    """Tests whether a module has a file with Python code that is of no installed library."""
    file = vars(module).get("__file__") if issubclass(type(module), ModuleType) else None
    return isinstance(file, str) and file.endswith(".py") and not file.startswith(LIBRARIES)


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
