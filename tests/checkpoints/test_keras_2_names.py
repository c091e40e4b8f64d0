"""Tests the names that Keras 2 gives the weights of a subclassed model in a `.weights.h5`."""

import h5py
import keras
import numpy as np
import pytest
from keras import layers

from kresume.checkpoints.read import read_checkpoint
from kresume.errors import RestoreError
from kresume.models import restore

WRITTEN = {
    "layers/batch_normalization/vars": range(10, 14),
    "layers/block/convs/conv2d/vars": range(18, 20),
    "layers/block/convs/conv2d_1/vars": range(20, 22),
    "layers/block/scale/vars": range(22, 26),
    "layers/conv2d/vars": range(6, 8),
    "layers/conv2d_1/vars": range(8, 10),
    "layers/dense/vars": range(28, 30),
    "metrics/mean/vars": range(2),
    "parts/dense/vars": range(14, 16),
    "parts/dense_1/vars": range(16, 18),
    "stem/batch_normalization/vars": range(2, 6),
    "stem/conv2d/vars": range(2),
    "tail/layers/conv2d/vars": range(26, 28),
}
"""Groups and values that tf_keras 2.21 wrote for `Net`.

Each weight is filled with its index in `model.weights`.
"""


class Block(layers.Layer):
    def __init__(self):
        super().__init__()
        self.convs = [layers.Conv2D(4, 3, padding="same") for _ in range(2)]
        self.scale = layers.BatchNormalization()

    def call(self, images):
        for conv in self.convs:
            images = conv(images)
        return self.scale(images)


class Net(keras.Model):
    """Has layers in lists, nested lists, a dictionary, a layer and a model, before and after `layers`."""

    def __init__(self, parts=("a", "b")):
        super().__init__()
        self.stem = [layers.Conv2D(4, 3), layers.BatchNormalization()]
        self.blocks = [[layers.Conv2D(4, 3), layers.ReLU()], [layers.Conv2D(4, 3), layers.BatchNormalization()]]
        self.parts = {name: layers.Dense(4) for name in parts}
        self.block = Block()
        self.tail = keras.Sequential([layers.Conv2D(4, 1), layers.Flatten()])
        self.head = layers.Dense(3)

    def call(self, images):
        for layer in (*self.stem, *self.blocks[0], *self.blocks[1], self.parts["a"], self.parts["b"]):
            images = layer(images)
        return self.head(self.tail(self.block(images)))


def ordered(net):
    """Returns the layers with weights in the order of tf_keras's `model.weights`."""
    first = [*net.stem, net.blocks[0][0], *net.blocks[1], net.parts["a"], net.parts["b"]]
    return [*first, *net.block.convs, net.block.scale, net.tail.layers[0], net.head]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("keras_2") / "m.weights.h5"
    net = Net()
    net(np.zeros((1, 12, 12, 3), "float32"))
    shapes = iter([tuple(variable.shape) for layer in ordered(net) for variable in layer.weights])
    by_value = dict(enumerate(shapes))
    with h5py.File(path, "w") as written:
        for group, values in WRITTEN.items():
            for index, value in enumerate(values):
                shape = () if group.startswith("metrics") else by_value[value]
                written[f"{group}/{index}"] = np.full(shape, value, "float32")
    return path


@pytest.mark.one_backend(trains=True)
def test_each_weight_gets_the_array_that_tf_keras_wrote_for_it(file):
    """Each weight gets the array that tf_keras wrote for it: its index in tf_keras's own list."""
    net = Net()
    net(np.zeros((1, 12, 12, 3), "float32"))
    restore.restore(net, read_checkpoint(file), optimizer=None)
    variables = [variable for layer in ordered(net) for variable in layer.weights]
    assert [float(np.ravel(keras.ops.convert_to_numpy(variable))[0]) for variable in variables] == list(range(30))


@pytest.mark.one_backend(trains=True)
def test_layers_whose_order_differs_between_the_two_are_not_guessed(file):
    """Layers whose order differs between Keras 2 and 3 are refused.

    Keras 2 sorts a dictionary by its keys and Keras 3 does not: slots after it would be exchanged silently.
    """
    net = Net(parts=("b", "a"))
    net(np.zeros((1, 12, 12, 3), "float32"))
    with pytest.raises(RestoreError, match="nothing was restored"):
        restore.restore(net, read_checkpoint(file), optimizer=None)
