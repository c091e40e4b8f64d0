"""Formats options in messages as the user writes them, as flags or Python arguments; counts and sizes.

    raise UsageError(f"{option('mix', mix)}: give concat or OLD:NEW")   # --mix 1:1, or mix='1:1'

An entry point declares its user's notation once. If one entry point calls another, the outermost decides:

    @spelled(as_argument)
    def resume(...): ...

The default is flags. A message that a Python function may raise must use `option` for every option it names.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

Value = str | bool | float | None
Speller = Callable[[str, Value], str]
"""Formats an option: expects its flag name (`on-missing`) and optionally its value."""
RECORDED = re.compile(r"(?<![\w-])--(?P<name>[a-z][a-z-]*)(?: (?P<value>\d+(?:\.\d+)?(?:e[+-]?\d+)?)(?![\w.-]))?")
"""A flag in a recorded reason, with a number if one follows."""


def as_flag(name: str, value: Value) -> str:
    """Returns `--on-missing drop`."""
    if value is None or isinstance(value, bool):
        return f"--{name}"
    short = f"{value:g}" if isinstance(value, float) else str(value)
    if isinstance(value, str):
        spaced = any(character.isspace() for character in value)
        return f"--{name} {shlex.quote(value) if spaced else value}"
    return f"--{name} {short if float(short) == value else value}"


def as_argument(name: str, value: Value) -> str:
    """Returns `on_missing='drop'`."""
    if name == "from":
        return "the first argument" if value is None else f"{value!r} as the first argument"
    name = {"import": "imports"}.get(name, name)
    if name in {"feature", "imports", "metric", "remap", "rename"} and value is not None:
        return f"{name}=[{value!r}]"
    return f"{name.replace('-', '_')}={'' if value is None else repr(value)}"


_speller: ContextVar[Speller | None] = ContextVar("speller", default=None)


def option(name: str, value: Value = None) -> str:
    """Formats an option in the current user's notation.

    Args:
        name: the flag's name without dashes.
        value: the value to give; True for a switch, None for the option alone.
    """
    return notation()(name, value)


def notation() -> Speller:
    """Returns the current user's notation, for what is formatted later."""
    return _speller.get() or as_flag


def setting(name: str, value: Any) -> str:
    """Formats an option as it is in force: a list with each of its values, a switch that is off as such.

    Args:
        name: the flag's name without dashes.
        value: the value, or a list of values.
    """
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    if in_python():
        return option(name, values[0]) if len(values) == 1 else f"{option(name)}{values!r}"
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no-{name}"
    return " ".join(f"--{name} {each}" for each in values)


def joined(settings: Iterable[str]) -> str:
    """Joins formatted options as the user separates them."""
    return (", " if in_python() else " ").join(settings)


def respelled(reason: str) -> str:
    """Formats a recorded reason, such as `"--lr-scale 0.1"`, in the current user's notation.

    A record does not depend on who made it: it names options as flags.
    """
    if not in_python():
        return reason
    return RECORDED.sub(lambda flag: option(flag["name"], float(flag["value"]) if flag["value"] else None), reason)


def in_python() -> bool:
    """Returns True if the user has called a function of Python, False for a command."""
    return _speller.get() is as_argument


@contextmanager
def spelled(speller: Speller) -> Iterator[None]:
    """Sets the notation of options for a block or a decorated function.

    Has no effect inside another `spelled`: the user called the outermost entry point.
    """
    before = _speller.set(_speller.get() or speller)
    try:
        yield
    finally:
        _speller.reset(before)


def in_percent(share: float) -> str:
    """Formats a share as it was given: `0.125` is `"12.5%"`."""
    return f"{100 * share:.10g}%"


def counted(count: int, noun: str, one: str = "", many: str = "") -> str:
    """Formats a count with its noun, and a verb if given: `"1 image"`, `"2,000 images have"`.

    Args:
        count: how many.
        noun: what, for one of them.
        one: the verb for one.
        many: the verb for several.
    """
    words = f"{count:,} {noun if count == 1 else noun + ('es' if noun.endswith('s') else 's')}"
    verb = one if count == 1 else many
    return f"{words} {verb}" if verb else words


def in_bytes(count: float) -> str:
    """Formats a number of bytes: `"512 bytes"`, `"1.2 MB"`, `"50 GB"`; a kB has 1000 of them."""
    for unit in ("bytes", "kB", "MB"):
        if count < 999.5:
            return _digits(count, unit)
        count /= 1000
    return _digits(count, "GB")


def _digits(count: float, unit: str) -> str:
    return f"{count:,.0f} {unit}" if unit == "bytes" or count >= 9.95 else f"{count:.1f} {unit}"
