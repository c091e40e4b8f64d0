"""Starts a run with a new head on trained layers: `--weights` and `--new-head`."""

from __future__ import annotations

from dataclasses import replace

from kresume.errors import UsageError
from kresume.options.resolve import parse_image_size
from kresume.options.settings import PRETRAINED_IMAGE_SIZE
from kresume.options.table import TrainConfig
from kresume.spelling import option
from kresume.training.plan.parent import Live, Parent, choose_optimizer

RANDOM = "random"
"""Value of `--weights` for initial weights."""


def is_pretrained(config: TrainConfig, parent: Parent | None) -> bool:
    """Returns True if a new model starts from given weights: those of `--weights`, or a preset's own.

    Args:
        config: the options.
        parent: the checkpoint to start from, None for a new model.

    Raises:
        UsageError: two options say where to start.
    """
    if config.weights is None:
        return parent is None and _kind(config) == "hub"
    if config.from_ is not None:
        raise UsageError(
            f"{option('weights', config.weights)} and {option('from', config.from_)} both say where to start: give one"
        )
    return config.weights != RANDOM


def _kind(config: TrainConfig) -> str:
    return (config.model or "").partition(":")[0]


def pretrained_live(config: TrainConfig, num_classes: int, image_size: tuple[int, int] | None) -> Live:
    """Builds a network with given weights and a new head: an application or a preset of keras-hub.

    Args:
        config: the options.
        num_classes: outputs of the head.
        image_size: the requested `(height, width)`; None for the preset's own, else 224 pixels.

    Raises:
        UsageError: the weights are of another kind of model.
        ModelError, RestoreError: the weights cannot be fetched or do not fit.
        MissingPackage: the preset needs keras-hub.
    """
    from kresume.models import optimizers, precision
    from kresume.models.hub import HUB, from_preset
    from kresume.models.pretrained import pretrained

    spec = config.model or ""
    if _kind(config) == "hub":
        if config.weights is not None:
            raise UsageError(
                f"{option('model', spec)} has the weights of its preset: leave {option('weights', config.weights)} out "
                f"({option('weights', RANDOM)} starts with initial ones)"
            )
        model, said = from_preset(spec.removeprefix(HUB), num_classes, image_size)
    elif _kind(config) == "applications":
        size = image_size or parse_image_size(PRETRAINED_IMAGE_SIZE)
        model, said = pretrained(spec.partition(":")[2], str(config.weights), num_classes, size)
    else:
        raise UsageError(
            f"{option('weights', config.weights)} is for {option('model', 'applications:NAME')}; weights of another model are "
            f"given as {option('from', 'FILE')} with {option('model')}, and {option('new-head', True)} replaces its head"
        )
    saved, _, _ = choose_optimizer(config, None, model)
    saved = replace(saved, loss_scale=precision.needs_loss_scale(model))
    optimizer = optimizers.make_optimizer(saved, 1e-3)
    optimizer.build(model.trainable_variables)
    return Live(model, optimizer, saved, said)


def without_images(config: TrainConfig, parent: Parent | None) -> Parent:
    """Returns a parent whose images and classes are no longer wanted (`--new-head`).

    Raises:
        UsageError: there is no parent, or its head is to be grown, too.
    """
    if config.grow:
        raise UsageError(
            f"{option('new-head', True)} drops the old classes and {option('grow', True)} keeps them: give one of them"
        )
    if parent is None:
        raise UsageError(
            f"{option('new-head', True)} replaces the head of a checkpoint: give it with {option('from', 'PATH')} (a new model "
            f"has a new head already; {option('weights')} gives one the weights of ImageNet)"
        )
    return replace(parent, manifest=None)


def saved_outputs(parent: Parent | None) -> int:
    """Returns the number of outputs of the checkpoint's head, for a user's function that makes the model.

    Raises:
        UsageError: it is unknown.
    """
    from kresume.checkpoints.layers import output_width

    count = None
    if parent is not None:
        count = len(parent.card.classes) if parent.card is not None else output_width(parent.state)
    if count is None:
        raise UsageError(
            f"the number of the checkpoint's outputs is unknown, so {option('new-head', True)} cannot replace them"
        )
    return count
