"""Checks that there are images to train on, and that options find what they are about.

check_sources(config, parent, sources)
"""

from __future__ import annotations

from kresume.errors import ImagesError, UsageError
from kresume.images.collect import Sources
from kresume.options.table import TrainConfig
from kresume.spelling import option
from kresume.training.plan.images import no_images
from kresume.training.plan.parent import Parent


def check_sources(config: TrainConfig, parent: Parent | None, sources: Sources) -> None:
    """Raises if images are missing, all of them or the old ones, or if an option could have no effect.

    Raises:
        UsageError: there are no images at all, or an option is about a checkpoint or images that are not there.
        ImagesError: there are only new images, for a checkpoint that remembers none.
    """
    if parent is None and sources.data is None:
        raise no_images()
    _check_new_only(config, parent, sources)
    _check_about_parent(config, parent)
    if config.new_head and sources.data is None:
        raise UsageError(
            f"{option('new-head', True)} trains a head for the classes of the images at hand: give them with {option('data')}"
        )
    if parent is not None and parent.manifest is None and sources.data is None:
        if sources.add is None:
            raise UsageError(
                f"{config.from_} has no record of its images: give those that it was trained on with {option('data')}, new "
                f"ones with {option('add')}"
            )
        if config.new_only or config.distill is not None:
            return
        raise ImagesError(
            f"{config.from_} has no record of its images, and only new ones were given: the model would forget the old ones. "
            f"Give the old ones with {option('data', 'OLD')}, extend a run of kresume (it records its images) with "
            f"{option('from', 'RUN')}, keep its answers near those of the checkpoint with {option('distill', 1.0)}, or "
            f"accept that with {option('new-only', True)}"
        )


def _check_about_parent(config: TrainConfig, parent: Parent | None) -> None:
    """Raises if an option is about a checkpoint that is not there, or what the parent has decided.

    Raises:
        UsageError: it would have no effect.
    """
    for name in ("map", "map_out", "optimizer_from") if config.from_ is None else ():
        if (value := getattr(config, name)) is not None:
            raise UsageError(
                f"{option(name.replace('_', '-'), value)} is about a checkpoint, and there is none: give {option('from')}, or "
                "leave it out"
            )
    if config.val_like is not None and parent is not None and parent.manifest is not None:
        raise UsageError(
            f"{option('val-like', config.val_like)} says how images were split where no record does, but {config.from_} "
            "records which of its images validate: leave it out"
        )


def _check_new_only(config: TrainConfig, parent: Parent | None, sources: Sources) -> None:
    """Raises if `--new-only` contradicts what is given.

    Raises:
        UsageError: there are old images, or options that need them.
    """
    if not config.new_only:
        return
    if parent is None or parent.manifest is not None or sources.data is not None:
        known = "the run records them" if parent is not None else "there is no checkpoint"
        whose = f"{option('data')} gives them" if sources.data is not None else known
        raise UsageError(f"{option('new-only', True)} trains without the old images, but {whose}: leave it out")
    for name in ("replay", "mix", "max_forgetting"):
        value = getattr(config, name)
        if value not in {None, "concat"}:
            raise UsageError(
                f"{option(name.replace('_', '-'), value)} needs old images, and {option('new-only', True)} says that there "
                "are none"
            )
