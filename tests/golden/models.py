"""Builds the models of the golden checkpoints: tiny, of commonly trained kinds.

`keras` is Keras 3 or tf_keras. The models expect `0-1`, 12 by 12 pixels, and have three classes.
"""

from __future__ import annotations

import numpy as np

SIZE, CLASSES = 12, 3


def images_and_labels() -> tuple[np.ndarray, np.ndarray]:
    """Returns twelve images `(12, 12, 12, 3) float32` and their classes."""
    images = np.random.default_rng(7).uniform(0, 1, (12, SIZE, SIZE, 3)).astype("float32")
    return images, (np.arange(12) % CLASSES).astype("int32")


def _model(keras, inputs, x):
    return keras.Model(inputs, keras.layers.Dense(CLASSES, activation="softmax")(x))


def cnn(keras):
    """Builds a model of convolution, pooling and dense layers."""
    layers = keras.layers
    inputs = keras.Input((SIZE, SIZE, 3))
    x = layers.Conv2D(4, 3, activation="relu")(inputs)
    x = layers.MaxPooling2D()(x)
    return _model(keras, inputs, layers.Flatten()(layers.Conv2D(4, 3)(x)))


def resnet(keras):
    """Builds a residual block with batch normalization."""
    layers = keras.layers
    inputs = keras.Input((SIZE, SIZE, 3))
    x = layers.BatchNormalization(momentum=0.8)(layers.Conv2D(4, 3, strides=2, use_bias=False)(inputs))
    y = layers.ReLU()(layers.BatchNormalization(momentum=0.8)(layers.Conv2D(4, 3, padding="same", use_bias=False)(x)))
    return _model(keras, inputs, layers.GlobalAveragePooling2D()(layers.Add()([x, y])))


def mobilenet(keras):
    """Builds a model of depthwise and pointwise convolutions."""
    layers = keras.layers
    inputs = keras.Input((SIZE, SIZE, 3))
    x = layers.DepthwiseConv2D(3, strides=2, use_bias=False)(inputs)
    x = layers.ReLU(max_value=6.0)(layers.BatchNormalization(momentum=0.8)(x))
    x = layers.SeparableConv2D(6, 3)(layers.Conv2D(4, 1)(x))
    return _model(keras, inputs, layers.GlobalAveragePooling2D()(x))


def vit(keras):
    """Builds a model of patches, attention and layer normalization."""
    layers = keras.layers
    inputs = keras.Input((SIZE, SIZE, 3))
    x = layers.Reshape((9, 6))(layers.Conv2D(6, 4, strides=4)(inputs))
    y = layers.LayerNormalization()(x)
    x = layers.Add()([x, layers.MultiHeadAttention(2, 3, use_bias=False)(y, y)])
    return _model(keras, inputs, layers.GlobalAveragePooling1D()(x))


def nested(keras):
    """Builds a model with a nested model and a layer used twice."""
    layers = keras.layers
    outer, inner = keras.Input((SIZE, SIZE, 3)), keras.Input((SIZE, SIZE, 3))
    block = keras.Model(inner, layers.Conv2D(4, 3, strides=3)(inner))
    tail = keras.Sequential([keras.Input((64,)), layers.Dense(8, activation="relu")])
    shared = layers.Dense(8, activation="tanh")
    x = shared(tail(layers.Flatten()(block(outer))))
    return _model(keras, outer, shared(x))


def transfer(keras):
    """Builds a head on a nested model, as transfer learning and Teachable Machine do."""
    layers = keras.layers
    inner, outer = keras.Input((SIZE, SIZE, 3)), keras.Input((SIZE, SIZE, 3))
    base = keras.Model(inner, layers.BatchNormalization(momentum=0.8)(layers.Conv2D(4, 3, use_bias=False)(inner)))
    stack = [keras.Model(outer, base(outer)), layers.GlobalAveragePooling2D()]
    return keras.Sequential([*stack, layers.Dense(CLASSES, activation="softmax")])


def sequential(keras):
    """Builds a plain Sequential."""
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((SIZE, SIZE, 3)),
            layers.Conv2D(4, 3, strides=2, activation="relu"),
            layers.Flatten(),
            layers.Dense(CLASSES, activation="softmax"),
        ]
    )


def subclassed(keras):
    """Builds a subclassed model with layers as attributes and in a list."""

    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.blocks = [keras.layers.Conv2D(4, 3, strides=2, activation="relu") for _ in range(2)]
            self.head = keras.layers.Dense(CLASSES, activation="softmax")
            self.pool = keras.layers.GlobalAveragePooling2D()

        def call(self, inputs):
            x = inputs
            for block in self.blocks:
                x = block(x)
            return self.head(self.pool(x))

    model = Net()
    model(np.zeros((1, SIZE, SIZE, 3), "float32"))
    return model


BUILDERS = {
    function.__name__: function for function in (cnn, resnet, mobilenet, vit, nested, transfer, sequential, subclassed)
}
