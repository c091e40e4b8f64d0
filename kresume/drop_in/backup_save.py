"""Collects the contents of a backup, and decides whether the training is worth one.

    records, extra = capture(model, callbacks)            # other callbacks, other optimizers, this machine
    writer.submit(step, partial(read_finite, model), ...) # the arrays; raises NotFinite instead
    broken(logs)                                          # "the loss is nan"
    why_kept("backup/", model, logs, 3, 5)                # "backup/: fit ended after 3 of 5 epochs, so the backups are
    kept..."

Weights that are not finite cannot be trained further. So no backup of them replaces a good one, and the good one is
kept if `fit` ends with such weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kresume.backend import fingerprint, live_state
from kresume.checkpoints import snapshot
from kresume.drop_in import generators, other_optimizers, own_state
from kresume.drop_in.fit_call import FitCall
from kresume.models import structure
from kresume.training.loop import callback_state


class NotFinite(Exception):
    """Raised instead of taking a backup whose weights are not finite."""


def capture(
    model: Any, callbacks: Sequence[Any], call: FitCall | None
) -> tuple[dict[str, Any], dict[str, list[np.ndarray]]]:
    """Reads the state that is not among the arrays of the compiled model.

    Args:
        model: the model in training.
        callbacks: all other callbacks of `fit`.
        call: the data of `fit`; None if they are unknown.

    Returns:
        `(records, extra)`: JSON values for `meta.json`, and groups of arrays by name.
    """
    facts, arrays = callback_state.capture(callbacks)
    others, slots = other_optimizers.capture(model)
    own, held = own_state.capture(model, callbacks)
    records = {
        "callbacks": facts,
        "other_optimizers": others,
        **own,
        "generators": generators.capture(),
        "draws": call.draws.record() if call is not None else None,
        "validation": call.validations.position() if call is not None else None,
        "fingerprint": fingerprint.fingerprint(),
        structure.RECORD: structure.describe(model),
    }
    extra = {"callbacks": arrays, "other_optimizers": slots, **held}
    return records, {name: given for name, given in extra.items() if given}


def read_finite(model: Any, buffers: Any) -> Any:
    """Copies the live state into the buffers.

    Raises:
        NotFinite: a trainable weight is not finite.
    """
    groups = live_state.read_state(model, buffers)
    if not all(map(snapshot.is_finite, groups["trainable"])):
        raise NotFinite
    return groups


def broken(logs: Mapping[str, Any] | None) -> str:
    """Returns a message if the logged loss is not finite; empty if finite or unknown."""
    loss = (logs or {}).get("loss")
    return "" if loss is None or math.isfinite(loss) else f"the loss is {float(loss)}"


def why_kept(backup_dir: str, model: Any, logs: Mapping[str, Any] | None, epoch: int, epochs: int | None) -> str:
    """Returns why the backups are still needed when `fit` ends; empty if they are not.

    Args:
        backup_dir: the folder of the backups, as the user named it.
        model: the trained model.
        logs: the logs of Keras's `on_train_end`.
        epoch: the number of epochs trained.
        epochs: the requested number of epochs, None if unknown.
    """
    reason = _why_unfinished(model, logs, epoch, epochs)
    kept = snapshot.list_snapshots(Path(backup_dir))
    if not (reason and kept):
        return ""
    return (
        f"{backup_dir}: {reason}, so the backups are kept. The newest is of step {kept[-1][0]:,}: run again to "
        "continue from it (a learning rate given to compile takes effect), or remove the folder to start again"
    )


def _why_unfinished(model: Any, logs: Mapping[str, Any] | None, epoch: int, epochs: int | None) -> str:
    if reason := broken(logs):
        return reason
    state = live_state.read_state(model)
    finite = all(map(snapshot.is_finite, state["trainable"])) and not any(
        array.dtype.kind == "f" and np.isnan(array).any() for array in state["non_trainable"]
    )
    if not finite:
        return "the weights are not finite"
    if epochs is not None and epoch < epochs and not model.stop_training:
        return f"fit ended after {epoch} of {epochs} epochs"
    return ""
