"""Creates optimizers by name or as a checkpoint had them, at a given rate.

optimizer = make_optimizer(state.optimizer, 1e-4)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import keras

from kresume.backend import live_state
from kresume.checkpoints.keras_arrays import OPTIMIZERS
from kresume.errors import CheckpointError, UsageError
from kresume.models import weight_decay
from kresume.spelling import option
from kresume.values.state import SavedOptimizer

ADAMS = frozenset({"Adam", "AdamW", "Nadam", "Adamax", "Lamb"})
BETAS = frozenset({"beta_1", "beta_2", "epsilon", "amsgrad"})
SHARED = frozenset(
    {"clipnorm", "global_clipnorm", "clipvalue", "use_ema", "ema_momentum", "ema_overwrite_frequency"}
    | {"gradient_accumulation_steps", weight_decay.KEY}
)


def class_name(name: str) -> str:
    """Converts `"adamw"` to `"AdamW"`.

    Raises:
        UsageError: Keras has no such optimizer.
    """
    found = {known.lower(): known for known in OPTIMIZERS}.get(name.lower())
    if found is None:
        raise UsageError(
            f"{option('optimizer', name)}: use keep, or one of {', '.join(known.lower() for known in OPTIMIZERS)}; to use "
            f"another class, compile it in the function of {option('model')}"
        )
    return found


def parse_choice(text: str | None) -> tuple[str | None, bool]:
    """Parses the value of `--optimizer`.

    Returns:
        The class, which is None for `keep` and if nothing is given, and True if its state starts fresh.

    Raises:
        UsageError: the text is not keep, NAME, NAME:keep or NAME:reset.
    """
    name, _, way = (text or "keep").partition(":")
    if way not in {"", "keep", "reset"}:
        raise UsageError(f"{option('optimizer', text)}: give keep, NAME, NAME:keep or NAME:reset")
    if name == "keep" and way == "reset":
        raise UsageError(f"{option('optimizer', text)} contradicts itself: give NAME:reset, for example adamw:reset")
    return (None if name == "keep" else class_name(name)), way == "reset"


def says_same_weights(text: str | None) -> bool:
    """Returns True if `--optimizer` states that the slots belong to the weights trainable now."""
    return text == "keep" or str(text).endswith(":keep")


def make_optimizer(saved: SavedOptimizer, learning_rate: Any) -> Any:
    """Creates an optimizer of the saved class and config, at another rate.

    Args:
        saved: class and config; a config of None means Keras's defaults. With `loss_scale`, the optimizer is wrapped
            for mixed_float16.
        learning_rate: a float or a Keras schedule.

    Raises:
        CheckpointError: Keras does not know the class.
    """
    if saved.class_name is None:
        raise CheckpointError(f"the checkpoint does not name its optimizer: give {option('optimizer', 'NAME')}")
    config = dict(saved.config or {})
    config.pop("name", None)  # an auto-generated name of another process would shift the paths of the slots
    undecayed = config.pop(weight_decay.KEY, None)
    config["learning_rate"] = 1e-3  # the saved schedule may be of a class that is no longer needed
    try:
        cls = keras.saving.get_registered_object(saved.class_name) or getattr(keras.optimizers, saved.class_name)
        optimizer = cls.from_config(config)
    except (AttributeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"the checkpoint's optimizer {saved.class_name} cannot be built ({error}): register it with "
            f"{option('import', 'FILE.py')}, or start another one fresh with {option('optimizer', 'NAME:reset')}"
        ) from error
    optimizer.learning_rate = learning_rate
    if undecayed is not None:
        weight_decay.mark(optimizer, undecayed)
    return keras.optimizers.LossScaleOptimizer(optimizer) if saved.loss_scale else optimizer


def describe(optimizer: Any, model: Any | None = None) -> SavedOptimizer:
    """Returns the class and config of a live optimizer, as `make_optimizer` expects them.

    Args:
        optimizer: of Keras.
        model: the model for which a user's function compiled it.
    """
    wrapped, optimizer = optimizer, live_state.inner(optimizer)
    name = str(keras.saving.get_registered_name(type(optimizer)))
    config = dict(keras.saving.serialize_keras_object(optimizer)["config"])
    if (undecayed := weight_decay.left_out(optimizer, model)) is not None:
        config[weight_decay.KEY] = list(undecayed)
    return SavedOptimizer(name, config, len(optimizer.variables), wrapped is not optimizer)


def with_config(saved: SavedOptimizer, changes: Mapping[str, Any]) -> SavedOptimizer:
    """Returns the optimizer with some settings changed.

    Raises:
        UsageError: its class has no such setting.
    """
    if not changes:
        return saved
    default = make_optimizer(replace(saved, config=None, loss_scale=False), 1e-3).get_config()
    for name in changes:
        if name not in default and name != weight_decay.KEY:
            raise UsageError(f"{saved.class_name} has no setting {name}")
    return replace(saved, config={**(saved.config or {}), **changes})


def change_class(saved: SavedOptimizer, name: str) -> SavedOptimizer:
    """Changes an optimizer's class and keeps the settings that both classes have.

    These are clipping, averages (EMA) and accumulation; between classes of the Adam family also the betas, epsilon and
    amsgrad.

    Args:
        saved: the checkpoint's optimizer.
        name: the other class.
    """
    default = make_optimizer(SavedOptimizer(name, None, 0), 1e-3).get_config()
    shared = SHARED | (BETAS if {saved.class_name, name} <= ADAMS else frozenset())
    default |= {weight_decay.KEY: ()}
    config = {key: value for key, value in (saved.config or {}).items() if key in shared and key in default}
    return replace(saved, class_name=name, config=config)


def comparable_rates(one: str | None, other: str | None) -> bool:
    """Returns True if a rate means about the same to both classes."""
    return one == other or {one, other} <= ADAMS
