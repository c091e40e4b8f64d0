"""Builds the networks of the Keras 2 goldens in tf_keras.

tests/helpers/golden_models.py has their Keras 3 twins.
"""

import tf_keras as keras
from tf_keras import layers


def sequential():
    """Builds a Sequential with the input shape on its first layer, and a Flatten."""
    return keras.Sequential(
        [
            layers.Rescaling(0.5, input_shape=(12, 12, 3)),
            layers.Conv2D(6, 3, 3, padding="same", activation="relu"),
            layers.BatchNormalization(),
            layers.Flatten(),
            layers.Dense(3),
        ]
    )


def nested():
    """Builds a functional model: nested Sequential, shared layer, depthwise and separable convolutions."""
    inputs = keras.Input((12, 12, 3))
    shared = layers.Conv2D(4, 3, padding="same", activation="relu")
    stem = keras.Sequential([layers.Conv2D(4, 1), layers.BatchNormalization()], name="stem")
    x = stem(inputs)
    x = layers.Add()([shared(x), shared(shared(x))])
    x = layers.DepthwiseConv2D(3, depth_multiplier=2)(x)
    x = layers.SeparableConv2D(6, 3)(x)
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(layers.GlobalAveragePooling2D()(x)))


def transfer():
    """Builds a head on a nested model, as transfer learning and Teachable Machine do."""
    inner, outer = keras.Input((12, 12, 3)), keras.Input((12, 12, 3))
    base = keras.Model(inner, layers.Conv2D(4, 3, use_bias=False)(inner))
    return keras.Sequential([keras.Model(outer, base(outer)), layers.GlobalAveragePooling2D(), layers.Dense(3)])


def attention():
    """Builds a model with attention, LayerNormalization and an Embedding of positions."""
    inputs = keras.Input((12, 12, 3))
    x = layers.Reshape((9, 8))(layers.Conv2D(8, 4, 4)(inputs))
    x = layers.Add()([x, layers.MultiHeadAttention(2, 4)(layers.LayerNormalization()(x), x)])
    x = layers.GlobalAveragePooling1D()(layers.Dense(8, activation="gelu")(x))
    return keras.Model(inputs, layers.Dense(3)(x))


def small():
    """Builds the sum of two branches, small enough to store with its operations."""
    inputs = keras.Input((12, 12, 3))
    one, other = layers.Conv2D(4, 3)(inputs), layers.Conv2D(4, 3, use_bias=False)(inputs)
    x = layers.GlobalAveragePooling2D()(layers.Add()([one, other]))
    return keras.Model(inputs, layers.Dense(3)(x))


class Subclassed(keras.Model):
    """A subclassed model with layers as attributes and in a list."""

    def __init__(self):
        super().__init__()
        self.stem = layers.Conv2D(4, 3, activation="relu")
        self.blocks = [layers.Conv2D(4, 3, activation="relu") for _ in range(2)]
        self.head = layers.Dense(3)

    def call(self, x):
        """Runs the forward pass."""
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(keras.backend.mean(x, axis=(1, 2)))


MODELS = {
    "sequential": sequential,
    "small": small,
    "nested": nested,
    "transfer": transfer,
    "attention": attention,
    "subclassed": Subclassed,
}
