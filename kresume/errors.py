"""What can go wrong, one class per kind of mistake.

Every message is one line that says what is wrong, where, what was expected and what to do. The command line prints it
and leaves with `exit_code`; no traceback is shown for these classes, so anything that is a bug in kresume must not be
one of them.
"""

from __future__ import annotations

from collections.abc import Sequence


class KresumeError(Exception):
    """The base of every error that a user can mend. Exit code 1."""

    exit_code = 1


class UsageError(KresumeError, ValueError):
    """The call itself is wrong: an option, a combination of options, a key of a YAML file. Exit code 2."""

    exit_code = 2


class ConfigMismatch(UsageError):
    """The same run was asked for with other options. Exit code 2."""


class CheckpointError(KresumeError):
    """A checkpoint is missing, broken, of no known kind, or of another model."""


class RestoreError(CheckpointError):
    """Some variables could not be restored.

    Attributes:
        rows: the table that the command line prints above the message: (variable, expected, found, what happened).
    """

    columns = ("variable", "model", "checkpoint", "outcome")

    def __init__(self, message: str, rows: Sequence[tuple[str, ...]] = ()) -> None:
        super().__init__(message)
        self.rows = tuple(rows)


class ModelError(KresumeError):
    """A model could not be built from what `--model` or the checkpoint gives."""


class ImagesError(KresumeError):
    """A source of images is missing, empty, or not what it was taken for."""


class RunError(KresumeError):
    """A run directory is not one, is held by another process, or cannot do what was asked of it."""


class TrainingError(KresumeError):
    """Training itself failed, a NaN loss for instance."""


class GateFailed(KresumeError):
    """A finished run did not meet its `--require` or `--max-*` gates. Exit code 3."""

    exit_code = 3


class NothingNew(KresumeError):
    """The sources hold no image that the parent has not seen. Exit code 4."""

    exit_code = 4


class MissingPackage(KresumeError, ImportError):
    """A package that this feature needs is not installed; the message gives the pip command."""


class Stopped(KresumeError):
    """Training was stopped from outside after a snapshot was written. Exit code 75 (SIGTERM) or 130 (Ctrl-C)."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class ExportError(KresumeError):
    """An export differs from the model, or a format cannot hold it. Nothing was left at the destination."""
