"""Formats options in messages as the user writes them, as flags or Python arguments; counts and sizes.

    raise UsageError(f"{option('mix', mix)}: give concat or OLD:NEW")   # --mix 1:1, or mix='1:1'

An entry point declares its user's notation once. If one entry point calls another, the outermost decides:

    @spelled(as_argument)
    def resume(...): ...

The default is flags. A message that a Python function may raise must use `option` for every option it names.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Value = str | bool | float | None
Speller = Callable[[str, Value], str]
"""Formats an option: expects its flag name (`on-missing`) and optionally its value."""


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
    if name in {"feature", "imports", "metric", "remap"} and value is not None:
        return f"{name}=[{value!r}]"
    return f"{name.replace('-', '_')}={'' if value is None else repr(value)}"


_speller: ContextVar[Speller | None] = ContextVar("speller", default=None)


def option(name: str, value: Value = None) -> str:
    """Formats an option in the current user's notation.

    Args:
        name: the flag's name without dashes.
        value: the value to give; True for a switch, None for the option alone.
    """
    return (_speller.get() or as_flag)(name, value)


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
