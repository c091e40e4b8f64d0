"""Makes the head of a new model, and puts it on the features of a network that has none.

outputs = head_on(features, num_classes=5)
"""

from __future__ import annotations

from typing import Any

import keras

from kresume.tasks.single_label import SINGLE_LABEL

DROPOUT = 0.2
"""Share of the features that a new head on a deep network does not see in a step."""


def new_head(num_classes: int) -> Any:
    """Creates the last layer of a new model, in float32 under any precision.

    Args:
        num_classes: the number of classes.
    """
    units, activation = SINGLE_LABEL.units(num_classes), SINGLE_LABEL.activation
    return keras.layers.Dense(units, activation=activation, dtype="float32", name="head")


def head_on(features: Any, num_classes: int) -> Any:
    """Applies dropout and a new head.

    Args:
        features: symbolic, `(batch, features)`.
        num_classes: the number of classes.

    Returns:
        The symbolic outputs.
    """
    return new_head(num_classes)(keras.layers.Dropout(DROPOUT)(features))
