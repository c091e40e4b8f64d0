"""Decides which layers do not train, and until when: `--freeze` and `--unfreeze-at`.

freezing = decide_freezing(config, live.model, epochs=8)        # None if no option says anything
"""

from __future__ import annotations

from typing import Any

from kresume.errors import UsageError
from kresume.options.settings import HEAD_SHARE
from kresume.options.table import TrainConfig
from kresume.spelling import counted, option
from kresume.training.plan.notes import listed
from kresume.values.amount import Amount
from kresume.values.freezing import NONE, Freezing


def decide_freezing(
    config: TrainConfig, model: Any, epochs: int, *, fresh_head: bool = False, before: Freezing | None = None
) -> Freezing | None:
    """Returns what is frozen; None if the model trains as it is.

    Args:
        config: the options.
        model: the restored model.
        epochs: epochs of the run.
        fresh_head: True if a new head stands on trained layers. It trains alone for the first tenth of the epochs, and the
            layers of batch normalisation below it keep their statistics throughout, as Keras's guide to fine-tuning says.
        before: that of the parent run; what it froze for its first epochs trains now, also if it ended before them.

    Raises:
        UsageError: a pattern matches nothing, every layer would be frozen throughout, or the options contradict each other.
    """
    from kresume.models import freeze

    patterns, until = config.freeze, config.unfreeze_at
    if until is not None and until >= epochs:
        raise UsageError(
            f"{option('unfreeze-at', until)}: the run has {counted(epochs, 'epoch')}, so nothing would be unfrozen: give "
            "fewer, or leave it out"
        )
    if fresh_head and patterns is None:
        return _head_first(config, model, epochs)
    if patterns is None and until is None:
        return _pending(before, model)
    already = freeze.frozen_now(model)
    if patterns is None:
        first = already
        if not first:
            raise UsageError(
                f"{option('unfreeze-at', until)}: no layer of the checkpoint is frozen: name some with "
                f"{option('freeze', 'PATTERN')}"
            )
    elif NONE in patterns:
        if len(patterns) > 1 or until is not None:
            raise UsageError(
                f"{option('freeze', NONE)} freezes nothing: leave the other patterns and {option('unfreeze-at')} out"
            )
        return Freezing(already, 0) if already else None
    else:
        first = freeze.matching(model, patterns)
    freezing = Freezing(tuple(dict.fromkeys((*already, *first))) if until is None else first, until)
    _check_something_trains(freezing, model)
    return freezing


def _head_first(config: TrainConfig, model: Any, epochs: int) -> Freezing | None:
    """Returns the freezing of a new head on trained layers."""
    import keras

    from kresume.models import freeze
    from kresume.models.head import find_head

    head = find_head(model, config.head).layer
    layers = {address: layer for address, (_, layer) in freeze.layers_of(model).items() if layer is not head}
    always = tuple(address for address, layer in layers.items() if isinstance(layer, keras.layers.BatchNormalization))
    trains = [address for address, layer in layers.items() if layer._trainable_variables and address not in always]
    first = tuple(each for each in freeze.closed(model, [*trains, *always]) if each not in always)
    until = config.unfreeze_at or max(1, round(HEAD_SHARE * epochs))
    if epochs <= until:
        return Freezing((), None, always, head_alone=True) if always else None
    return Freezing(first, until, always, head_alone=True)


def _pending(before: Freezing | None, model: Any) -> Freezing | None:
    """Returns a freezing that trains what a parent run froze at first, if it ended before that."""
    from kresume.models import freeze

    if before is None or not before.until:
        return None
    frozen = set(freeze.frozen_now(model))
    left = tuple(address for address in before.first if address in frozen)
    return Freezing(left, 0, before.always) if left else None


def head_steps(freezing: Freezing | None, amount: Amount) -> int:
    """Returns the steps in which a new head trains alone; 0 if it does not."""
    if freezing is None or not freezing.until:
        return 0
    return amount.boundaries[freezing.until - 1]


def _check_something_trains(freezing: Freezing, model: Any) -> None:
    from kresume.models import freeze

    frozen = freezing.frozen(0)
    layers = freeze.layers_of(model)
    if not any(layer._trainable_variables and address not in frozen for address, (_, layer) in layers.items()):
        raise UsageError(
            f"every layer of the model would be frozen at first, so no weight would train: name fewer with {option('freeze')}"
        )


def describe_freezing(freezing: Freezing | None, model: Any, *, begins: bool = False) -> str:
    """Describes what is frozen: `"12 of 14 layers for the first 2 epochs: conv2d, ..."`; may be empty.

    Args:
        freezing: which layers, and until when; None freezes nothing.
        model: built.
        begins: says that layers which were frozen in the checkpoint have no optimizer state there.
    """
    from kresume.models import freeze

    if freezing is None:
        return ""
    layers = {address: name for address, (name, layer) in freeze.layers_of(model).items() if layer._trainable_variables}
    names = [layers[address] for address in freezing.first if address in layers]
    if freezing.until == 0:
        state = "; their optimizer state begins here" if begins else ""
        return f"none; {len(names):,} of {len(layers):,} layers were frozen in the checkpoint: {listed(names)}{state}"
    if freezing.head_alone:
        count = len(freezing.always)
        normal = f"{count:,} layer{'s' * (count > 1)} of batch normalisation throughout" if count else ""
        first = f"all but the head for the first {_epochs(freezing.until)}" if freezing.until else ""
        otherwise = f"{option('freeze', 'PATTERN')}, {option('unfreeze-at', 'EPOCH')} say otherwise"
        return f"{', '.join(filter(None, [first, normal]))} ({otherwise})"
    when = "throughout" if freezing.until is None else f"for the first {_epochs(freezing.until)}"
    always = [layers[address] for address in freezing.always if address in layers]
    more = f"; {len(always):,} throughout: {listed(always)}" if always else ""
    named = {*freezing.first, *freezing.always}
    others = [layers[address] for address in freeze.frozen_now(model) if address in layers and address not in named]
    if others:
        more += f"; {len(others):,} more as in the checkpoint: {listed(others)} ({option('freeze', NONE)} trains all)"
    return f"{len(names):,} of {len(layers):,} layers {when}: {listed(names)}{more}"


def _epochs(count: int) -> str:
    return "epoch" if count == 1 else f"{count:,} epochs"
