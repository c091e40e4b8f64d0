"""Checks that there are images to train on, and that the old ones are among them.

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
    """Raises if images are missing: all of them, or the old ones.

    Raises:
        UsageError: there are no images at all.
        ImagesError: there are only new images, for a checkpoint that remembers none.
    """
    if parent is None and sources.data is None:
        raise no_images()
    _check_new_only(config, parent, sources)
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
