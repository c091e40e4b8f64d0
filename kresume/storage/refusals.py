"""Tells that a disk refused a write: it is full or read-only, or permission is missing.

    except Exception as error:
        line = describe(error)          # "week.csv cannot be written (the disk is full): make room, or give another path"

Libraries have classes of their own for it: safetensors, TensorFlow and Arrow raise what names the system's reason in its text
alone. `kresume.storage.atomic` makes them all an OSError with the number and the name of the file.
"""

from __future__ import annotations

import errno
import os
import re
import sqlite3
import sys

from kresume.errors import KresumeError

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
WHY = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota of the disk is used up",
    errno.EFBIG: "the file would be larger than `ulimit -f` or the file system allows",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission denied",
    errno.EPERM: "not permitted",
}
IN_TEXTS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)
"""Numbers whose names a library's text may hold."""
CUT_OFF = re.compile(r"\d+ requested and \d+ written")
"""Matches what NumPy says if only a part of an array was written; its error has no number."""
OF_SQLITE = {
    sqlite3.SQLITE_FULL: errno.ENOSPC,
    sqlite3.SQLITE_IOERR_WRITE: errno.ENOSPC,  # a quota; other broken disks fail to read, too
    sqlite3.SQLITE_IOERR_FSYNC: errno.ENOSPC,
    sqlite3.SQLITE_IOERR_TRUNCATE: errno.ENOSPC,
    sqlite3.SQLITE_IOERR_SHMSIZE: errno.ENOSPC,
    sqlite3.SQLITE_READONLY: errno.EROFS,
}


def number_of(error: BaseException) -> int:
    """Returns the number of a refusal, one of `WHY`; 0 for any other exception."""
    if isinstance(error, KresumeError) or not isinstance(error, Exception):
        return 0
    if isinstance(error, sqlite3.Error):
        return OF_SQLITE.get(getattr(error, "sqlite_errorcode", 0), 0)
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno if error.errno in WHY else 0
    texts = str(error)
    if isinstance(error, OSError) and CUT_OFF.fullmatch(texts):
        return errno.EFBIG if _limits_files() else errno.ENOSPC
    of_a_library = type(error).__module__ != "builtins"
    found = (number for number in IN_TEXTS if os.strerror(number) in texts)
    return next((number for number in found if of_a_library or number != errno.EACCES), 0)


def _limits_files() -> bool:
    if sys.platform == "win32":
        return False
    import resource

    return resource.getrlimit(resource.RLIMIT_FSIZE)[0] != resource.RLIM_INFINITY


def is_full(error: BaseException) -> bool:
    """Returns True if the disk or its quota is full."""
    return number_of(error) in FULL


def named(error: BaseException, path: str | os.PathLike[str], temporary: str | os.PathLike[str]) -> OSError | None:
    """Returns the OSError that a refusal is, with the name of the file; None for any other exception.

    Args:
        error: what a library or the system raised.
        path: the file that is written.
        temporary: its temporary name. An error about a file of another name is no refusal of this one.
    """
    number = number_of(error)
    own = getattr(error, "filename", None) if isinstance(error, OSError) else None
    if not number or (own is not None and not os.fsdecode(str(own)).startswith(os.fspath(temporary))):
        return None
    return OSError(number, os.strerror(number), os.fspath(path))


def reason(error: BaseException) -> str:
    """Returns why something could not be written, in a few words."""
    why = WHY.get(number_of(error))
    return why or (isinstance(error, OSError) and error.strerror) or str(error)


def remedy(error: BaseException) -> str:
    """Returns what helps: "make room" or "raise the limit"; empty where only another place does."""
    if number_of(error) == errno.EFBIG:
        return "raise the limit"
    return "make room" if is_full(error) else ""


def way_on(error: BaseException) -> str:
    """Returns the first words of the advice: "make room, or give" for a full disk."""
    return ", or ".join(filter(None, [remedy(error), "give"]))


def describe(error: BaseException) -> str | None:
    """Returns the line for a refusal that nobody expected; None for any other exception."""
    number = number_of(error)
    if not number:
        return None
    file = getattr(error, "filename", None) or "the output"
    done = "written" if number in {*FULL, errno.EFBIG, errno.EROFS} else "used"
    return f"{file} cannot be {done} ({WHY[number]}): {way_on(error)} another path"
