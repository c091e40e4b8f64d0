"""Spells options in messages as the user gives them: as flags, or as arguments in Python.

    raise UsageError(f"{option('mix', mix)}: give concat or OLD:NEW")   # --mix 1:1, or mix='1:1'

An entry point says once how its user writes them; where one calls another the outermost decides:

    @spelled(as_argument)
    def resume(...): ...

Flags are the default. A message never spells an option itself where a function of Python may raise it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Value = str | bool | float | None
Speller = Callable[[str, Value], str]
"""Takes an option's name as a flag has it (`on-missing`) and perhaps its value; returns both as the user would write them."""


def as_flag(name: str, value: Value) -> str:
    """Returns `--on-missing drop`."""
    if value is None or isinstance(value, bool):
        return f"--{name}"
    short = f"{value:g}" if isinstance(value, float) else str(value)
    return f"--{name} {short if isinstance(value, str) or float(short) == value else value}"


def as_argument(name: str, value: Value) -> str:
    """Returns `on_missing='drop'`."""
    if name == "from":
        return "the first argument" if value is None else f"{value!r} as the first argument"
    name = {"import": "imports"}.get(name, name)
    if name in {"feature", "imports", "metric", "remap"} and value is not None:
        return f"{name}=[{value!r}]"
    return f"{name.replace('-', '_')}={'' if value is None else repr(value)}"


_speller: ContextVar[Speller | None] = ContextVar("speller", default=None)


def option(name: str, value: Value = None) -> str:
    """Spells an option for whoever is there.

    Args:
        name: as a flag has it, without the dashes.
        value: what to give; True for a switch, None where the option alone is meant.
    """
    return (_speller.get() or as_flag)(name, value)


@contextmanager
def spelled(speller: Speller) -> Iterator[None]:
    """Spells options in this way while the block, or the function that is decorated with it, runs.

    Inside another one it changes nothing: the user is there where the outermost was called.
    """
    before = _speller.set(_speller.get() or speller)
    try:
        yield
    finally:
        _speller.reset(before)
