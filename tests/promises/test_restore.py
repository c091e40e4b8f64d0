"""Tests promise 1: every variable is accounted for, in either backend and across backends."""

import json
import os
import sys
import warnings
import zipfile
from dataclasses import replace

import keras
import numpy as np
import pytest

from kresume.backend import live_state
from kresume.checkpoints.inspect import describe
from kresume.checkpoints.read import read_checkpoint
from kresume.errors import CheckpointError, RestoreError
from kresume.models import build, optimizers, restore, save, slot_forms
from kresume.models.match_keras import keras_names
from kresume.training.loop.fit import assign_state
from kresume.values.card import Card
from kresume.values.state import SavedOptimizer, TrainState
from tests.helpers import forking
from tests.helpers.backends import few_under_jax
from tests.helpers.runs import assert_same_bytes

WRITER = """
import pathlib, sys, numpy as np, keras

folder = pathlib.Path(sys.argv[1])
rng = np.random.default_rng(0)
images, labels = rng.uniform(0, 255, (16, 12, 12, 3)).astype("float32"), rng.integers(0, 3, 16)
rate = 1e-2
OPTIMIZERS = {
    "adamw": lambda: keras.optimizers.AdamW(rate),
    "sgd": lambda: keras.optimizers.SGD(rate, momentum=0.9),
    "schedule": lambda: keras.optimizers.AdamW(keras.optimizers.schedules.CosineDecay(rate, 100)),
    "ema": lambda: keras.optimizers.AdamW(rate, use_ema=True),
    "adafactor": lambda: keras.optimizers.Adafactor(rate),
    "accumulate": lambda: keras.optimizers.AdamW(rate, gradient_accumulation_steps=2),
}
for name in sys.argv[2:]:
    make = OPTIMIZERS[name]
    keras.utils.set_random_seed(1)
    inner = keras.Sequential([keras.layers.Conv2D(4, 3), keras.layers.BatchNormalization(), keras.layers.Dropout(0.5)])
    inputs = keras.Input((12, 12, 3))
    x = keras.layers.Flatten()(inner(keras.layers.Rescaling(1 / 255)(inputs)))
    model = keras.Model(inputs, keras.layers.Dense(3, activation="softmax")(x))
    model.compile(make(), "sparse_categorical_crossentropy")
    model.optimizer.build(model.trainable_variables)
    if keras.config.backend() == "tensorflow" and name in ("adamw", "accumulate"):
        model.fit(images, labels, epochs=3, batch_size=8, verbose=0)
    else:  # steps of the optimizer alone: compiling each model's step would take seconds
        for _ in range(6):
            model(images[:8], training=True)
            gradients = [rng.normal(0, 0.1, weight.shape).astype("float32") for weight in model.trainable_variables]
            model.optimizer.apply([keras.ops.convert_to_tensor(each) for each in gradients])
    model.save(folder / f"{name}.keras")
    if keras.config.backend() == "tensorflow":
        import tensorflow as tf

        tf.train.Checkpoint(model=model, optimizer=model.optimizer).save(str(folder / f"{name}-checkpoint" / "ckpt"))
        manager = tf.train.CheckpointManager(tf.train.Checkpoint(net=model), str(folder / f"{name}-manager"), max_to_keep=2)
        manager.save()
        manager.save()
    variables = {"weights": model.variables, "optimizer": model.optimizer.variables}
    arrays = {
        f"{group}/{index}": np.asarray(keras.ops.convert_to_numpy(variable))
        for group, listed in variables.items()
        for index, variable in enumerate(listed)
    }
    np.savez(folder / f"{name}.npz", predictions=np.asarray(model(images)), **arrays)
"""


OPTIMIZERS = ("adamw", "sgd", "schedule", "ema", "adafactor", "accumulate")
READ_UNDER_JAX = ("adamw", "ema", "adafactor")
OF_JAX = ("ema",)
"""JAX compiles each operation of the others, too. They differ in Keras's code, not in the backend's."""


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Writes checkpoints with a plain Keras script, by (writer's backend, kind, optimizer).

    Each backend runs in one process.
    """
    folder = tmp_path_factory.mktemp("written")
    (folder / "writer.py").write_text(WRITER)

    def write(backend, kind, optimizer="adamw"):
        place = folder / backend
        if not place.exists():
            place.mkdir()
            environment = {**os.environ, "KERAS_BACKEND": backend}
            names = few_under_jax(OPTIMIZERS, READ_UNDER_JAX) if backend == "tensorflow" else OF_JAX
            forking.run([sys.executable, folder / "writer.py", place, *names], env=environment, check=True)
        name = f"{optimizer}.keras" if kind == "keras" else f"{optimizer}-{kind}"
        with np.load(place / f"{optimizer}.npz") as arrays:
            return place / name, dict(arrays)

    return write


def model_of(state):
    return build.build_model(None, state=state, num_classes=3, image_size=None)


def optimizer_of(state, model, name=None):
    saved = state.optimizer if name is None else SavedOptimizer(name, None, 0)
    rate = (
        1e-2
        if state.rate is None or state.rate.schedule is None
        else keras.optimizers.schedules.deserialize(dict(state.rate.schedule))
    )
    optimizer = optimizers.make_optimizer(saved, rate)
    optimizer.build(model.trainable_variables)
    return optimizer


def assert_equal_to_the_writers(model, optimizer, expected):
    """Asserts equal weights, optimizer and predictions.

    Bytes are compared, for counters values, because their types differ between backends.
    """
    groups = {"weights": model.variables, "optimizer": optimizer.variables}
    for group, variables in groups.items():
        for index, variable in enumerate(variables):
            theirs = expected[f"{group}/{index}"]
            if "seed_generator" in variable.path:
                continue
            ours = np.asarray(keras.ops.convert_to_numpy(variable))
            assert ours.shape == theirs.shape
            assert ours.astype(theirs.dtype).tobytes() == theirs.tobytes(), variable.path
    rng = np.random.default_rng(0)
    images = rng.uniform(0, 255, (16, 12, 12, 3)).astype("float32")
    np.testing.assert_allclose(model.predict(images, verbose=0), expected["predictions"], atol=2e-6)


# Under JAX only the other backend's files; the first pass reads those of JAX, which JAX's writer takes long to make.
OF_BACKENDS = [*(("tensorflow", name) for name in OPTIMIZERS), *(("jax", name) for name in OF_JAX)]


@pytest.mark.parametrize(("backend", "optimizer"), few_under_jax(OF_BACKENDS, [("tensorflow", "ema")]))
def test_a_keras_file_restores_to_the_last_bit(written, backend, optimizer):
    """A `.keras` file of either backend restores weights and optimizer state bit for bit."""
    path, expected = written(backend, "keras", optimizer)
    state = read_checkpoint(path)
    model = model_of(state)
    restored = optimizer_of(state, model)
    restoration = restore.restore(model, state, optimizer=restored)
    assert_equal_to_the_writers(model, restored, expected)
    assert "1 seed state not in this format: fresh" in restoration.summary
    assert state.step == 6


@pytest.mark.parametrize(
    ("kind", "optimizer"),
    few_under_jax(
        [(kind, name) for kind in ("checkpoint", "manager") for name in ("adamw", "sgd", "ema", "adafactor")],
        [("checkpoint", "adafactor"), ("manager", "adamw")],
    ),
)
def test_a_tensorflow_checkpoint_restores_to_the_last_bit(written, kind, optimizer):
    """A TensorFlow checkpoint restores bit for bit under either backend, for any roots.

    The model comes from another source.
    """
    path, expected = written("tensorflow", kind, optimizer)
    state = read_checkpoint(path)
    architecture = read_checkpoint(written("tensorflow", "keras", optimizer)[0])
    model = model_of(architecture)
    restored = optimizer_of(architecture, model)
    restore.restore(model, state, optimizer=restored)
    assert_equal_to_the_writers(model, restored, expected)
    assert (state.step, round(state.rate.value, 6)) == (6, 0.01)
    fitting = {"sgd": ["SGD"], "adafactor": []}.get(optimizer, ["Adam", "AdamW", "Lamb"])
    assert slot_forms.graph_classes(state) == fitting


@pytest.mark.parametrize("place", [0, 4, 16, 32])
def test_a_restored_variable_shares_no_memory_with_its_source(place):
    """A restored variable shares no memory with its source, for any alignment of the host buffer.

    Overwriting the source changes no variable, and training does not change the source.
    """
    from kresume.values.state import TrainState

    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(64, use_bias=False)])
    whole = np.zeros(64 * 64 * 4 + 128, np.uint8)
    begin = -whole.ctypes.data % 64 + place
    source = whole[begin : begin + 64 * 64 * 4].view("float32").reshape(64, 64)
    source[:] = 1.0
    restore.restore(model, TrainState("", "run", "groups", {"trainable/0": source}), optimizer=None)
    source[:] = 2.0
    assert np.all(np.asarray(keras.ops.convert_to_numpy(model.trainable_variables[0])) == 1.0)


SCALED_WRITER = """
import sys, numpy as np, keras, tensorflow as tf
for policy in sys.argv[2:]:
    folder = f"{sys.argv[1]}/{policy}"
    keras.config.set_dtype_policy(policy)
    keras.utils.set_random_seed(1)
    last = keras.layers.Dense(3, "softmax", dtype="float32")
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(5, "relu"), last])
    model.compile(keras.optimizers.Adam(1e-2), "sparse_categorical_crossentropy")
    model.fit(np.ones((12, 4), "float32"), np.arange(12) % 3, batch_size=4, epochs=2, verbose=0)
    tf.train.Checkpoint(model=model, optimizer=model.optimizer).save(folder + "/ckpt")
    inner = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    lists = {"weights": model.variables, "m": inner._momentums, "v": inner._velocities}
    np.savez(folder + "/arrays.npz", **{f"{n}/{i}": v.numpy() for n, l in lists.items() for i, v in enumerate(l)})
"""
PRECISIONS = ("float32", "mixed_float16")


@pytest.fixture(scope="module")
def scaled(tmp_path_factory):
    """Writes a TensorFlow checkpoint in each precision, all in one process; returns their folder."""
    folder = tmp_path_factory.mktemp("scaled")
    command = [sys.executable, "-c", SCALED_WRITER, folder, *PRECISIONS]
    forking.run(command, env={**os.environ, "KERAS_BACKEND": "tensorflow"}, check=True)
    return folder


@pytest.mark.parametrize(
    ("written_in", "read_in"),
    few_under_jax([(one, other) for one in PRECISIONS for other in PRECISIONS], [PRECISIONS, PRECISIONS[::-1]]),
)
def test_a_tensorflow_checkpoint_goes_from_any_precision_to_any(scaled, written_in, read_in):
    """A TensorFlow checkpoint restores across precisions: training weights match, with the step.

    The optimizer of mixed_float16 is wrapped for loss scaling.
    """
    folder = scaled / written_in
    state = read_checkpoint(folder)
    assert (state.step, state.optimizer.loss_scale) == (6, written_in == "mixed_float16")
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy(read_in)
    try:
        layers = keras.layers
        model = keras.Sequential(
            [keras.Input((4,)), layers.Dense(5, "relu"), layers.Dense(3, "softmax", dtype="float32")]
        )
    finally:
        keras.config.set_dtype_policy(policy)
    inner = keras.optimizers.Adam(1e-2)
    optimizer = keras.optimizers.LossScaleOptimizer(inner) if read_in == "mixed_float16" else inner
    optimizer.build(model.trainable_variables)
    restore.restore(model, state, optimizer=optimizer)
    with np.load(folder / "arrays.npz") as expected:
        for name, variables in {"weights": model.variables, "m": inner._momentums, "v": inner._velocities}.items():
            for index, variable in enumerate(variables):
                array = np.asarray(keras.ops.convert_to_numpy(variable))
                assert array.tobytes() == expected[f"{name}/{index}"].tobytes(), variable.path
    assert int(inner.iterations) == 6


@pytest.mark.one_backend
def test_a_prefix_and_a_moved_folder_are_found(written, tmp_path):
    """The folder, the prefix and the index file name the same checkpoint, also after a move."""
    import shutil

    path, _ = written("tensorflow", "manager")
    shutil.copytree(path, tmp_path / "moved")
    names = (tmp_path / "moved", tmp_path / "moved" / "ckpt-2", tmp_path / "moved" / "ckpt-2.index")
    one, *others = [dict(read_checkpoint(name).arrays) for name in names]
    for other in others:
        assert_same_bytes(one, other)


def test_another_architecture_is_an_error_that_names_the_first_difference(written):
    """Another architecture is an error with the first variable and both shapes; nothing is assigned.

    The table lists every difference.
    """
    path, _ = written("tensorflow", "keras")
    state = read_checkpoint(path)
    model = build.convnet(3, (12, 12))
    before = [np.asarray(keras.ops.convert_to_numpy(v)).tobytes() for v in model.variables]
    with pytest.raises(RestoreError, match=r"does not fit the model: .*nothing was restored.*--partial") as caught:
        restore.restore(model, state, optimizer=None)
    assert {row[3] for row in caught.value.rows} & {restore.MISSING, restore.SHAPE}
    assert before == [np.asarray(keras.ops.convert_to_numpy(v)).tobytes() for v in model.variables]


@pytest.mark.one_backend(trains=True)
def test_another_count_of_classes_names_both_shapes(written):
    """Another number of classes is an error with the head's shape in the model and in the checkpoint."""
    path, _ = written("tensorflow", "keras")
    state = read_checkpoint(path)
    config = json.loads(json.dumps(dict(state.architecture)))
    config["config"]["layers"][-1]["config"]["units"] = 5
    model = build.from_architecture(config)
    with pytest.raises(
        RestoreError, match=r"kernel has the shape \(400, 5\) in the model and \(400, 3\) in the checkpoint"
    ):
        restore.restore(model, state, optimizer=None)
    restoration = restore.restore(model, state, optimizer=None, partial=True)
    assert "--partial: fresh" in restoration.summary


@pytest.mark.parametrize("damage", ["cut", "flip", "text", "empty"])
@pytest.mark.one_backend
def test_a_damaged_keras_file_is_refused(written, tmp_path, damage):
    """A truncated or flipped file, or one that is no archive, is one clear error.

    Keras silently loads a flipped bit inside HDF5.
    """
    path, _ = written("tensorflow", "keras")
    data = bytearray(path.read_bytes())
    if damage == "cut":
        data = data[: len(data) // 2]
    elif damage == "flip":
        with zipfile.ZipFile(path) as archive:
            info = archive.getinfo("model.weights.h5")
        data[info.header_offset + info.compress_size // 2] ^= 4
    else:
        data = b"hello" if damage == "text" else b""
    broken = tmp_path / "broken.keras"
    broken.write_bytes(data)
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        read_checkpoint(broken)


@pytest.mark.one_backend
def test_what_is_no_checkpoint_says_so(tmp_path, written):
    """A path without a checkpoint is an error with a remedy.

    Tried: no file, an empty folder, another file, several files without an index.
    """
    with pytest.raises(CheckpointError, match=r"the path does not exist"):
        read_checkpoint(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="is empty"):
        read_checkpoint(tmp_path / "empty")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(CheckpointError, match=r"not a checkpoint that kresume can read; supported are .*\.keras"):
        read_checkpoint(tmp_path / "notes.txt")
    (tmp_path / "several").mkdir()
    for name in ("a.keras", "b.keras"):
        (tmp_path / "several" / name).write_bytes(written("tensorflow", "keras")[0].read_bytes())
    os.utime(tmp_path / "several" / "a.keras", (0, 0))
    with pytest.raises(CheckpointError, match=r"2 checkpoints and no index, newest first: b.*--from .*b\.keras"):
        read_checkpoint(tmp_path / "several")


def test_a_lambda_is_never_run(tmp_path):
    """A Lambda in an architecture is refused and never run."""
    model = keras.Sequential([keras.Input((4,)), keras.layers.Lambda(lambda x: x * 2)])
    model.save(tmp_path / "lambda.keras")
    state = read_checkpoint(tmp_path / "lambda.keras")
    from kresume.errors import ModelError

    with pytest.raises(ModelError, match="the code of a Lambda layer runs only with"):
        model_of(state)


def test_keras_still_saves_by_the_names_we_read(tmp_path):
    """Our walk gives every variable Keras's own HDF5 path, so every weight in the file is found."""
    model = build.convnet(3, (12, 12))
    model.save(tmp_path / "model.keras")
    arrays = read_checkpoint(tmp_path / "model.keras").arrays
    names = {path: np.asarray(keras.ops.convert_to_numpy(variable)) for variable, path in keras_names(model)}
    assert_same_bytes({name: array for name, array in arrays.items() if "/vars/" in name}, names)


def test_a_variable_that_two_layers_have_is_stored_twice(tmp_path):
    """A variable that two layers share is stored twice, and both names are accounted for.

    Keras writes the kernel below `SpectralNormalization` and below the layer inside.
    """
    layers = keras.layers
    model = keras.Sequential(
        [keras.Input((6, 6, 3)), layers.SpectralNormalization(layers.Conv2D(2, 3)), layers.Flatten()]
    )
    model.save(tmp_path / "model.keras")
    state = read_checkpoint(tmp_path / "model.keras")
    live = model_of(state)
    restore.restore(live, state, optimizer=None)
    assert_same_bytes(
        {str(index): array for index, array in enumerate(model.get_weights())},
        {str(index): array for index, array in enumerate(live.get_weights())},
    )
    twice = next(name for name in state.arrays if name.endswith("spectral_normalization/vars/0"))
    changed = replace(state, arrays={**state.arrays, twice: state.arrays[twice] + 1})
    with pytest.raises(RestoreError, match=f"holds 1 arrays.* {twice}"):
        restore.restore(live, changed, optimizer=None)


@pytest.mark.one_backend
def test_bfloat16_of_keras_2_is_read(tmp_path):
    """A bfloat16 variable of tf_keras is read, although its file does not name the type.

    tf_keras stores some variables in the type in which they compute.
    """
    import h5py
    import ml_dtypes

    from kresume.checkpoints.hdf5 import read_arrays

    values = np.asarray([0.5, -3.0, 1.0078125], ml_dtypes.bfloat16)
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file["mean"] = values.view("V2")
        file["other"] = np.zeros(3, "V3")
    with pytest.raises(CheckpointError, match=r"other has the type .V3"):
        read_arrays((tmp_path / "m.h5").read_bytes(), "m.h5")
    with h5py.File(tmp_path / "m.h5", "r+") as file:
        del file["other"]
    found = read_arrays((tmp_path / "m.h5").read_bytes(), "m.h5")["mean"]
    assert found.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(found.astype("float32"), [0.5, -3.0, 1.0078125])


def test_what_we_save_loads_in_plain_keras_and_trains_on(tmp_path):
    """`model.keras` loads in plain Keras and trains on: Keras's classes, a float rate, optimizer state."""
    from kresume.models.schedules import Cosine

    model = build.convnet(3, (12, 12))
    model.compile(keras.optimizers.AdamW(Cosine(1e-2, 50, 5)), "sparse_categorical_crossentropy", metrics=["accuracy"])
    images = np.random.default_rng(0).uniform(0, 255, (8, 12, 12, 3)).astype("float32")
    model.fit(images, np.arange(8) % 3, epochs=2, verbose=0)
    before = np.asarray(keras.ops.convert_to_numpy(model.optimizer.variables[3])).tobytes()
    card = Card(("a", "b", "c"), (12, 12), "0-255", "stretch", "area")
    save.save_model(model, tmp_path / "model.keras", card, 1e-3, {"step": 2, "peak": 1e-3})
    np.save(tmp_path / "images.npy", images)
    script = (
        "import sys; sys.modules['kresume'] = None\n"
        "import hashlib, keras, numpy as np\n"
        f"model = keras.models.load_model(r'{tmp_path / 'model.keras'}')\n"
        "print(int(model.optimizer.iterations), float(keras.ops.convert_to_numpy(model.optimizer.learning_rate)))\n"
        "print(np.asarray(keras.ops.convert_to_numpy([v for v in model.optimizer.variables if v.path.split('/')[1] not in "
        "('iteration', 'learning_rate')][2])).tobytes().hex())\n"
        f"model.fit(np.load(r'{tmp_path / 'images.npy'}'), np.arange(8) % 3, verbose=0)\n"
        "print(int(model.optimizer.iterations))\n"
    )
    done = forking.run([sys.executable, "-c", script], check=True)
    first, slot, last = done.stdout.split("\n")[:3]
    assert first == "2 0.0010000000474974513"
    assert bytes.fromhex(slot) == before
    assert last == "3"
    state = read_checkpoint(tmp_path / "model.keras")
    assert state.card == card
    assert (state.rate.value, state.rate.origin, state.step) == (1e-3, "run", 2)


@pytest.mark.one_backend
def test_inspect_says_what_a_resume_must_be_told(written):
    """`inspect` lists what a resume must be told.

    A bare TensorFlow checkpoint lacks architecture, optimizer name, classes and images; a .keras file lacks less.
    """
    bare = describe(read_checkpoint(written("tensorflow", "checkpoint")[0]))
    assert len(bare.missing) == 4
    assert (bare.step, bare.optimizer_variables) == (6, 14)
    full = describe(read_checkpoint(written("tensorflow", "keras")[0]))
    assert full.parameters == bare.parameters
    assert full.optimizer == "AdamW"
    assert "step        6" in str(full)
    json.dumps(full.as_dict())


@pytest.mark.one_backend
def test_a_path_with_a_typo_is_guessed(tmp_path, pictures):
    """A missing path with a near neighbour is an error that names the neighbour."""
    (tmp_path / "1-signs").mkdir()
    with pytest.raises(CheckpointError, match=r"the path does not exist, did you mean .*1-signs\?"):
        read_checkpoint(str(tmp_path / "1-sings"))
    with pytest.raises(CheckpointError, match=r"the path does not exist$"):
        read_checkpoint(str(tmp_path / "unlike"))


@pytest.mark.parametrize("ending", ["keras", "h5"])
def test_an_adapted_normalization_normalises_by_what_was_saved(tmp_path, ending):
    """An adapted Normalization uses the saved statistics after restoring and after continuing.

    Its constants are computed from its variables.
    """
    pictures = np.random.default_rng(3).normal(5.0, 3.0, (8, 6, 6, 3)).astype("float32")
    adapted = keras.layers.Normalization()
    adapted.adapt(pictures)
    model = keras.Sequential([keras.Input((6, 6, 3)), adapted, keras.layers.Flatten(), keras.layers.Dense(2)])
    path = tmp_path / f"model.{ending}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras does not recommend .h5
        model.save(path)
    expected = keras.ops.convert_to_numpy(model(pictures))
    state = read_checkpoint(path)
    restored = build.from_architecture(state.architecture)
    restore.restore(restored, state, optimizer=None)
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(restored(pictures)), expected)
    other = build.from_architecture(state.architecture)
    model.compile("sgd", "mse")
    other.compile("sgd", "mse")
    for one in (model, other):
        one.optimizer.build(one.trainable_variables)
    arrays = {
        f"{group}/{index}": np.asarray(array)
        for group, listed in live_state.read_state(model).items()
        for index, array in enumerate(listed)
    }
    assign_state(other, TrainState("run", "snapshot", "groups", arrays), metrics=False)
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(other(pictures)), expected)


def test_a_legacy_file_of_keras_3_is_not_translated(tmp_path):
    """A legacy file of Keras 3 is not translated from Keras 2: shared calls and hard_sigmoid stay."""
    layers = keras.layers
    stack = keras.Sequential([keras.Input((6, 6, 3)), layers.Conv2D(3, 1, activation="hard_sigmoid")])
    inputs = keras.Input((6, 6, 3))
    outputs = layers.Flatten()(layers.Subtract()([stack(inputs), stack(layers.Rescaling(0.1)(inputs))]))
    model = keras.Model(inputs, layers.Dense(2)(outputs))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras does not recommend .h5
        model.save(tmp_path / "model.h5")
    pictures = np.random.default_rng(3).normal(0.0, 3.0, (2, 6, 6, 3)).astype("float32")
    state = read_checkpoint(tmp_path / "model.h5")
    restored = build.from_architecture(state.architecture)
    restore.restore(restored, state, optimizer=None)
    expected = keras.ops.convert_to_numpy(model(pictures))
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(restored(pictures)), expected)
