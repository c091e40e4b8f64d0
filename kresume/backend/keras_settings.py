"""Keeps Keras's own settings, from `~/.keras/keras.json` or code, out of what kresume builds.

    with channels_last():
        model = keras.applications.MobileNetV2(...)
    require_whole_floats()

A user's own function and a checkpoint's architecture are built with the settings as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from kresume.errors import UsageError
from kresume.spelling import option


@contextmanager
def channels_last() -> Iterator[None]:
    """Builds layers for pictures `(height, width, channels)`, also where Keras is set to channels first.

    Without it, a convolution takes the rows of such a picture for its channels, and nothing says so. Also a decorator.
    """
    import keras

    before = keras.config.image_data_format()
    keras.config.set_image_data_format("channels_last")
    try:
        yield
    finally:
        keras.config.set_image_data_format(before)


def require_whole_floats() -> None:
    """Refuses a float type in which losses and metrics would be rounded.

    Keras computes losses and sums in `floatx`, whatever type the model has: in float16 a sum stops growing at 2,048.

    Raises:
        UsageError: `floatx` has 16 bits.
    """
    import keras

    name = keras.config.floatx()
    if name in {"float16", "bfloat16"}:
        raise UsageError(
            f"Keras is set to floatx {name} (in keras.json or by keras.config.set_floatx): it would compute losses, metrics "
            f"and new weights in 16 bits. Set float32; {option('precision', 'mixed_float16')} or mixed_bfloat16 makes layers "
            "compute in 16 bits and keeps weights and sums in 32"
        )
