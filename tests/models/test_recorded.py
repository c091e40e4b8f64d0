"""Tests that a model of the user's code which is another one when it is built again is refused at the start."""

import keras
import pytest

import kresume
from kresume.errors import ModelError

OWN = """
import keras

class Scale(keras.layers.Layer):
    def __init__(self, factor=1.0, forget=False, **options):
        super().__init__(**options)
        self.factor, self.forget = factor, forget

    def call(self, x):
        return x * self.factor

    def get_config(self):
        return {**super().get_config(), **({} if self.forget else {"factor": self.factor})}

class Hidden(Scale):
    def __init__(self, table=None, **options):
        super().__init__(**options)
        self._table = table or [1.0]

    def call(self, x):
        return x * self._table[0]

    def get_config(self):
        return super().get_config()

class Wide(keras.layers.Layer):
    def __init__(self, units=3, **options):
        super().__init__(**options)
        self.inner = keras.layers.Dense(units)

    def build(self, shape):
        self.inner.build(shape)

    def call(self, x):
        return x + keras.ops.sum(self.inner(x), axis=-1, keepdims=True)

    def get_config(self):
        return super().get_config()

class Own(keras.Model):
    def __init__(self, units):
        super().__init__()
        self.flat, self.inner, self.head = keras.layers.Flatten(), keras.layers.Dense(units), keras.layers.Dense(3, "softmax")

    def call(self, x):
        return self.head(self.inner(self.flat(x)))

    def get_config(self):
        return {"width": 4}

def network(*own, **dense):
    layers = keras.layers
    return keras.Sequential([
        keras.Input((8, 8, 3)), layers.Rescaling(1 / 255), layers.Flatten(), *own,
        layers.Dense(3, "softmax", name="head", **dense),
    ])

def recorded():
    model = network(Scale(3.0), keras.layers.Dropout(0.3), kernel_regularizer="l2")
    model.get_layer("head").kernel.trainable = False
    return model

def forgotten():
    return network(Scale(3.0, forget=True, name="mine"))

def hidden():
    return network(Hidden([5.0]))

def wide():
    return network(Wide(7))

def late():
    model = network()
    model.get_layer("head").kernel_regularizer = keras.regularizers.L2(0.1)
    return model

def subclassed():
    return Own(4)

def always_random():
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Dropout(0.5)(keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(inputs)), training=True)
    return keras.Model(inputs, keras.layers.Dense(3, "softmax")(x))
"""
DIFFERENT = {
    "forgotten": "mine: factor is 1.0, not 3.0: let get_config of Scale return it",
    "hidden": "its answers differ by up to",
    "wide": "it has other weights",
    "late": "head/kernel has the regularizer L2.* not none: give it to the layer as an argument",
    "subclassed": "Keras cannot build this model again from its record",
}


@pytest.fixture
def plan(tmp_path, pictures):
    """Returns a function that plans a training of a function's model."""
    (tmp_path / "own.py").write_text(OWN)
    options = {"data": str(pictures / "old"), "image_size": 8, "lr": 1e-3, "quiet": True}
    return lambda name: kresume.plan(None, model=f"{tmp_path / 'own.py'}:{name}", **options)


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize("name", DIFFERENT)
def test_a_model_that_is_another_one_when_it_is_built_again_is_refused(plan, name):
    """The message says in what it differs, and what to do: a run would continue with the other one."""
    with pytest.raises(ModelError, match=DIFFERENT[name]):
        plan(name)


@pytest.mark.parametrize("name", ["recorded", "always_random"])
def test_a_model_that_keras_records_is_taken_and_stays_as_it_was(plan, name, monkeypatch):
    """Weights, seeds and later draws are what they would be without the check."""
    seen = []

    def keep(model, *arguments, **options):
        before = [keras.ops.convert_to_numpy(variable.value).tobytes() for variable in model.variables]
        check(model, *arguments, **options)
        seen.append(before == [keras.ops.convert_to_numpy(variable.value).tobytes() for variable in model.variables])

    from kresume.models.recorded import check_recorded as check

    monkeypatch.setattr("kresume.models.recorded.check_recorded", keep)
    assert "restored" not in str(plan(name))
    assert seen == [True]
