"""Checks merged images: every class is known, something is new, and something is left to train on.

check_merge(config, parent, merge, classes, quarantine)
check_new(config, parent, merge, dropped, quarantine)
check_left(merge)
"""

from __future__ import annotations

from collections.abc import Sequence

from kresume.checkpoints.run import named
from kresume.class_renames import join_rename
from kresume.errors import ImagesError, NothingNew
from kresume.images import collect
from kresume.images.merging import Merge
from kresume.images.sources import Quarantined
from kresume.images.sources.found import ONE_LABEL
from kresume.options.table import TrainConfig
from kresume.spelling import counted, option
from kresume.training.plan.dropping import Dropped
from kresume.training.plan.growth import ways_on
from kresume.training.plan.parent import Parent
from kresume.training.plan.renamed import hint_renamed


def corrects(config: TrainConfig, merge: Merge) -> bool:
    """Returns True if the labels of old images changed."""
    return bool(merge.facts.relabels) or (config.on_conflict == "new" and bool(merge.facts.conflicts))


def check_merge(config: TrainConfig, parent: Parent | None, merge: Merge, classes: Sequence[str]) -> None:
    """Checks that the model knows the class of every image.

    Args:
        config: the options of the run.
        parent: the checkpoint to start from, None for a new model.
        merge: the images of the run.
        classes: the class names in the order of the outputs.

    Raises:
        ImagesError: it does not; the message says which, and the ways on.
    """
    if merge.facts.unknown:
        unknown = ", ".join(
            f"{name!r} ({counted(count, 'image')})" for name, count in sorted(merge.facts.unknown.items())
        )
        grown = config.grow if isinstance(config.grow, tuple) else ()
        knows = ", ".join(repr(name) for name in classes if name not in grown)
        with_images = {merge.manifest.classes[label] for label in {*merge.manifest.labels.tolist()}}
        hint = hint_renamed(classes, with_images, merge.facts.unknown) if parent is not None else ""
        raise ImagesError(
            f"classes that the model does not know: {unknown}; it knows {knows}. "
            f"{ways_on(config, parent, merge.facts.unknown, classes)}{hint}"
        )


def check_new(
    config: TrainConfig, parent: Parent | None, merge: Merge, dropped: Dropped, quarantine: Sequence[Quarantined]
) -> None:
    """Checks that `--add` brings something, or `--drop` takes something away.

    Args:
        config: the options of the run.
        parent: the checkpoint to start from, None for a new model.
        merge: the images of the run.
        dropped: the images that it leaves out for good.
        quarantine: the files that cannot be used.

    Raises:
        NothingNew: the run would have the images and labels of its parent.
    """
    if config.add is None or parent is None or parent.manifest is None:
        return
    facts = merge.facts
    changed = facts.added or facts.back or corrects(config, merge) or dropped.removed(parent) or config.rename
    if changed or (config.watch and not collect.without_empty(config.add)):  # a watched folder may start empty
        return
    problems = []
    if quarantine:
        problems.append(
            f"{counted(len(quarantine), 'file')} cannot be used, the first is {quarantine[0].path}: {quarantine[0].reason}"
        )
    if facts.conflicts:
        path, label, other = facts.conflicts[0]
        renames = join_rename(other, label)
        way = f"; {option('rename', renames)} if the class was renamed" if label not in merge.manifest.classes else ""
        problems.append(
            f"{len(facts.conflicts):,} have another label than before or in another source, the first is {path}: {label}, "
            f"and {other} elsewhere ({option('on-conflict', 'new')} uses the new label{way})"
        )
    parent_name = named(str(config.from_))
    problems += dropped.describe_absent(facts, parent_name)
    inside = ", ".join((*(config.data or ()), *config.add, *(config.val or ())))
    if not config.add:
        raise NothingNew("; ".join([f"nothing new: {option('add')}: an empty list names no source", *problems]))
    if problems:
        raise NothingNew(
            f"nothing new that can be used: {facts.known:,} images in {inside} are already in {parent_name}; "
            f"{'; '.join(problems)}"
        )
    raise NothingNew(f"nothing new: all {facts.known:,} images in {inside} are already in {parent_name}")


def check_left(merge: Merge) -> None:
    """Checks that the run has images to train on.

    Args:
        merge: the images of the run.

    Raises:
        ImagesError: it has none.
    """
    facts = merge.facts
    if len(merge.manifest.train_rows()) == 0:
        doubled = (
            f"{counted(len(facts.conflicts), 'file', 'has', 'have')} two labels ({option('on-conflict', 'new')} uses the newer "
            f"one, where one is newer), and {ONE_LABEL}; "
            if facts.conflicts
            else ""
        )
        raise ImagesError(
            f"no image is left to train on: {doubled}check the quarantine and {option('val-split')}, or give more images with "
            f"{option('data')} or {option('add')}"
        )
