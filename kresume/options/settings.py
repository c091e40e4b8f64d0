"""Holds every default: the only place where one is written down.

    held = settings_of(config)         # the option where it was given, else its default
    held.batch_size, held.augment

`Settings` has the options of a training whose default is one value. The constants below it are the rules for those that depend
on the checkpoint and the images: how long to train, at which rate; and the defaults of the other commands. This module imports
nothing, so that the command line can print defaults at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from kresume.options.table import TrainConfig
    from kresume.values.decode_spec import Interpolation, Resize

RowsKind = Literal["imprinted", "random"]
"""How the rows of new classes start."""


@dataclass(frozen=True)
class Settings:
    """Options with their values; the defaults apply if neither command nor checkpoint says another."""

    val_split: float = 0.1
    on_missing: Literal["error", "drop", "cache"] = "error"
    on_conflict: Literal["quarantine", "old", "new"] = "quarantine"
    mix: str = "concat"
    average: str = "0"
    balance: Literal["none", "class"] = "none"
    augment: Literal["none", "light", "strong"] = "light"
    vary_interpolation: bool = False
    mixup: float = 0.0
    cutmix: float = 0.0
    rand_augment: float = 0.0
    erase: float = 0.0
    model: str = "convnet"
    image_size: str = "64"
    resize: Resize = "stretch"
    interpolation: Interpolation = "area"
    epochs: int = 20
    batch_size: int = 32
    steps_per_execution: int = 1
    seed: int = 0
    new_rows: RowsKind = "imprinted"
    monitor: str = "val_loss"
    bn_stats: Literal["recomputed", "moving"] = "recomputed"
    optimizer: str = "adamw"
    snapshot_every: str = "1min"
    keep: int = 3
    tensorboard: bool = True
    profile: bool = False
    trial: bool = True
    device: Literal["auto", "cpu", "gpu", "tpu"] = "auto"
    cache: str = "auto"
    cache_limit: str = "50GB"
    exact: Literal["on", "off"] = "off"


DEFAULTS = Settings()

FEWEST_EPOCHS = 3
"""Epochs of an extension, however few images are new."""
MORE_EPOCHS = 5
"""Epochs of an extension without new images."""
NEW_SHARE_FACTOR = 1.5
"""An extension has this times the share of new images times the epochs of a new model."""
WARMUP_SHARE = 0.05
"""Share of a run that warms up."""
LONGEST_WARMUP = 200
"""Steps of the longest warm-up."""
COOLDOWN_SHARE = 0.5
"""Share of a run, its last part, in which a cooldown brings the rate down to 0."""
EXTEND_FACTOR = 0.3
"""Factor on the checkpoint's rate where images are added and none of the old ones is there, or where a run goes on alone."""
RATES: Mapping[str, float] = {
    "adam": 1e-3, "adamw": 1e-3, "sgd": 1e-2, "rmsprop": 1e-3, "lion": 1e-3, "muon": 1e-3, "nadam": 1e-3,
}  # fmt: skip
"""Learning rate of a new model, by the optimizer's class in small letters."""
OTHER_RATE = 1e-3
"""Learning rate of a new model with any other optimizer."""

NEW_CLASSES_BALANCE: Literal["none", "class"] = "class"
"""How an epoch is balanced where classes are new."""
HEAD_SHARE = 0.1
"""Share of a run, its first part, in which a new head on trained layers trains alone."""
TUNE_FACTOR = 0.1
"""Factor on the rate with which all layers train after that."""
DISTILL_TEMPERATURE = 2.0
"""Temperature at which the answers of a run and its parent are compared, where the parent teaches."""
PRETRAINED_IMAGE_SIZE = "224"
"""Size of the pictures of a new model with the weights of an application."""
IMPRINT_IMAGES = 64
"""Training images of a class from which its mean features are computed, where classes are new."""
IMPRINT_OLD_IMAGES = 1024
"""Images of all old classes together that are used for it at most, where there are fewer classes than that."""

MOST_STATISTICS_IMAGES = 1024
"""Training images from which the statistics of batch normalisation are recomputed before a scoring."""
STATISTICS_SHARE = 0.25
"""Share of an epoch's images that this uses at most: a pass that only predicts then costs less than a tenth of the epoch."""

DEFAULT_MLFLOW = "mlruns"
"""Where `--mlflow` records without an address, unless MLFLOW_TRACKING_URI names one."""
EXPORT_FORMAT = "saved-model"
TOP_K = 5
"""Labels per image that a SavedModel answers."""
ON_BAD_IMAGE: Literal["error", "flag"] = "error"
MIN_SCORE = 0.9
"""Score from which `kresume predict --sort` puts a picture into a class folder: few of those should be wrong, because a person
looks through them in passing, and the rest is labelled by hand anyway."""
SHEET_SIZE = 96
"""Side in pixels of the pictures on a contact sheet, where no run says another."""


def settings_of(config: TrainConfig) -> Settings:
    """Fills in defaults.

    Args:
        config: options as they were given.

    Returns:
        The given value of each option, else its default.
    """
    given = {each.name: getattr(config, each.name) for each in fields(Settings)}
    return Settings(**{name: value for name, value in given.items() if value is not None})


def default_rate(optimizer: str) -> float:
    """Returns the learning rate of a new model.

    Args:
        optimizer: its optimizer's class, in any case.
    """
    return RATES.get(optimizer.lower(), OTHER_RATE)
