"""Defines the errors that a user can correct, one class per kind of mistake.

Every message is one line that says what is wrong, where, what was expected and what to do. The command line prints it
and exits with `exit_code`. It shows no traceback for these classes, so a bug in kresume must never raise one of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from kresume.addresses import public


class KresumeError(Exception):
    """Base class of all errors that a user can correct.

    Exit code 1. The message names addresses in place of their local folders.
    """

    exit_code = 1

    def __str__(self) -> str:
        return public(super().__str__())


class UsageError(KresumeError, ValueError):
    """Raised for a wrong option, combination of options, or key of a YAML file.

    Exit code 2.
    """

    exit_code = 2


class ConfigMismatch(UsageError):
    """Raised if an existing run is requested with other options.

    Exit code 2.
    """


class CheckpointError(KresumeError):
    """Raised if a checkpoint is missing, damaged, of unknown format, or of another model."""


class NotFinite(CheckpointError):
    """Raised instead of writing a snapshot whose state holds a NaN or an infinity.

    Attributes:
        names: the arrays, for example `"trainable/3"`.
        step: the step of the snapshot.
    """

    def __init__(self, names: Sequence[str], step: int) -> None:
        self.names, self.step = tuple(names), step
        more = f" ({len(names) - 3:,} more)" if len(names) > 3 else ""
        super().__init__(f"not finite at step {step:,}: {', '.join(names[:3])}{more}; no snapshot was written")


class MissingCheckpoint(CheckpointError):
    """Raised if nothing exists at the path of a checkpoint."""


class RestoreError(CheckpointError):
    """Raised if some variables could not be restored.

    Attributes:
        rows: the table that the command line prints above the message: (variable, expected, found, what happened).
        slotless: the addresses of the layers for whose weights the file holds no slots.
    """

    columns = ("variable", "model", "checkpoint", "outcome")

    def __init__(self, message: str, rows: Sequence[tuple[str, ...]] = (), slotless: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.rows, self.slotless = tuple(rows), frozenset(slotless)


class ModelError(KresumeError):
    """Raised if no model can be built from `--model` or the checkpoint."""


class ImagesError(KresumeError):
    """Raised if a source of images is missing, empty, or of an unexpected kind."""


class RunError(KresumeError):
    """Raised if a directory is no run, or the run refuses the request.

    For example, another process may hold the run's lock.
    """


class TrainingError(KresumeError):
    """Raised if training itself fails, for example with a NaN loss."""


class GateFailed(KresumeError):
    """Raised if a finished run fails its `--require` or `--max-*` gates.

    Exit code 3.
    """

    exit_code = 3


class NothingNew(KresumeError):
    """Raised if the sources hold no image that is new to the parent.

    Exit code 4.
    """

    exit_code = 4


class MissingPackage(KresumeError, ImportError):
    """Raised if a feature needs a package that is not installed.

    The message gives the pip command.
    """


class Stopped(KresumeError):
    """Raised after training was stopped from outside and a snapshot was written.

    Exit code 75 (SIGTERM) or 130 (Ctrl-C).
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class PeerDied(KresumeError):
    """Raised if another process of the same training died or did not come.

    Exit code 75: the same command, on every host, continues.
    """

    exit_code = 75
    AGAIN = "a peer died; run the same command again"

    @classmethod
    def seen_by(cls, error: Exception) -> PeerDied:
        """Makes the error of what JAX raised when another process was gone."""
        return cls(f"{cls.AGAIN} ({str(error).splitlines()[0]})")


class Followed(KresumeError):
    """Raised in a process that follows another one, after that one ended without a result.

    The exit code is that of the other process.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class ExportError(KresumeError):
    """Raised if an export differs from the model, or the format cannot hold it.

    Nothing is left at the destination.
    """
