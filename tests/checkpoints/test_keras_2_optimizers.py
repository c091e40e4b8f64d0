"""Tests optimizers of Keras 2.0 to 2.3, whose slots are known by their order alone.

The tests write the files as those versions did.
"""

import json
import sys
import zipfile

import h5py
import keras
import numpy as np
import pytest

from kresume.checkpoints.inspect import describe
from kresume.checkpoints.read import read_checkpoint
from kresume.errors import CheckpointError, ModelError, RestoreError
from kresume.models import build, optimizers, restore, slots
from tests.helpers.paths import WRITERS

sys.path.insert(0, str(WRITERS))
from inputs import numbers

WEIGHTS = {
    "conv2d_1": [("conv2d_1/kernel:0", (3, 3, 3, 4)), ("conv2d_1/bias:0", (4,))],
    "dense_1": [("dense_1/kernel:0", (4, 2)), ("dense_1/bias:0", (2,))],
}
SHAPES = [shape for listed in WEIGHTS.values() for _, shape in listed]
LAYERS = [
    {
        "class_name": "Conv2D",
        "config": {
            "name": "conv2d_1",
            "trainable": True,
            "batch_input_shape": [None, 6, 6, 3],
            "dtype": "float32",
            "filters": 4,
            "kernel_size": [3, 3],
            "strides": [1, 1],
            "padding": "valid",
            "data_format": "channels_last",
            "dilation_rate": [1, 1],
            "activation": "relu",
            "use_bias": True,
            "kernel_initializer": {
                "class_name": "VarianceScaling",
                "config": {"scale": 1.0, "mode": "fan_avg", "distribution": "uniform", "seed": None},
            },
            "bias_initializer": {"class_name": "Zeros", "config": {}},
            "kernel_regularizer": None,
            "bias_regularizer": None,
            "activity_regularizer": None,
            "kernel_constraint": None,
            "bias_constraint": None,
        },
    },
    {
        "class_name": "GlobalAveragePooling2D",
        "config": {"name": "global_average_pooling2d_1", "trainable": True, "data_format": "channels_last"},
    },
    {
        "class_name": "Dense",
        "config": {"name": "dense_1", "trainable": True, "units": 2, "activation": "softmax", "use_bias": True},
    },
]
BETAS = {"beta_1": 0.8, "beta_2": 0.99, "epsilon": 1e-7}
CASES = {
    # class: settings, leading arrays, rounds of slots in the file's order, a last round of scalars
    "Adam": ({**BETAS, "decay": 0.0}, ["count"], ["_momentums", "_velocities"], False),
    "Adam placeholders": ({**BETAS, "amsgrad": False}, ["count"], ["_momentums", "_velocities"], True),
    "Adam amsgrad": (
        {**BETAS, "amsgrad": True, "epsilon": None},
        ["count"],
        ["_momentums", "_velocities", "_velocity_hats"],
        False,
    ),
    "SGD": ({"momentum": 0.9, "nesterov": True}, ["count"], ["momentums"], False),
    "SGD plain": ({"momentum": 0.0, "nesterov": False}, ["count"], [], False),
    "RMSprop": ({"rho": 0.8, "epsilon": 1e-7}, [], ["_velocities"], False),
    "RMSprop counted": ({"rho": 0.8, "epsilon": 1e-7}, ["count"], ["_velocities"], False),
    "Adagrad": ({"epsilon": 1e-7}, [], ["_accumulators"], False),
    "Adadelta": ({"rho": 0.9, "epsilon": 1e-7}, [], ["_accumulated_grads", "_accumulated_delta_vars"], False),
    "Adamax": ({**BETAS}, ["count"], ["_m", "_u"], False),
    "Nadam": ({**BETAS, "schedule_decay": 0.004}, ["count"], ["_momentums", "_velocities"], False),
    "Nadam product": ({**BETAS, "schedule_decay": 0.004}, ["count", "product"], ["_momentums", "_velocities"], False),
}
NAMINGS = {
    "2.0": lambda name, place: f"training/{name}/Variable{f'_{place}' if place else ''}:0",
    "2.3": lambda name, place: f"training_1/{name}/m_{place}:0",
    "theano": lambda name, place: f"/variable_{place}",
}
COUNTS = {"2.0": "iterations_1:0", "2.3": "Adam/iterations:0", "theano": "Adam/iterations"}


def old_file(path, case="Adam", naming="2.0", *, config=LAYERS, backend="tensorflow", rest=None, extra=None):
    """Writes what `model.save("m.h5")` of Keras 2.0 to 2.2 wrote; returns the slots by attribute."""
    name, (settings, front, rounds, placeholders) = case.split()[0], CASES[case]
    with h5py.File(path, "w") as file:
        file.attrs["keras_version"] = b"2.2.4"
        file.attrs["backend"] = backend.encode()
        file.attrs["model_config"] = json.dumps({"class_name": "Sequential", "config": config}).encode()
        file.attrs["training_config"] = json.dumps(
            {
                "optimizer_config": {"class_name": name, "config": {"lr": 0.003, **settings, **(extra or {})}},
                "loss": "categorical_crossentropy",
                "metrics": ["accuracy"],
                "sample_weight_mode": None,
                "loss_weights": None,
            }
        ).encode()
        root = file.create_group("model_weights")
        root.attrs["layer_names"] = [b"conv2d_1", b"global_average_pooling2d_1", b"dense_1"]
        root.attrs["keras_version"] = b"2.2.4"
        root.attrs["backend"] = backend.encode()
        root.create_group("global_average_pooling2d_1").attrs["weight_names"] = np.zeros(0, "S1")
        for layer, listed in WEIGHTS.items():
            group = root.create_group(layer)
            group.attrs["weight_names"] = [each.encode() for each, _ in listed]
            for each, shape in listed:
                group[each] = numbers(each, shape)
        arrays = []
        if "count" in front:
            arrays.append((COUNTS[naming], np.asarray(7.0 if naming == "2.0" else 7)))
        if "product" in front:
            arrays.append(("Nadam/m_schedule:0", np.float32(0.3)))
        kept = {}
        for kind in rounds:
            kept[kind] = [numbers(kind, shape) for shape in rest or SHAPES]
            arrays += [(None, array) for array in kept[kind]]
        arrays += [(None, np.zeros(1, "float32"))] * (len(SHAPES) if placeholders else 0)
        place = 0
        group = file.create_group("optimizer_weights")
        names = []
        for given, array in arrays:
            names.append(given or NAMINGS[naming](name, place))
            place += given is None
            group[names[-1]] = array  # a name with a leading slash lands at the root of the file
        group.attrs["weight_names"] = [each.encode() for each in names]
    return kept


def restored(path):
    """Restores the file into a live model and its optimizer."""
    state = read_checkpoint(path)
    model = build.from_architecture(state.architecture)
    optimizer = optimizers.make_optimizer(state.optimizer, state.rate.value)
    optimizer.build(model.trainable_variables)
    restoration = restore.restore(model, state, optimizer=optimizer)
    assert {row[3] for row in restoration.rows} <= {restore.RESTORED, restore.NOT_IN_FORMAT}
    return state, model, optimizer


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize("naming", NAMINGS)
@pytest.mark.parametrize("case", CASES)
def test_slots_are_known_by_their_order(tmp_path, case, naming):
    """Each slot is restored bit for bit beside its weight, with the update count and the rate `lr`."""
    kept = old_file(tmp_path / "m.h5", case, naming)
    state, model, optimizer = restored(tmp_path / "m.h5")
    found = slots.slot_lists(optimizer)
    assert found.keys() == kept.keys()
    for kind, arrays in kept.items():
        for slot, array in zip(found[kind], arrays, strict=True):
            np.testing.assert_array_equal(keras.ops.convert_to_numpy(slot), array)
    counted = "count" in CASES[case][1]
    assert int(optimizer.iterations) == (7 if counted else 0)
    assert state.step == (7 if counted else None)
    assert state.rate.value == pytest.approx(0.003)
    assert (state.rate.origin, state.optimizer.config["learning_rate"]) == ("float", pytest.approx(0.003))
    assert any("count of updates" in note for note in describe(state).notes) != counted
    for weight, array in zip(
        model.weights, [numbers(*each) for listed in WEIGHTS.values() for each in listed], strict=True
    ):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(weight), array)


def test_the_next_step_is_the_one_that_its_adam_would_have_made(tmp_path):
    """The next step is the one of the old Adam's formula in `keras/optimizers.py`.

    It uses the moments, the count and the rate.
    """
    kept = old_file(tmp_path / "m.h5", "Adam placeholders")
    _, model, optimizer = restored(tmp_path / "m.h5")
    gradients = [numbers(f"gradient {index}", shape) - 0.5 for index, shape in enumerate(SHAPES)]
    before = [keras.ops.convert_to_numpy(weight) for weight in model.trainable_variables]
    optimizer.apply([keras.ops.convert_to_tensor(each) for each in gradients], model.trainable_variables)
    rate = 0.003 * np.sqrt(1 - 0.99**8) / (1 - 0.8**8)
    for weight, old, gradient, m, v in zip(
        model.trainable_variables, before, gradients, kept["_momentums"], kept["_velocities"], strict=True
    ):
        step = (0.8 * m + 0.2 * gradient) / (np.sqrt(0.99 * v + 0.01 * gradient**2) + 1e-7)
        np.testing.assert_allclose(keras.ops.convert_to_numpy(weight), old - rate * step, rtol=1e-5, atol=1e-6)


@pytest.mark.one_backend
def test_its_decay_is_a_schedule_of_its_rate(tmp_path):
    """`lr` and `decay` become Keras 3's InverseTimeDecay."""
    old_file(tmp_path / "m.h5", extra={"decay": 0.01})
    state = read_checkpoint(tmp_path / "m.h5")
    assert state.rate.schedule["class_name"] == "InverseTimeDecay"
    assert state.rate.schedule["config"] == {
        "initial_learning_rate": 0.003, "decay_steps": 1, "decay_rate": 0.01, "staircase": False,
    }  # fmt: skip


@pytest.mark.one_backend
@pytest.mark.parametrize("rate", [{"class_name": "ExponentialDecay"}, {"config": 3}, {}])
def test_a_rate_of_another_form_is_named(tmp_path, rate):
    """A schedule without settings is an error in words."""
    path = tmp_path / "m.h5"
    old_file(path, extra={"lr": rate})
    with pytest.raises(CheckpointError, match=r"m.h5: the optimizer's config"):
        read_checkpoint(path)


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize("rest", [SHAPES[:3], [*SHAPES[:2], SHAPES[0], SHAPES[1]]])
def test_slots_of_other_weights_are_never_taken(tmp_path, rest):
    """Slots fewer than expected, or of other shapes, are refused by name; the weights are read."""
    old_file(tmp_path / "m.h5", rest=rest)
    with pytest.raises(RestoreError, match="nothing was restored"):
        restored(tmp_path / "m.h5")


@pytest.mark.one_backend(trains=True)
def test_arrays_that_are_in_no_order_name_the_way_on(tmp_path):
    """Slots in no known order are refused; `--optimizer adam:reset` works.

    They are of two kinds with different counts.
    """
    old_file(tmp_path / "m.h5", "Adamax")
    with h5py.File(tmp_path / "m.h5", "r+") as file:
        names = [str(name) for name in file["optimizer_weights"].attrs["weight_names"].astype(str)]
        file["optimizer_weights"].attrs["weight_names"] = [name.encode() for name in names[:-1]]
        del file["optimizer_weights"][names[-1]]
    state = read_checkpoint(tmp_path / "m.h5")
    assert "do not identify them" in state.records["cannot_keep"]
    assert any("--optimizer NAME:reset" in line for line in describe(state).missing)
    model = build.from_architecture(state.architecture)
    restore.restore(model, state, optimizer=None)


@pytest.mark.one_backend(trains=True)
def test_a_stack_that_is_a_list_is_the_stack(tmp_path):
    """Both forms of a Sequential's config give the same layers and numbers; the older is a list."""
    old_file(tmp_path / "list.h5")
    old_file(tmp_path / "dict.h5", config={"name": "sequential_1", "layers": LAYERS})
    pictures = numbers("inputs", (2, 6, 6, 3))
    one, other = (restored(tmp_path / f"{form}.h5")[1] for form in ("list", "dict"))
    assert [layer.name for layer in one.layers] == [layer.name for layer in other.layers]
    np.testing.assert_array_equal(
        keras.ops.convert_to_numpy(one(pictures)), keras.ops.convert_to_numpy(other(pictures))
    )


@pytest.mark.one_backend(trains=True)
def test_kernels_of_theano_are_turned(tmp_path):
    """Theano kernels and their slots are flipped in space, as Keras 2 did on loading.

    Theano's convolutions run backwards.
    """
    kept = old_file(tmp_path / "m.h5", "Adam", "theano", backend="theano")
    _, model, optimizer = restored(tmp_path / "m.h5")
    kernel = keras.ops.convert_to_numpy(model.layers[0].kernel)
    np.testing.assert_array_equal(kernel, numbers("conv2d_1/kernel:0", SHAPES[0])[::-1, ::-1])
    moments = [keras.ops.convert_to_numpy(slot) for slot in slots.slot_lists(optimizer)["_velocities"]]
    np.testing.assert_array_equal(moments[0], kept["_velocities"][0][::-1, ::-1])
    np.testing.assert_array_equal(moments[2], kept["_velocities"][2])
    np.testing.assert_array_equal(
        keras.ops.convert_to_numpy(model.layers[-1].kernel), numbers("dense_1/kernel:0", SHAPES[2])
    )


def new_style(path, name, config, kinds):
    """Writes a `.h5` or `.keras` of Keras 2.11 to 2.15.

    `kinds` are slots; the `.keras` stores them alternating by weight. A dictionary of kinds maps each to a function
    that returns its shape from that of its weight, or None if the weight has none.
    """
    shape_of = kinds if isinstance(kinds, dict) else dict.fromkeys(kinds, lambda shape: shape)

    def slots_of(shape):
        return [(kind, of(shape)) for kind, of in shape_of.items() if of(shape) is not None]

    layers = [{**layer, "config": {**layer["config"]}} for layer in LAYERS]
    model = {"class_name": "Sequential", "config": {"name": "sequential", "layers": layers}}
    optimizer = {"class_name": name, "config": {"learning_rate": 0.003, **config}}
    names = [each for listed in WEIGHTS.values() for each in listed]
    if path.suffix == ".h5":
        with h5py.File(path, "w") as file:
            file.attrs["model_config"] = json.dumps(model)
            file.attrs["training_config"] = json.dumps({"optimizer_config": optimizer, "loss": "mse"})
            root = file.create_group("model_weights")
            root.attrs["layer_names"] = list(WEIGHTS)
            root.attrs["keras_version"] = "2.15.0"
            for layer, listed in WEIGHTS.items():
                group = root.create_group(layer)
                group.attrs["weight_names"] = [each for each, _ in listed]
                for each, shape in listed:
                    group[each] = numbers(each, shape)
            group = file.create_group("optimizer_weights")
            group["iteration:0"] = np.asarray(7)
            slots_ = [f"{name}/{kind}/{each}" for each, shape in names for kind, _ in slots_of(shape)]
            group.attrs["weight_names"] = ["iteration:0", *slots_]
            for each, shape in names:
                for kind, own in slots_of(shape):
                    group[f"{name}/{kind}/{each}"] = numbers(kind, own)
        return
    with h5py.File(path.with_suffix(".tmp"), "w") as file:
        for layer, listed in zip(("conv2d", "dense"), WEIGHTS.values(), strict=True):
            for index, (each, shape) in enumerate(listed):
                file[f"_layer_checkpoint_dependencies/{layer}/vars/{index}"] = numbers(each, shape)
        arrays = [np.asarray(7), *(numbers(kind, own) for _, shape in names for kind, own in slots_of(shape))]
        for index, array in enumerate(arrays):
            file[f"optimizer/vars/{index}"] = array
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(
            "config.json", json.dumps({**model, "compile_config": {"optimizer": optimizer, "loss": "mse"}})
        )
        archive.writestr("metadata.json", json.dumps({"keras_version": "2.15.0"}))
        archive.write(path.with_suffix(".tmp"), "model.weights.h5")


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize("ending", ["h5", "keras"])
def test_the_idle_momentum_of_a_plain_sgd_is_left_out(tmp_path, ending):
    """The unused momentum of `compile("sgd")` in Keras 2.11 and later is left out, as Keras 3 has none."""
    new_style(tmp_path / f"m.{ending}", "SGD", {"momentum": 0.0, "nesterov": False}, ["m"])
    state, _, optimizer = restored(tmp_path / f"m.{ending}")
    assert (state.step, int(optimizer.iterations), slots.slot_lists(optimizer)) == (7, 7, {})


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize("ending", ["h5", "keras"])
def test_adafactor_keeps_its_rows_and_columns(tmp_path, ending):
    """Adafactor keeps its rows and columns; for a bias Keras 3 has an unused scalar instead."""
    kinds = {
        "r": lambda shape: shape[:-1] if len(shape) > 1 else None,
        "c": lambda shape: (*shape[:-2], shape[-1]) if len(shape) > 1 else None,
        "v": lambda shape: shape,
    }
    new_style(tmp_path / f"m.{ending}", "Adafactor", {"relative_step": True}, kinds)
    _, model, optimizer = restored(tmp_path / f"m.{ending}")
    assert int(optimizer.iterations) == 7
    listed = slots.slot_lists(optimizer)
    for kind, of in kinds.items():
        for slot, weight in zip(listed[f"_{kind}"], model.trainable_variables, strict=True):
            shape = of(tuple(weight.shape))
            expected = np.zeros(()) if shape is None else numbers(kind, shape)
            np.testing.assert_array_equal(keras.ops.convert_to_numpy(slot), expected)


@pytest.mark.parametrize("ending", ["h5", "keras"])
def test_nadam_has_the_product_that_keras_2_does_not_store(tmp_path, ending):
    """Nadam gets the momentum product that Keras 3 would have after as many updates, from either file."""
    new_style(tmp_path / f"m.{ending}", "Nadam", {"beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-7}, ["m", "v"])
    _, _, optimizer = restored(tmp_path / f"m.{ending}")
    expected = np.prod([0.9 * (1 - 0.5 * 0.96**update) for update in range(1, 8)])
    assert float(optimizer._u_product) == pytest.approx(expected, rel=1e-5)
    assert {len(listed) for listed in slots.slot_lists(optimizer).values()} == {4}


@pytest.mark.one_backend(trains=True)
def test_the_architecture_of_keras_1_is_asked_for(tmp_path):
    """The architecture of Keras 1 is refused; the error asks for the model, and weights match by order.

    Its layers have other arguments.
    """
    old = {"nb_filter": 4, "nb_row": 3, "nb_col": 3, "border_mode": "valid", "dim_ordering": "tf", "name": "conv2d_1"}
    config = [{"class_name": "Convolution2D", "config": {**old, "batch_input_shape": [None, 6, 6, 3]}}, *LAYERS[1:]]
    old_file(tmp_path / "m.h5", "SGD plain", config=config)
    state = read_checkpoint(tmp_path / "m.h5")
    with pytest.raises(ModelError, match="no architecture: give the model"):
        build.build_model(None, state=state, num_classes=2, image_size=None)
    assert any("Keras 1" in note for note in describe(state).notes)
    layers = keras.layers
    model = keras.Sequential(
        [keras.Input((6, 6, 3)), layers.Conv2D(4, 3), layers.GlobalMaxPooling2D(), layers.Dense(2)]
    )
    restore.restore(model, state, optimizer=None)
    np.testing.assert_array_equal(
        keras.ops.convert_to_numpy(model.layers[0].kernel), numbers("conv2d_1/kernel:0", SHAPES[0])
    )
