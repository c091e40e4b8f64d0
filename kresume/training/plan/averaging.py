"""Checks and describes `--average`: mixing the weights with which a run began into its result.

check_average(config, loaded)                 # before anything is trained
describe_average(config, loaded.parent, old=83)       # the plan's line; empty without the option
"""

from __future__ import annotations

from kresume.errors import UsageError
from kresume.options.resolve import average_of
from kresume.options.table import TrainConfig
from kresume.spelling import in_percent, option
from kresume.training.plan.draft import Loaded
from kresume.training.plan.judging import chooser
from kresume.training.plan.parent import Parent


def check_average(config: TrainConfig, loaded: Loaded) -> None:
    """Checks that the weights with which a run begins answer like its checkpoint.

    Raises:
        UsageError: there is no checkpoint, or its head was given up.
    """
    if not average_of(config):
        return
    given = option("average", str(config.average))
    if config.from_ is None:
        raise UsageError(
            f"{given} mixes the weights of a checkpoint into the result, and there is none: give {option('from')}, or leave it "
            "out"
        )
    if loaded.parent is not None and loaded.fresh_head:
        raise UsageError(
            f"{given} mixes the weights of the checkpoint into the result, but the run begins with a new head that answers at "
            f"random: leave it out, or {option('average', '0')} for a run whose parent had it"
        )


def describe_average(config: TrainConfig, parent: Parent | None, old: int) -> str:
    """Describes what is mixed in, in words; empty if nothing is.

    Args:
        config: the options.
        parent: the checkpoint; None for a new model.
        old: how many validation images are old.
    """
    asked = average_of(config)
    if not asked:
        return ""
    if parent is None:
        return "nothing, because there is no checkpoint whose weights could be mixed in"
    if asked == "auto":
        share = option("average", "0.25")
        unseen = f"; no validation image shows what is forgotten, so it mixes in little: better give {share}"
        best = f"the share of the checkpoint's weights with the best {chooser(config)}, chosen when training is done"
        return best + unseen * (not old)
    return f"{in_percent(asked)} of the checkpoint's weights, mixed in when training is done"
