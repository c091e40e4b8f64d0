"""Builds the goldens' networks in Keras code, with Keras's names and order, for use with `--model`."""

import keras
from keras import layers


def plain():
    inputs = keras.Input((12, 12, 3))
    x = layers.Conv2D(8, 3, padding="same", activation="relu")(inputs)
    x = layers.MaxPooling2D()(x)
    x = layers.Conv2D(8, 3, padding="same", activation="relu")(x)
    x = layers.MaxPooling2D()(x)
    x = layers.Dropout(0.0)(layers.Flatten()(x))
    x = layers.Dense(16, activation="relu")(x)
    return keras.Model(inputs, layers.Dense(3)(x))


def _conv(x, filters, kernel, stride):
    # PyTorch pads both edges equally; "same" with a stride would pad one edge more.
    x = layers.ZeroPadding2D(kernel // 2)(x)
    x = layers.Conv2D(filters, kernel, stride, use_bias=False)(x)
    return layers.BatchNormalization(epsilon=1e-5, momentum=0.9)(x)


def _block(x, filters, stride):
    # The shortcut is created first, as many users write it; in PyTorch's order it is last.
    around = x if stride == 1 and x.shape[-1] == filters else _conv(x, filters, 1, stride)
    y = layers.ReLU()(_conv(x, filters, 3, stride))
    return layers.ReLU()(layers.Add()([around, _conv(y, filters, 3, 1)]))


def residual():
    inputs = keras.Input((12, 12, 3))
    x = layers.ReLU()(_conv(inputs, 6, 3, 1))
    for filters, stride in ((6, 1), (8, 2), (8, 1)):
        x = _block(x, filters, stride)
    return keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)))


def _separable(x, filters, stride):
    x = layers.DepthwiseConv2D(3, stride, use_bias=False)(layers.ZeroPadding2D(1)(x))
    x = layers.ReLU(6.0)(layers.BatchNormalization(epsilon=1e-5, momentum=0.9)(x))
    return layers.ReLU(6.0)(_conv(x, filters, 1, 1))


def mobile():
    inputs = keras.Input((12, 12, 3))
    x = layers.ReLU(6.0)(_conv(inputs, 8, 3, 1))
    for filters, stride in ((12, 1), (12, 2), (16, 1)):
        x = _separable(x, filters, stride)
    return keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)))


class Position(layers.Layer):
    def build(self, shape):
        self.table = self.add_weight(shape=shape[1:], name="table")

    def call(self, x):
        return x + self.table


def transformer():
    inputs = keras.Input((12, 12, 3))
    x = layers.Reshape((9, 8))(layers.Conv2D(8, 4, 4)(inputs))
    x = Position()(x)
    for _ in range(2):
        y = layers.LayerNormalization(epsilon=1e-5)(x)
        x = layers.Add()([x, layers.MultiHeadAttention(2, 4)(y, y)])
        y = layers.LayerNormalization(epsilon=1e-5)(x)
        y = layers.Dense(8)(layers.Dense(16, activation="gelu")(y))
        x = layers.Add()([x, y])
    x = layers.GlobalAveragePooling1D()(layers.LayerNormalization(epsilon=1e-5)(x))
    return keras.Model(inputs, layers.Dense(3)(x))


MODELS = {"plain": plain, "residual": residual, "mobile": mobile, "transformer": transformer}


def sequential():
    return keras.Sequential(
        [
            keras.Input((12, 12, 3)),
            layers.Rescaling(0.5),
            layers.Conv2D(6, 3, 3, padding="same", activation="relu"),
            layers.BatchNormalization(),
            layers.Flatten(),
            layers.Dense(3),
        ]
    )


def nested():
    inputs = keras.Input((12, 12, 3))
    shared = layers.Conv2D(4, 3, padding="same", activation="relu")
    x = keras.Sequential([layers.Conv2D(4, 1), layers.BatchNormalization()], name="stem")(inputs)
    x = layers.Add()([shared(x), shared(shared(x))])
    x = layers.SeparableConv2D(6, 3)(layers.DepthwiseConv2D(3, depth_multiplier=2)(x))
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(layers.GlobalAveragePooling2D()(x)))


def transfer():
    inner, outer = keras.Input((12, 12, 3)), keras.Input((12, 12, 3))
    base = keras.Model(inner, layers.Conv2D(4, 3, use_bias=False)(inner))
    return keras.Sequential([keras.Model(outer, base(outer)), layers.GlobalAveragePooling2D(), layers.Dense(3)])


def attention():
    inputs = keras.Input((12, 12, 3))
    x = layers.Reshape((9, 8))(layers.Conv2D(8, 4, 4)(inputs))
    x = layers.Add()([x, layers.MultiHeadAttention(2, 4)(layers.LayerNormalization()(x), x)])
    x = layers.GlobalAveragePooling1D()(layers.Dense(8, activation="gelu")(x))
    return keras.Model(inputs, layers.Dense(3)(x))


def small():
    inputs = keras.Input((12, 12, 3))
    one, other = layers.Conv2D(4, 3)(inputs), layers.Conv2D(4, 3, use_bias=False)(inputs)
    x = layers.GlobalAveragePooling2D()(layers.Add()([one, other]))
    return keras.Model(inputs, layers.Dense(3)(x))


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.stem = layers.Conv2D(4, 3, activation="relu")
        self.blocks = [layers.Conv2D(4, 3, activation="relu") for _ in range(2)]
        self.head = layers.Dense(3)

    def call(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(keras.ops.mean(x, axis=(1, 2)))


def subclassed():
    model = Subclassed()
    model(keras.KerasTensor((1, 12, 12, 3)))
    return model


MODELS |= {
    "sequential": sequential,
    "small": small,
    "nested": nested,
    "transfer": transfer,
    "attention": attention,
    "subclassed": subclassed,
}
