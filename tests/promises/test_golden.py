"""Tests checkpoints written by the real libraries: equal predictions, slots and next losses.

The versions of the libraries are pinned.
"""

import hashlib
import json
import shutil

import keras
import numpy as np
import pytest

from kresume.backend import live_state
from kresume.checkpoints.inspect import describe
from kresume.checkpoints.read import read_checkpoint
from kresume.models import slots
from kresume.options.table import TrainConfig
from kresume.training.plan.parent import Parent, restore_parent
from tests.golden.models import images_and_labels
from tests.helpers.backends import few_under_jax
from tests.helpers.paths import GOLDENS

pytestmark = pytest.mark.optimized_graphs

FOLDERS = sorted(path.parent for path in GOLDENS.glob("*/*/expected.json"))
BARE = {"weights-h5", "weights-json", "backup"}
FEW = [
    GOLDENS / "keras-3.15.1" / name
    for name in ("keras-cnn-adam-float16", "keras-resnet-sgd", "weights-h5-mobilenet-adam")
]
FEW += [GOLDENS / "keras-3.15.1" / "weights-h5-sequential-ema", GOLDENS / "tf_keras-2.21.0" / "h5-nested-legacy-sgd"]
"""For JAX: convolutions, one optimizer each, loss scaling and averages. Formats are read alike."""
BATCH = 4
NAMED = {"adam": "adam", "ema": "adam", "sgd": "sgd"}


def digest(array):
    array = np.ascontiguousarray(array)
    return hashlib.sha256(f"{array.dtype} {array.shape}".encode() + array.tobytes()).hexdigest()[:16]


def batches(step):
    images, labels = images_and_labels()
    rows = np.arange(step * BATCH, (step + 1) * BATCH) % len(images)
    return images[rows], labels[rows]


def restored(folder, expected):
    """Restores the golden checkpoint into a live model, as `train` does."""
    path = str(folder / expected["path"])
    bare = any(folder.name.startswith(kind) for kind in BARE)
    options = {}
    if bare:
        place = folder.name.rpartition("-")[2]
        options = {"model": f"tests.golden.specs:{expected['model']}", "optimizer": NAMED[place]}
    config = TrainConfig(from_=path, **options)
    parent = Parent(read_checkpoint(path), None, None)
    return parent, restore_parent(config, parent, num_classes=3, image_size=None)


@pytest.mark.parametrize("folder", few_under_jax(FOLDERS, FEW), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_golden_checkpoint_goes_on_as_its_writer_did(folder):
    """A golden checkpoint predicts and trains as its writer did.

    Predictions and the next three losses agree within float tolerance, the optimizer's slots bit for bit.
    """
    expected = json.loads((folder / "expected.json").read_text())
    parent, live = restored(folder, expected)
    assert parent.state.step == live.iterations == expected["step"]
    if parent.state.rate is not None:
        assert parent.state.rate.value == pytest.approx(expected["rate"])
    found = {
        name: [digest(keras.ops.convert_to_numpy(slot)) for slot in listed]
        for name, listed in slots.slot_lists(live.optimizer).items()
    }
    assert found == expected["slots"]
    loose = 2e-3 if "float16" in folder.name else 2e-6
    images, _ = batches(0)
    np.testing.assert_allclose(live.model.predict(images, verbose=0), expected["predictions"], atol=loose)
    if parent.state.rate is None and "schedule" not in str(parent.state.compiled):
        live_state.inner(live.optimizer).learning_rate.assign(
            expected["rate"]
        )  # as --lr would; Keras 2 does not store it
    live.model.compile(live.optimizer, "sparse_categorical_crossentropy", auto_scale_loss=False)
    losses = [
        float(live.model.train_on_batch(*batches(step))) for step in range(expected["step"], expected["step"] + 3)
    ]
    np.testing.assert_allclose(losses, expected["next_losses"], atol=5e-3 if loose > 1e-3 else 5e-6)


@pytest.mark.parametrize("folder", FOLDERS, ids=[f"{path.parent.name}/{path.name}" for path in FOLDERS])
@pytest.mark.one_backend
def test_inspect_says_what_a_golden_checkpoint_is(folder):
    """`inspect` names a golden's format, step, optimizer and missing parts without building a model.

    Weights alone lack their architecture and names.
    """
    expected = json.loads((folder / "expected.json").read_text())
    found = describe(read_checkpoint(folder / expected["path"]))
    bare = any(folder.name.startswith(kind) for kind in BARE)
    assert found.step == expected["step"]
    assert found.architecture != bare
    assert (found.optimizer is None) == bare
    assert any("--optimizer" in line for line in found.missing) == bare
    assert found.optimizer_variables > 0
    assert found.writer.startswith("keras")
    json.dumps(found.as_dict())


@pytest.mark.one_backend
def test_every_writer_has_left_its_files():
    """Every writer's folder exists: if it were renamed, the tests above would pass without testing it."""
    assert len(FOLDERS) >= 20
    assert {folder.parent.name.partition("-")[0] for folder in FOLDERS} >= {"keras", "tf_keras"}
    assert all(file.stat().st_size <= 50 * 1024 for file in GOLDENS.rglob("*") if file.is_file())


def keras_2_file(tmp_path, name, optimizer, rename, extra=()):
    """Writes a golden `.h5` of Keras 2's Adam as another of its optimizers would have written it."""
    import h5py

    path = tmp_path / f"{name}.h5"
    shutil.copy(GOLDENS / "tf_keras-2.21.0" / "h5-cnn-adam" / "model.h5", path)
    with h5py.File(path, "r+") as file:
        training = json.loads(file.attrs["training_config"])
        training["optimizer_config"] = optimizer(training["optimizer_config"])
        file.attrs["training_config"] = json.dumps(training)
        old = file["optimizer_weights"]
        arrays = {rename(str(each)): old[str(each)][()] for each in old.attrs["weight_names"]}
        del file["optimizer_weights"]
        new = file.create_group("optimizer_weights")
        for each, array in (*arrays.items(), *extra):
            new[each] = array
        new.attrs["weight_names"] = [*arrays, *(each for each, _ in extra)]
    return path


@pytest.mark.one_backend
def test_loss_scaling_of_keras_2_keeps_the_slots(tmp_path):
    """Keras 2's loss scaling keeps the inner optimizer's slots, although their names lack its class."""
    plain = read_checkpoint(GOLDENS / "tf_keras-2.21.0" / "h5-cnn-adam" / "model.h5")

    def scaled(config):
        return {"class_name": "LossScaleOptimizerV3", "config": {"inner_optimizer": config, "dynamic": True}}

    path = keras_2_file(tmp_path, "scaled", scaled, lambda name: name.removeprefix("Adam/"))
    state = read_checkpoint(path)
    assert state.optimizer.class_name == "Adam"
    assert [slot[:2] for slot in state.records["slots"]] == [slot[:2] for slot in plain.records["slots"]]
    assert state.rate == plain.rate


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize("legacy", [False, True])
def test_nadam_of_keras_2_gets_its_product(tmp_path, legacy):
    """Keras 2's Nadam gets the momentum product that Keras 3's Nadam would have after as many updates.

    The legacy optimizer's schedule decay is not a decay of the rate.
    """

    def nadam(config):
        own = {"decay": 0.004} if legacy else {}
        return {"class_name": "Nadam", "config": {"name": "Nadam", "learning_rate": 0.01, "beta_1": 0.9, **own}}

    extra = [("Nadam/momentum_cache:0", np.float32(0.3))] if legacy else []
    path = keras_2_file(tmp_path, "nadam", nadam, lambda name: name.replace("Adam/", "Nadam/"), extra)
    state = read_checkpoint(path)
    assert state.rate.schedule is None
    slots = {attribute: name for attribute, _, name in state.records["slots"]}
    variable = keras.Variable(np.zeros(2, "float32"))
    optimizer = keras.optimizers.Nadam(0.01, beta_1=0.9)
    optimizer.build([variable])
    for _ in range(state.step):
        optimizer.apply([keras.ops.ones(2)], [variable])
    product = np.asarray(keras.ops.convert_to_numpy(optimizer._u_product))
    np.testing.assert_allclose(state.arrays[slots["_u_product"]], product, rtol=1e-6)
    assert "momentum_cache" not in "".join(state.arrays)
    assert {"_momentums", "_velocities", "_iterations"} <= set(slots)
