"""Starts a run with a new head on trained layers: `--weights` and `--new-head`."""

from __future__ import annotations

from dataclasses import replace

from kresume.errors import UsageError
from kresume.options.resolve import parse_image_size
from kresume.options.settings import PRETRAINED_IMAGE_SIZE
from kresume.options.table import TrainConfig
from kresume.spelling import option
from kresume.training.plan.parent import Live, Parent, choose_optimizer


def pretrained_live(config: TrainConfig, num_classes: int, image_size: tuple[int, int] | None) -> Live:
    """Builds a network of keras.applications with weights and a new head.

    Args:
        config: the options; `weights` is given.
        num_classes: outputs of the head.
        image_size: the requested `(height, width)`; None for 224 pixels.

    Raises:
        UsageError: the weights are of another kind of model, or there is a checkpoint, too.
        ModelError, RestoreError: the weights cannot be fetched or do not fit.
    """
    from kresume.models import build, optimizers, precision
    from kresume.models.pretrained import pretrained

    kind, _, name = (config.model or "").partition(":")
    if kind != "applications":
        raise UsageError(
            f"{option('weights', config.weights)} is for {option('model', 'applications:NAME')}; weights of another model are "
            f"given as {option('from', 'FILE')} with {option('model')}, and {option('new-head', True)} replaces its head"
        )
    if config.from_ is not None:
        raise UsageError(
            f"{option('weights', config.weights)} and {option('from', config.from_)} both say where to start: give one"
        )
    size = image_size or parse_image_size(PRETRAINED_IMAGE_SIZE)
    model, said = pretrained(name, str(config.weights), num_classes, size, build.new_head)
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
