"""Tells damaged bytes from a bug: every reader of foreign files runs inside of `reading`.

    with reading("model.h5", "an .h5 of Keras 2", CheckpointError):
        ...                                             # whatever h5py raises names the file

A library that is given damaged bytes may raise almost anything: zipfile raises UnicodeDecodeError, h5py KeyError, torch
AssertionError. A bug of kresume raises the same classes, and must keep its traceback. The class alone therefore cannot
decide. An exception means that the content was refused if one of these holds:

- Its class belongs to a library (`zlib.error`, `BadZipFile`, `JSONDecodeError`, `ArrowInvalid`).
- Only content causes it, wherever it is raised: UnicodeError, EOFError, OverflowError, RecursionError, MemoryError.
- It was raised inside of a library: the innermost frame of its traceback is not in kresume. Code in C has no frames, so
  `int(text)` or `numpy.frombuffer(data)` count as raised by their caller.

Everything else was raised by kresume's own code and is a bug. Code that looks up fields of foreign content, where a
missing field raises KeyError in kresume's own frame, says so with `interpreting`. A wrong call of a library that is
written in Python looks like damage: the original exception is chained, and the tests read a good file of every format.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from kresume.errors import KresumeError

OURS = "kresume"
OF_CONTENT = (UnicodeError, EOFError, OverflowError, RecursionError, MemoryError)
"""Raised only because of what a file holds, never because of a misspelled name or a wrong call."""
OF_FIELDS = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError)
"""Raised by a look-up or a conversion of content that does not have the expected form."""
OF_THE_DISK = frozenset(
    {
        errno.EACCES, errno.EPERM, errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.EIO, errno.ENOSPC, errno.ESTALE,
        errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENODEV, errno.ENXIO, errno.ETIMEDOUT, errno.ELOOP, errno.ENAMETOOLONG,
    }
)  # fmt: skip
"""Error numbers of the system that say nothing about a file's bytes. EINVAL is not one: a seek before the start of the
file, to an offset read from the file, raises it."""
LONGEST = 160


@contextmanager
def reading(path: str, called: str, error_class: type[KresumeError]) -> Iterator[None]:
    """Turns what a library raises on the bytes of `path` into an error that names the file.

    Args:
        path: the file or folder, as the user gave it.
        called: the expected format, for the message: "a .keras file".
        error_class: the class to raise.

    Raises:
        KresumeError: of `error_class`, if the content was refused or the system refused to read it. Errors of this
            class that the block raises pass unchanged, and so do bugs.
    """
    try:
        yield
    except BaseException as error:
        if not is_refusal(error):
            raise
        raise error_class(_told(error, path, called)) from error


@contextmanager
def interpreting(what: str, error_class: type[KresumeError]) -> Iterator[None]:
    """Marks code that looks up the fields of foreign content and converts their values.

    Keep the block small: every failed look-up inside of it counts as damage, a bug's too.

    Args:
        what: the file and the part of it, for the message: "model.h5: the training config".
        error_class: the class to raise.

    Raises:
        KresumeError: of `error_class`, if a field is missing or its value has another type.
    """
    try:
        yield
    except OF_FIELDS as error:
        if isinstance(error, KresumeError):
            raise
        raise error_class(
            f"{what} does not have the expected form ({reason(error)}): it is damaged, or written by a program that "
            "kresume does not know"
        ) from error


def is_refusal(error: BaseException) -> bool:
    """Returns True if the exception means that content was refused, False for a bug of kresume.

    The module's docstring explains the rule.
    """
    if isinstance(error, (KresumeError, ImportError, Warning, KeyboardInterrupt, SystemExit, GeneratorExit)):
        return False
    if isinstance(error, (OSError, *OF_CONTENT)):
        return True
    return _root(type(error).__module__) not in {"builtins", OURS} or _innermost(error.__traceback__) != OURS


def reason(error: BaseException) -> str:
    """Returns an exception's class and the first line of its text."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first}"[:LONGEST] if first else type(error).__name__


def _told(error: BaseException, path: str, called: str) -> str:
    if isinstance(error, MemoryError):
        return f"{path} does not fit into memory: it is damaged and claims sizes that it does not have, or is too large"
    if isinstance(error, OSError) and error.errno in OF_THE_DISK and error.strerror:
        where = f"{path}: {error.filename}" if error.filename not in {None, path} else path
        return f"{where} cannot be read ({error.strerror})"
    return f"{path} is damaged, or is not {called}: {reason(error)}; use an earlier copy"


def _root(module: str) -> str:
    return module.partition(".")[0]


def _innermost(traceback: TracebackType | None) -> str:
    """Returns the package whose code raised."""
    name = ""
    while traceback is not None:
        name, traceback = str(traceback.tb_frame.f_globals.get("__name__", "")), traceback.tb_next
    return _root(name)
