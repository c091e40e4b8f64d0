"""Checks the arguments of `kresume.BackupAndRestore`, and the model that is trained with it."""

from __future__ import annotations

from typing import Any

import keras

from kresume.backend.selection import BACKENDS
from kresume.errors import UsageError


def check_arguments(backup_dir: Any, save_freq: Any, data: Any, strict: bool | None, on_new_data: str) -> None:
    """Raises if an argument is invalid or contradicts another, or if Keras runs on another backend.

    Raises:
        UsageError: the message names the argument and what to give.
    """
    if (backend := keras.config.backend()) not in BACKENDS:
        raise UsageError(
            f"Keras runs on {backend} in this process, and kresume.BackupAndRestore continues trainings on TensorFlow or JAX "
            "alone: set KERAS_BACKEND=tensorflow or KERAS_BACKEND=jax before anything imports keras"
        )
    if not backup_dir:
        raise UsageError("Empty `backup_dir` argument passed (it is empty or None): give the folder for the backups")
    if save_freq != "epoch" and (isinstance(save_freq, bool) or not isinstance(save_freq, int) or save_freq < 1):
        raise UsageError(
            f"Invalid value for argument `save_freq`. Received: save_freq={save_freq!r}: give 'epoch' or a number of "
            "batches of at least 1"
        )
    if save_freq != "epoch" and data is None and strict:
        raise UsageError(
            f"save_freq={save_freq} needs data=: without it, the batches that an interrupted epoch has drawn are unknown. "
            "Give data=kresume.resumable(...) or kresume.image_dataset(...), save_freq='epoch', or leave strict out"
        )
    if on_new_data not in {"next-epoch", "error"}:
        raise UsageError(f"on_new_data={on_new_data!r}: give 'next-epoch' or 'error'")


def check_model(model: Any) -> None:
    """Raises if a model is not of Keras 3; `tf_keras` takes its callbacks as they are.

    Raises:
        UsageError: the message names the library.
    """
    if not isinstance(model, keras.Model):
        library = type(model).__module__.partition(".")[0]
        raise UsageError(
            f"kresume.BackupAndRestore continues models of Keras 3, and this fit is that of {library} (a model of class "
            f"{type(model).__name__}): give {library}'s own BackupAndRestore. A file that its model was saved to is continued "
            "by kresume.resume('FILE')"
        )
