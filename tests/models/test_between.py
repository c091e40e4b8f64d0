"""Tests weights between an earlier state and a model's own."""

import keras
import numpy as np
import pytest

from kresume.backend import live_state
from kresume.checkpoints import snapshot
from kresume.errors import CheckpointError
from kresume.models import structure
from kresume.models.averages import pairs_of
from kresume.models.between import Between


class Kept(keras.layers.Layer):
    """Keeps a mask with infinities, a count and an average beside the weights that train."""

    def build(self, shape):
        self.mask = self.add_weight(shape=(3,), initializer="zeros", trainable=False, name="mask")
        self.count = self.add_weight(shape=(), dtype="int32", initializer="zeros", trainable=False, name="count")
        self.mean = self.add_weight(shape=(3,), initializer="zeros", trainable=False, name="mean")

    def call(self, inputs):
        return inputs + self.mean


def build(ema=False, dtype="float32", units=3):
    model = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(3, name="low", dtype=dtype),
            Kept(),
            keras.layers.Dropout(0.5, seed=1),
            keras.layers.Dense(units, name="top", dtype=dtype),
        ]
    )
    model.compile(keras.optimizers.Adam(1e-3, use_ema=ema), "mse")
    return model


def averages_of(model):
    return pairs_of(model.optimizer) if model.optimizer.use_ema else []


def fill(model, seed):
    """Gives every float its own numbers, and builds the optimizer on what trains now."""
    rng = np.random.default_rng(seed)
    model.optimizer.build(model.trainable_variables)
    for variable in [*model.weights, *(average for _, average in averages_of(model))]:
        if "count" in variable.path:
            variable.assign(seed)
        else:
            variable.assign(rng.normal(size=variable.shape).astype("float32"))


def state_of(model, path):
    groups = live_state.read_state(model)
    return snapshot.read_snapshot(
        snapshot.write_snapshot(path, 0, groups, {structure.RECORD: structure.describe(model), "not_finite": []})
    )


def floats(model):
    return [np.array(variable) for variable in model.weights if "count" not in variable.path]


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(("ema", "dtype"), [(False, "float32"), (True, "float32"), (False, "bfloat16")])
def test_every_float_is_mixed_and_nothing_else(tmp_path, frozen, ema, dtype):
    """Also where a layer was frozen in the earlier state: it had no average then, it was its own."""
    model = build(ema, dtype)
    model.layers[0].trainable = not frozen
    model.compile(keras.optimizers.Adam(1e-3, use_ema=ema), "mse")
    fill(model, 1)
    state = state_of(model, tmp_path)
    earlier = floats(model)
    earlier_averages = {weight.path: np.array(average) for weight, average in averages_of(model)}
    earlier_weights = {weight.path: np.array(weight) for weight in model.weights}
    model.layers[0].trainable = True
    model.compile(keras.optimizers.Adam(1e-3, use_ema=ema), "mse")
    fill(model, 2)
    own = floats(model)
    own_averages = {weight.path: np.array(average) for weight, average in averages_of(model)}
    seeds = [np.array(variable) for variable in model.non_trainable_variables if "seed" in variable.path]
    between = Between(model, state)
    for share in (0.25, 0.75, 0.25):
        between.assign(share)
        for found, one, other in zip(floats(model), own, earlier, strict=True):
            wide = one.astype("float64") + share * (other.astype("float64") - one.astype("float64"))
            assert found.tobytes() == wide.astype(one.dtype).tobytes()
        for weight, average in averages_of(model):
            one, other = own_averages[weight.path], earlier_averages.get(weight.path, earlier_weights[weight.path])
            wide = one.astype("float64") + share * (other.astype("float64") - one.astype("float64"))
            assert np.array(average).tobytes() == wide.astype(one.dtype).tobytes(), weight.path
    assert [int(np.array(variable)) for variable in model.weights if "count" in variable.path] == [2]
    now = [np.array(variable) for variable in model.non_trainable_variables if "seed" in variable.path]
    assert [each.tobytes() for each in now] == [each.tobytes() for each in seeds]
    between.assign(0.0)
    assert [each.tobytes() for each in floats(model)] == [each.tobytes() for each in own]


@pytest.mark.one_backend(trains=True)
def test_what_is_infinite_or_equal_keeps_its_bits(tmp_path):
    """A mask of infinities would become no number, and a frozen weight another by rounding."""
    model = build()
    fill(model, 1)
    kept = model.layers[1]
    kept.mask.assign([-0.0, -np.inf, np.inf])
    groups = live_state.read_state(model)
    names = [f"non_trainable/{index}" for index in range(len(groups["non_trainable"]))]
    records = {structure.RECORD: structure.describe(model), "not_finite": names}
    state = snapshot.read_snapshot(snapshot.write_snapshot(tmp_path, 0, groups, records))
    Between(model, state).assign(0.3)
    assert np.array(kept.mask).tobytes() == np.float32([-0.0, -np.inf, np.inf]).tobytes()
    kept.mask.assign([0.5, 0.4, np.nan])
    between = Between(model, state)
    between.assign(0.5)
    assert np.array_equal(np.array(kept.mask), np.float32([0.25, 0.4, np.nan]), equal_nan=True)
    between.assign(0.0)
    assert np.array(kept.mask).tobytes() == np.float32([0.5, 0.4, np.nan]).tobytes()


@pytest.mark.one_backend(trains=True)
def test_another_model_is_refused(tmp_path):
    """Its weights are of other shapes."""
    model = build()
    fill(model, 1)
    state = state_of(model, tmp_path)
    with pytest.raises(CheckpointError, match=r"has an array of shape \(3, 3\) for .* of shape \(3, 4\)"):
        Between(build(units=4), state)
