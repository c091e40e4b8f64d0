"""Decides which classes a run adds to its parent's, and prepares the model that has outputs for them.

    new = new_classes(config, parent, sources, classes)          # ("rose", "tulip"), or ()
    growth = plan_growth(config, live, loss, classes, new, again)

The parent is restored and scored first, exactly as it was. `training/adjust.py` fills the grown model afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from kresume.class_names import join_classes, read_classes, show_class, spelled_alike
from kresume.errors import ImagesError, KresumeError, UsageError
from kresume.images.collect import Sources
from kresume.images.manifest import Manifest
from kresume.options.settings import RowsKind, settings_of
from kresume.options.table import TrainConfig
from kresume.spelling import counted, option
from kresume.tasks.table import class_count, task_of_outputs
from kresume.training.plan.parent import Live, Parent

if TYPE_CHECKING:
    from kresume.models.head import HeadLayer
    from kresume.models.losses import LossChoice


@dataclass(frozen=True)
class Growth:
    """The classes that a run adds, and the model with outputs for them.

    Attributes:
        before: the parent's classes.
        new: the added classes, in the order of their outputs.
        head: the parent's head.
        wider: the grown model, with initial weights.
        wider_head: its head.
        answers: the loss that says how the parent answers.
        loss: the loss that trains the grown model.
        rows: how the new rows start.
        replaces: True if the head is a new one, without the parent's classes.
    """

    before: tuple[str, ...]
    new: tuple[str, ...]
    head: HeadLayer
    wider: Any
    wider_head: HeadLayer
    answers: LossChoice
    loss: LossChoice
    rows: RowsKind
    replaces: bool = False

    def describe(self, manifest: Manifest) -> str:
        """Describes the growth: `"3 -> 5 classes: rose (34 images), ..."`, counting training images."""
        rows = manifest.train_rows()
        counts = np.bincount(manifest.labels[rows], minlength=len(manifest.classes))[len(self.before) :]
        pairs = zip(map(show_class, self.new), counts, strict=True)
        named = ", ".join(f"{name} ({counted(count, 'image')})" for name, count in pairs)
        start = "the mean features of their classes" if self.rows == "imprinted" else "small random numbers"
        if self.replaces:
            layer = self.head.layer.name
            return f"a new head of {len(self.new)} classes in the layer {layer}: {named}; its rows start from {start}"
        single = (
            "; its one output becomes one per class, with the same answers" if self.head.kernel.shape[-1] == 1 else ""
        )
        return (
            f"{len(self.before)} -> {len(self.before) + len(self.new)} classes in the layer {self.head.layer.name}: {named}; "
            f"old rows are kept, new ones start from {start}{single}"
        )


def check_head_options(config: TrainConfig) -> None:
    """Checks that options of the head have a head to change.

    Raises:
        UsageError: `--new-rows` without classes to add, or `--head` where nothing looks for the head.
    """
    adds = bool(config.grow) or bool(config.new_head)
    if config.new_rows is not None and not adds:
        raise UsageError(
            f"{option('new-rows', config.new_rows)} says how the outputs of new classes start: give {option('grow', True)} or "
            f"{option('new-head', True)}, or leave it out"
        )
    if config.head is not None and not (adds or config.freeze or config.unfreeze_at):
        raise UsageError(
            f"{option('head', config.head)} names the layer that {option('grow', True)}, {option('new-head', True)} and "
            f"{option('freeze')} need: give one of them, or leave it out"
        )


def new_classes(
    config: TrainConfig, parent: Parent | None, sources: Sources, classes: Sequence[str]
) -> tuple[str, ...]:
    """Returns the classes of the sources that `--grow` adds, in the order of their outputs.

    These are the further names of `--classes` in their order, then the other class folders, sorted.

    Args:
        config: the options.
        parent: the checkpoint; None for a new model, which knows every class.
        sources: the listed images.
        classes: the parent's classes.

    Raises:
        ImagesError: a source numbers its classes, and a number has no name.
        UsageError: a new class has the name of a known one in another spelling.
    """
    if parent is None or not config.grow:
        return ()
    asked = read_classes(config.classes)[len(classes) :] if config.classes is not None else ()
    known = (*classes, *asked)
    found = set(sources.named(known).classes) - set(known)
    numbered = {each.label for listing in sources.named(known) for each in listing.files if each.numbered}
    unnamed = sorted(found & numbered, key=int)
    if unnamed and not all(name.isdigit() for name in classes):
        raise ImagesError(
            f"images have the class number {unnamed[0]}, which has no name; numbers count the outputs from 0, which is "
            f"{known[0]}. If these do, name the new outputs, too, with {option('classes', join_classes((*known, 'NEW')))}"
        )
    if config.grow is not True:
        found &= set(config.grow or ())
    else:
        _check_spelling(found, known)
    return (*asked, *sorted(found))


def _check_spelling(found: Iterable[str], known: Collection[str]) -> None:
    """Raises UsageError if a class that `--grow` would add is a known one in another spelling."""
    known = list(known)
    for name in sorted(found):
        other = spelled_alike(name, known)
        known.append(name)
        if other is not None:
            raise UsageError(
                f"{option('grow', True)} would add the class {name} beside {other}: rename it to {other} in the folders or "
                f"lists, or say that they are two classes with {option('grow', show_class(name))}"
            )


def ways_on(config: TrainConfig, parent: Parent | None, unknown: Iterable[str], known: Sequence[str]) -> str:
    """Says what to do with images of classes that the model does not know.

    Args:
        config: the options.
        parent: the checkpoint; None for a new model.
        unknown: the classes.
        known: those that the model knows.
    """
    if parent is None:
        return "Move or rename them"
    names = sorted(unknown)
    alike = {name: other for name in names if (other := spelled_alike(name, known)) is not None}
    if alike:
        renamed = ", ".join(f"{name!r} to {other!r}" for name, other in alike.items())
        asked = config.grow if isinstance(config.grow, tuple) else ()
        others = [name for name in names if name not in alike]
        added = option("grow", join_classes((*asked, *others)))
        return (
            f"Rename {renamed} in the images' folders or lists{f' ({added} adds the others)' if others else ''}; if they are "
            f"two classes each, {option('grow', join_classes((*asked, *names)))} adds outputs for them"
        )
    if isinstance(config.grow, tuple):
        both = option("grow", join_classes((*config.grow, *names)))
        return f"{both} adds them too, {option('grow', True)} any; or move or rename them"
    only = option("grow", join_classes(names))
    return f"Add outputs for them with {option('grow', True)} (only for these: {only}), or move or rename them"


def plan_growth(
    config: TrainConfig,
    live: Live,
    loss: LossChoice,
    classes: Sequence[str],
    new: Sequence[str],
    again: Callable[[int], Any] | None,
) -> Growth:
    """Builds the grown model and chooses its loss.

    Args:
        config: the options.
        live: the restored parent.
        loss: the loss of the parent.
        classes: the parent's classes.
        new: the added ones.
        again: builds the model of the user's function with a number of classes; None if there is none.

    Raises:
        ModelError, UsageError: the head is not found, the model cannot be built wider, or its loss does not fit.
    """
    from kresume.models.grow import check_answers
    from kresume.models.head import build_wider, find_head

    head = find_head(live.model, config.head)
    single = class_count(int(head.kernel.shape[-1])) != int(head.kernel.shape[-1])
    outputs = len(classes) + len(new)
    wider, wider_head = build_wider(
        live.model,
        head,
        outputs,
        softmax=single and not loss.from_logits,
        again=again,
        replaces=bool(config.new_head),
    )
    trained = _as_softmax(wider, loss, config) if single else loss
    if single and not config.new_head:
        check_answers(live.model, head, wider, [loss.head.probabilities, trained.head.probabilities])
    _try_loss(trained, outputs)
    return Growth(
        tuple(classes),
        tuple(new),
        head,
        wider,
        wider_head,
        loss,
        trained,
        settings_of(config).new_rows,
        replaces=bool(config.new_head),
    )


def _as_softmax(wider: Any, loss: LossChoice, config: TrainConfig) -> LossChoice:
    """Returns the loss of a model whose one sigmoid output became a softmax."""
    from kresume.models.losses import choose_loss

    default = task_of_outputs(int(wider.output_shape[-1])).default_loss
    chosen = choose_loss(wider, requested=default, soft_labels=bool(config.mixup or config.cutmix))
    smoothed = f"; its label smoothing of {loss.label_smoothing:g} is left out" if loss.label_smoothing else ""
    return replace(
        chosen, reason=f"in place of {loss.kind}, which was for one output", note=f"{loss.note}{smoothed}".strip("; ")
    )


def _try_loss(loss: LossChoice, outputs: int) -> None:
    """Computes the loss once with the new number of outputs.

    Raises:
        UsageError: it was made for another number.
    """
    from kresume.models.own_code import innermost

    another = option("loss", loss.head.task.default_loss)
    labels = np.arange(2, dtype=np.int32)
    targets = loss.head.task.targets(labels, loss.form, outputs)
    try:
        value = float(np.asarray(loss.keras_loss()(targets, np.full((2, outputs), 1.0 / outputs, np.float32))))
    except KresumeError:
        raise
    except Exception as error:  # a user's own loss may raise anything
        raise UsageError(
            f"the loss {loss.kind} does not fit {outputs} outputs ({innermost(error)}): give {another}"
        ) from error
    if not np.isfinite(value):
        raise UsageError(f"the loss {loss.kind} gives {value} for {outputs} equal outputs: give {another}")


def check_filled(
    growth: Growth, manifest: Manifest, named: Mapping[str, int], conflicts: Sequence[tuple[str, str, str]]
) -> None:
    """Raises if a new class has no image to train on.

    Args:
        growth: the added classes.
        manifest: the merged images.
        named: how many files were listed, by class.
        conflicts: files whose content has two labels, as (path, label, other label).

    Raises:
        ImagesError: a class has none; its output would never be right.
    """
    counts = np.bincount(manifest.labels[manifest.train_rows()], minlength=len(manifest.classes))
    empty = [name for name in growth.new if not counts[manifest.classes.index(name)]]
    if empty:
        listed = ", ".join(f"{name} ({counted(named.get(name, 0), 'file')})" for name in empty)
        told = [each for each in conflicts if {*each[1:]} & {*empty}]
        if told:
            path, label, other = told[0]
            raise ImagesError(
                f"no image to train on for the new class {listed}: {counted(len(told), 'file', 'has', 'have')} two labels, "
                f"the first is {path} ({label} and {other}): {option('on-conflict', 'new')} uses the newer label, where one is "
                "newer; or leave them in one of the folders"
            )
        raise ImagesError(
            f"no image to train on for the new class {listed}: give images of it that can be read, or leave the folder out"
        )
