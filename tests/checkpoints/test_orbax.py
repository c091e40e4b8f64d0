"""Tests Orbax folders and plain trees, written under both backends, read under the running one.

Keras's own reload is never used.
"""

import asyncio
import gc
import json
import shutil
import sys

import keras
import numpy as np
import pytest

from kresume.checkpoints.read import read_checkpoint
from kresume.errors import CheckpointError, RestoreError
from kresume.models import build, optimizers, restore
from tests.helpers.backends import few_under_jax
from tests.helpers.golden_models import MODELS
from tests.helpers.paths import GOLDENS, WRITERS

FOLDERS = ("orbax-0.12.8-jax", "orbax-0.12.8-tensorflow")
EXPECTED = {f: json.loads((GOLDENS / f / "expected.json").read_text()) for f in FOLDERS}
CASES = [(folder, name) for folder in FOLDERS for name in sorted(EXPECTED[folder])]
sys.path.insert(0, str(WRITERS))
from inputs import IMAGES, LABELS  # noqa: E402

pytest.importorskip("orbax.checkpoint")


def restored(folder, name, model=None):
    """Restores the golden into the model that it describes, or the given one.

    Returns:
        `(model, optimizer or None, state)`.
    """
    state = read_checkpoint(GOLDENS / folder / name)
    if model is None:
        described = state.architecture is not None
        model = build.from_architecture(state.architecture) if described else MODELS[EXPECTED[folder][name]["model"]]()
    optimizer = None
    if state.optimizer is not None and state.optimizer.class_name is not None:
        rate = state.rate.value
        if state.rate.schedule is not None:
            rate = keras.optimizers.schedules.deserialize(dict(state.rate.schedule))
        optimizer = optimizers.make_optimizer(state.optimizer, rate)
        optimizer.build(model.trainable_variables)
    restore.restore(model, state, optimizer=optimizer)
    return model, optimizer, state


@pytest.mark.parametrize(
    ("folder", "name"), few_under_jax(CASES, [(FOLDERS[0], "nested-adam"), (FOLDERS[1], "sequential-sgd")])
)
def test_it_predicts_and_goes_on_as_its_writer_does(folder, name):
    """A golden has the predictions and the next three losses of its writer, with EMA and a schedule, too."""
    model, optimizer, state = restored(folder, name)
    expected = EXPECTED[folder][name]
    np.testing.assert_allclose(model.predict(IMAGES, verbose=0), expected["predictions"], atol=5e-6)
    if expected["optimizer"] is not None:
        assert state.step == 3
        model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(expected["model"] != "nested"))
        losses = [float(model.train_on_batch(IMAGES, LABELS)) for _ in expected["next_losses"]]
        np.testing.assert_allclose(losses, expected["next_losses"], rtol=2e-5)


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize(("folder", "name"), [case for case in CASES if EXPECTED[case[0]][case[1]]["optimizer"]])
def test_every_array_arrives_to_the_last_bit_whatever_the_names(folder, name):
    """Every array is restored bit for bit, also into a model of a user's function.

    Its automatic names count from another number.
    """
    model, optimizer, state = restored(folder, name)
    keras.layers.Conv2D(1, 1), keras.layers.Dense(1)  # uses up two automatic names
    other, second, _ = restored(folder, name, MODELS[EXPECTED[folder][name]["model"]]())
    for ours, theirs in zip(
        [*model.weights, *optimizer.variables], [*other.weights, *second.variables], strict=True
    ):  # fmt: skip
        one, two = (np.asarray(keras.ops.convert_to_numpy(variable)) for variable in (ours, theirs))
        assert one.tobytes() == two.tobytes(), ours.path
    stored = [np.ravel(array) for path, array in state.arrays.items() if path.startswith("optimizer") and array.shape]
    live = [np.ravel(keras.ops.convert_to_numpy(variable)) for variable in optimizer.variables if tuple(variable.shape)]
    assert np.sort(np.concatenate(stored)).tobytes() == np.sort(np.concatenate(live)).tobytes()


@pytest.mark.one_backend
def test_steps_and_their_folders_are_found(tmp_path):
    """The highest finished step is read; a step can be chosen by its number; an unfinished one is ignored."""
    source = GOLDENS / FOLDERS[0] / "sequential-sgd"
    steps = [child for child in source.iterdir() if child.name.isdigit()]
    assert len(steps) == 1
    shutil.copytree(steps[0], tmp_path / "run" / "3")
    shutil.copytree(steps[0], tmp_path / "run" / "12")
    shutil.copytree(steps[0], tmp_path / "run" / "13.orbax-checkpoint-tmp")
    (tmp_path / "run" / "3" / "model_config" / "_strings.json").unlink()
    assert read_checkpoint(tmp_path / "run").architecture is not None
    assert read_checkpoint(tmp_path / "run" / "3").architecture is None
    assert read_checkpoint(tmp_path / "run" / "12" / "pytree").step == 3


@pytest.mark.one_backend(trains=True)
def test_two_layers_that_a_name_cannot_tell_apart_are_never_guessed():
    """A tree without a description, whose names fit only in part, restores nothing."""
    state = read_checkpoint(GOLDENS / FOLDERS[0] / "nested-state")
    model = MODELS["sequential"]()
    before = [array.tobytes() for array in model.get_weights()]
    with pytest.raises(RestoreError, match="does not fit the model"):
        restore.restore(model, state, optimizer=None)
    assert [array.tobytes() for array in model.get_weights()] == before


@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
@pytest.mark.parametrize(
    "file", ["pytree/manifest.ocdbt", "pytree/_METADATA", "pytree/d/*", "model_config/_strings.json"]
)
@pytest.mark.one_backend
def test_a_damaged_folder_is_refused(tmp_path, file, damage):
    """A truncated, flipped or empty folder is one clear error."""
    shutil.copytree(GOLDENS / FOLDERS[0] / "nested-adam", tmp_path / "o")
    broken = max((tmp_path / "o").glob(f"*/{file}"), key=lambda path: path.stat().st_size)
    data = bytearray(broken.read_bytes())
    if damage == "flip":
        data[1] ^= 0x55
    broken.write_bytes(data[: len(data) // 2] if damage == "cut" else b"" if damage == "empty" else data)
    with pytest.raises(CheckpointError, match="damaged"):
        read_checkpoint(tmp_path / "o")


@pytest.mark.one_backend
def test_a_damaged_newest_step_names_the_step_before(tmp_path):
    """The way on of the message is tried: it is read."""
    steps = tmp_path / "steps"
    (source,) = (child for child in (GOLDENS / FOLDERS[0] / "sequential-sgd").iterdir() if child.name.isdigit())
    for number in (3, 12):
        shutil.copytree(source, steps / str(number))
    (steps / "12" / "pytree" / "manifest.ocdbt").write_bytes(b"")
    with pytest.raises(CheckpointError, match=rf"damaged .*its newest step is 12; use {steps / '3'}"):
        read_checkpoint(steps)
    assert read_checkpoint(steps / "3").step == 3
    shutil.rmtree(steps / "3")
    with pytest.raises(CheckpointError, match=r"its newest step is 12; it has no other"):
        read_checkpoint(steps)


@pytest.mark.parametrize("name", ["nested-adam", "nested-state", "sequential-sgd"])
@pytest.mark.one_backend
def test_a_damaged_folder_leaves_nothing_behind(tmp_path, monkeypatch, name):
    """A failed read finishes every pending array before its loop closes, so no error appears later."""
    source = GOLDENS / FOLDERS[0] / name
    largest = max(source.glob("**/d/*"), key=lambda path: path.stat().st_size)
    loops, make, late = [], asyncio.new_event_loop, []
    monkeypatch.setattr(asyncio, "new_event_loop", lambda: loops.append(make()) or loops[-1])
    monkeypatch.setattr(sys, "unraisablehook", late.append)
    shutil.copytree(source, tmp_path / "o")
    (tmp_path / "o" / largest.relative_to(source)).write_bytes(b"")
    with pytest.raises(CheckpointError, match="damaged"):
        read_checkpoint(tmp_path / "o")
    from importlib.metadata import version

    makes_loops = [int(part) for part in version("orbax-checkpoint").split(".")[:3]] >= [
        0,
        12,
        8,
    ]  # before: asyncio.run
    assert bool(loops) == makes_loops
    assert all(loop.is_closed() for loop in loops)
    assert [task for loop in loops for task in asyncio.all_tasks(loop)] == []
    gc.collect()
    assert late == []


@pytest.mark.one_backend
def test_a_shape_that_claims_more_than_the_disk_holds_is_refused(tmp_path, monkeypatch):
    """An array that claims more than the disk holds is refused before memory is allocated."""
    import orbax.checkpoint as orbax

    from kresume.checkpoints import orbax_folder

    monkeypatch.setattr(orbax_folder, "SMALLEST_LIMIT", 10_000)
    monkeypatch.setattr(orbax_folder, "LARGEST_SHARE", 10)
    with orbax.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "o", {"a": np.zeros((2000, 1000), np.int8)})
    with pytest.raises(CheckpointError, match=r"claims 2,000,000 bytes of arrays, but has .* refused"):
        read_checkpoint(tmp_path / "o")


def two_layers():
    return keras.Sequential([keras.Input((5,)), keras.layers.Dense(4, name="one"), keras.layers.Dense(3, name="two")])


def tree_of(filled):
    """Returns the weights of `two_layers`, all of one value."""
    shapes = {"one": {"kernel": (5, 4), "bias": (4,)}, "two": {"kernel": (4, 3), "bias": (3,)}}
    return {
        layer: {role: np.full(shape, filled, np.float32) for role, shape in of.items()} for layer, of in shapes.items()
    }


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize(
    ("trees", "used", "other"),
    [
        ({"params": 1, "ema_params": 2}, "params", "ema_params"),
        ({"ema": 2, "online": 1}, "online", "ema"),
        ({"teacher": 2, "student": 1}, "student", "teacher"),
        ({"best": 2, "params": 1}, "params", "best"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_of_several_sets_of_weights_the_trained_one_is_restored(tmp_path, trees, used, other):
    """A note names the others, with the code that makes a tree of one of them alone, which works."""
    import orbax.checkpoint as orbax

    whole = {name: tree_of(value) for name, value in trees.items()}
    with orbax.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "both", {**whole, "step": np.int32(7)})
    model = two_layers()
    summary = restore.restore(model, read_checkpoint(tmp_path / "both"), optimizer=None).summary
    assert {float(value) for weight in model.get_weights() for value in np.unique(weight)} == {1.0}
    assert f"the file also holds {other}, which is ignored: {used} is used" in summary
    code = summary.partition("alone: ")[2].removesuffix(")")
    exec(code, {"orbax": sys.modules["orbax"], "PATH": tmp_path / "both", "OTHER": tmp_path / "other"})
    restore.restore(model, read_checkpoint(tmp_path / "other"), optimizer=None)
    assert {float(value) for weight in model.get_weights() for value in np.unique(weight)} == {2.0}


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize("names", [("a", "b"), ("ema", "grads"), ("weights_target", "mu"), ("remainder", "best")])
def test_sets_of_weights_that_nothing_tells_apart_are_refused(tmp_path, names):
    import orbax.checkpoint as orbax

    with orbax.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "both", {name: tree_of(number) for number, name in enumerate(names)})
    with pytest.raises(RestoreError, match="does not fit the model"):
        restore.restore(two_layers(), read_checkpoint(tmp_path / "both"), optimizer=None)


@pytest.mark.parametrize("policy", ["mixed_float16", "float32"])
def test_loss_scaling_is_restored_to_the_last_bit(tmp_path, policy):
    """Keras writes a count and a rate of the scaling beside the optimizer's; nothing told them apart, so it was refused."""

    def made():
        keras.utils.set_random_seed(4)
        inputs = keras.Input((5,))
        outputs = keras.layers.Dense(3, dtype="float32")(keras.layers.Dense(4, "relu", dtype=policy)(inputs))
        return keras.Model(inputs, outputs)

    model = made()
    scaled = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.01), initial_scale=64.0)
    model.compile(scaled, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(12, 5)).astype("float32"), rng.integers(0, 3, 12)
    writer = keras.callbacks.OrbaxCheckpoint(str(tmp_path / "orbax"), save_freq="epoch")
    model.fit(x, y, 4, epochs=2, verbose=0, callbacks=[writer])
    state = read_checkpoint(tmp_path / "orbax")
    assert (state.step, state.optimizer.class_name, state.optimizer.loss_scale) == (6, "Adam", True)
    assert state.rate.value == pytest.approx(0.01)
    other = made()
    optimizer = optimizers.make_optimizer(state.optimizer, 0.5)
    optimizer.build(other.trainable_variables)
    restore.restore(other, state, optimizer=optimizer)
    pairs = zip([*other.weights, *optimizer.variables], [*model.weights, *scaled.variables], strict=True)
    for ours, theirs in pairs:
        assert np.asarray(ours.value).tobytes() == np.asarray(theirs.value).tobytes(), ours.path
    plain = optimizers.make_optimizer(state.optimizer.__class__("Adam", state.optimizer.config, 0), 0.5)
    plain.build(other.trainable_variables)
    restore.restore(other, state, optimizer=plain)  # without the scale, which float32 does not need
    for ours, theirs in zip(plain.variables, scaled.inner_optimizer.variables, strict=True):
        assert np.asarray(ours.value).tobytes() == np.asarray(theirs.value).tobytes(), ours.path
