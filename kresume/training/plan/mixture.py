"""Decides the order of the training images, in which old and new ones are mixed as asked.

    order = decide_order(start, held, manifest, balance, generation=2)
    note_unmixed(start, held, manifest, generation=2)       # [] if they are

A parent's `--mix` or `--replay` stays an option of its children. One that adds no image has nothing to mix.
"""

from __future__ import annotations

from kresume.errors import UsageError
from kresume.images.manifest import Manifest
from kresume.images.mixing import Mixed, make_order, unmixed
from kresume.options.settings import Settings
from kresume.training.start import Start


def decide_order(start: Start, held: Settings, manifest: Manifest, balance: str | None, generation: int) -> Mixed:
    """Returns the order of a run's training images.

    Args:
        start: how the command starts.
        held: the options with their defaults.
        manifest: the images.
        balance: of classes, as in `make_order`.
        generation: the run's generation.

    Raises:
        UsageError: the command itself asks for a mixture, and all images are old, or all are new.
    """
    if why := unmixed(manifest, start.given.mix, start.given.replay, generation):
        raise UsageError(f"{why}: leave it out")
    return make_order(manifest, held.seed, held.batch_size, held.mix, start.config.replay, balance, generation)


def note_unmixed(start: Start, held: Settings, manifest: Manifest, generation: int) -> list[str]:
    """Returns a note if the parent's mixture has nothing to mix."""
    why = unmixed(manifest, held.mix, start.config.replay, generation)
    return [f"{why} (the parent's option): an epoch uses each once"] if why else []
