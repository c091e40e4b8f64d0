"""Finds the images that Keras held out for validation: `--val-like keras:F:SEED`.

    held_out("keras:0.2:123", ["old/"])     # paths of its validation subset

Calls `keras.utils.image_dataset_from_directory` itself, so the result is right for the installed version of Keras.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence

from kresume.errors import ImagesError, UsageError
from kresume.spelling import option
from kresume.storage import locations


def held_out(value: str, data: Sequence[str] | None) -> frozenset[str]:
    """Returns the paths of Keras's validation subset.

    Args:
        value: `keras:F:SEED`, the arguments `validation_split` and `seed` of the call that trained.
        data: the folder passed to that call.

    Raises:
        UsageError: the value cannot be parsed, or `data` is not one folder.
        ImagesError: Keras cannot read the folder.
    """
    parts = value.split(":")
    try:
        name, share, seed = parts[0], float(parts[1]), int(parts[2])
    except (IndexError, ValueError) as error:
        raise UsageError(f"{option('val-like', value)}: give keras:F:SEED, for example keras:0.2:123") from error
    if name != "keras" or len(parts) != 3 or not 0 < share < 1:
        raise UsageError(
            f"{option('val-like', value)}: give keras:F:SEED with F between 0 and 1, for example keras:0.2:123"
        )
    if data is None or len(data) != 1 or not locations.is_folder(locations.absolute(data[0])):
        raise UsageError(
            f"{option('val-like', value)}: give exactly one folder as {option('data')}, the one that was split"
        )
    import keras

    try:
        with contextlib.redirect_stdout(io.StringIO()):  # Keras prints how many files it found
            dataset = keras.utils.image_dataset_from_directory(
                locations.absolute(data[0]), validation_split=share, subset="validation", seed=seed, image_size=(1, 1)
            )
    except ValueError as error:
        raise ImagesError(f"{option('val-like', value)}: Keras cannot split {data[0]} ({error})") from error
    return frozenset(locations.absolute(path) for path in dataset.file_paths)
