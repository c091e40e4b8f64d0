"""A small model with what a run must carry: batch statistics, the state of a dropout, an optimizer with slots."""

import keras


def build():
    """Returns the model, uncompiled."""
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.Rescaling(1 / 127.5, offset=-1),
            keras.layers.Conv2D(4, 3, padding="same", use_bias=False, name="conv"),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.ReLU(),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dropout(0.25, seed=7, name="drop"),
            keras.layers.Dense(3, activation="softmax", name="head"),
        ]
    )
