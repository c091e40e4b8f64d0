"""Describes the `fit` that a backup is restored into."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from kresume.drop_in.fit_call import FitCall
from kresume.drop_in.script_record import Script
from kresume.drop_in.stream import Stream


@dataclass(frozen=True)
class Target:
    """The `fit` that a backup is restored into.

    Attributes:
        backup_dir: the folder of the backups, as the user named it.
        model: built and compiled.
        callbacks: all other callbacks of `fit`.
        epochs: the requested number of epochs, None if unknown.
        compiled_rate: the learning rate that `compile` set, None if it is not a variable.
        call: the running `fit`, None if it was not found.
        stream: the data of `data=`, None if the data are the user's own.
        on_new_data: the argument of `BackupAndRestore`.
        script: the description of the model, of `compile` and of `fit`.
        deletes: True if the backups are removed when `fit` ends.
        again: True if a `fit` of this process wrote the backup.
    """

    backup_dir: str
    model: Any
    callbacks: Sequence[Any]
    epochs: int | None
    compiled_rate: float | None
    call: FitCall | None
    stream: Stream | None
    on_new_data: Literal["next-epoch", "error"]
    script: Script
    deletes: bool = False
    again: bool = False
