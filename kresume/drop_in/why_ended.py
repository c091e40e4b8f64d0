"""Finds out why a training had ended, and says how to train further.

why_ended(records, target, step, new_images, fit_returned, messages)       # empty if an epoch is left
all_epochs_done(3, 3, 1200)         # "all 3 epochs are done (step 1,200); give fit(epochs=...) more than 3..."
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kresume.drop_in.restore_target import Target
from kresume.training.loop import callback_state

REMOVED = "; fit returns now and removes its backups (delete_checkpoint=False keeps them)"
"""The end of a message that nothing is left to train, if the backups are removed."""


def why_ended(
    records: Mapping[str, Any], target: Target, step: int, new_images: bool, fit_returned: bool, messages: list[str]
) -> str:
    """Explains why no epoch is left and how to train further; empty if one is left.

    A callback may have ended the training. It stays ended until something that the callback judged by has changed.

    Args:
        records: the records of the backup.
        target: the `fit` to restore into.
        step: the number of steps trained.
        new_images: True if images arrived since.
        fit_returned: True if the `fit` that wrote the backup returned afterwards.
        messages: extended by a message for the user if training continues although a callback had ended it.
    """
    done, epochs, before = int(records["epoch"]), target.epochs, records.get("epochs")
    if epochs is not None and (done, int(records["batch"])) > (epochs, 0):
        return (
            f"the backup (step {step:,}) is ahead of the requested {epochs} epochs, and stays; give fit(epochs=...) more than "
            f"{done} to train further"
        )
    if all_done := all_epochs_done(done, epochs, step, way_on=not target.deletes):
        return f"{all_done}{', or, for another training, a folder of its own' * (fit_returned and not target.deletes)}"
    if not records["stopped"]:
        return ""
    end = f"after epoch {done} of {epochs} (step {step:,})"
    if new_images or (before is not None and epochs is not None and epochs > before):
        callback_state.take_back_stop(target.callbacks, renew=True)
        changed = "new images arrived" if new_images else f"now {epochs} epochs are requested instead of {before}"
        messages.append(
            f"a callback had ended the training, but {changed}: EarlyStopping's patience starts again, its best value is kept"
        )
        return ""
    if callback_state.stopped_by_patience(records["callbacks"]):
        if callback_state.out_of_patience(target.callbacks):
            more = "; to train further, give it more patience, fit more epochs, or new images"
            return f"EarlyStopping ended the training {end}{REMOVED if target.deletes else more}"
        callback_state.take_back_stop(target.callbacks, renew=False)
        messages.append("EarlyStopping had ended the training, but now it has more patience")
        return ""
    if fit_returned:
        messages.append("a callback had ended the training, and may end it again")
        return ""
    more = "; fit returns now, run the script again to train further"
    return f"a callback ended the training {end}, and the process died before fit returned{REMOVED if target.deletes else more}"


def all_epochs_done(done: int, epochs: int | None, step: int, *, way_on: bool = True) -> str:
    """Returns a message if no requested epoch is left to train; else an empty string.

    Args:
        done: the number of epochs trained.
        epochs: the requested number.
        step: the number of steps trained.
        way_on: False if the backups are removed now, as by any fit that ends.
    """
    if epochs is None or done < epochs:
        return ""
    end = f"; give fit(epochs=...) more than {done} to train further" if way_on else REMOVED
    return f"all {epochs} epochs are done (step {step:,}){end}"
