"""Tests tf.train.Checkpoints and SavedModels of Keras 2, and Keras 3's exports, under either backend."""

import json
import os
import shutil
import sys

import keras
import numpy as np
import pytest

from kresume.checkpoints import graph_optimizer
from kresume.checkpoints.read import read_checkpoint
from kresume.errors import CheckpointError, RestoreError
from kresume.models import build, optimizers, restore, slot_forms
from kresume.options.resolve import from_arguments
from kresume.reporter import Reporter
from kresume.training.resume import train
from kresume.values.state import SavedOptimizer
from tests.helpers import forking
from tests.helpers.backends import few_under_jax
from tests.helpers.golden_models import MODELS
from tests.helpers.paths import GOLDENS, ROOT, WRITERS
from tests.helpers.runs import assert_same_bytes

GOLDEN = GOLDENS / "tf_keras-2.21.0"
EXPECTED = json.loads((GOLDEN / "expected.json").read_text())
sys.path.insert(0, str(WRITERS))
from inputs import IMAGES, LABELS  # noqa: E402

COMPILED = {
    "adam": ("Adam", {}),
    "adamw": ("AdamW", {"weight_decay": 0.05}),
    "sgd": ("SGD", {"momentum": 0.9}),
    "rmsprop": ("RMSprop", {}),
    "decay": ("Adam", {}),
}
"""Optimizers that the function of `--model` compiles, where the file does not name them."""


def restored(name, **options):
    """Restores the golden into its Keras 3 twin, or from its metadata: `(model, optimizer, state)`."""
    state = read_checkpoint(GOLDEN / name)
    model = (
        MODELS[EXPECTED[name]["model"]]() if state.architecture is None else build.from_architecture(state.architecture)
    )
    saved = state.optimizer
    if saved.class_name is None:
        saved = SavedOptimizer(*COMPILED[EXPECTED[name]["optimizer"]], 0)
    rate = state.rate.value
    if state.rate.schedule is not None:
        rate = keras.optimizers.schedules.deserialize(dict(state.rate.schedule))
    optimizer = optimizers.make_optimizer(saved, rate)
    optimizer.build(model.trainable_variables)
    restoration = restore.restore(model, state, optimizer=optimizer, **options)
    assert not [row for row in restoration.rows if row[3] not in {restore.RESTORED, restore.NOT_IN_FORMAT}]
    return model, optimizer, state


@pytest.mark.parametrize("name", few_under_jax(sorted(EXPECTED), ["saved-small-adam"]))
@pytest.mark.sample(
    "attention-adamw",
    "nested-legacy-decay",
    "subclassed-rmsprop",
    "sequential-adam",
    "saved-small-adam",
    "transfer-adam",
)
def test_it_predicts_and_goes_on_as_keras_2_does(name):
    """A golden has the predictions, step, rate and next three losses of its writer."""
    model, optimizer, state = restored(name)
    expected = EXPECTED[name]
    np.testing.assert_allclose(model.predict(IMAGES, verbose=0), expected["predictions"], atol=5e-6)
    logits = expected["model"] != "nested"
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=logits))
    losses = [float(model.train_on_batch(IMAGES, LABELS)) for _ in expected["next_losses"]]
    np.testing.assert_allclose(losses, expected["next_losses"], rtol=2e-5)
    assert state.step == expected["step"]
    assert state.rate.value == pytest.approx(expected["rate"])


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_every_slot_arrives_to_the_last_bit(name):
    """Every slot is restored bit for bit, beside its variable."""
    _, optimizer, state = restored(name)
    owned = graph_optimizer.owned(state.graph, graph_optimizer.find_optimizer(state.graph))
    names = {state.graph[node].array for node in owned} - {None}
    theirs = [np.ravel(state.arrays[name]) for name in names if state.arrays[name].shape]
    ours = [np.ravel(keras.ops.convert_to_numpy(variable)) for variable in optimizer.variables if tuple(variable.shape)]
    assert sum(map(np.size, theirs)) > 100
    assert_same_bytes({"slots": np.sort(np.concatenate(theirs))}, {"slots": np.sort(np.concatenate(ours))})


NADAM = """
import sys
import numpy as np, tensorflow as tf, tf_keras
layers = tf_keras.layers
for kind, cls in (("new", tf_keras.optimizers.Nadam), ("legacy", tf_keras.optimizers.legacy.Nadam)):
    model = tf_keras.Sequential([layers.Input((6, 6, 3)), layers.GlobalMaxPooling2D(), layers.Dense(3, name="head")])
    model.compile(cls(1e-2, beta_1=0.8), tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    for seed in range(4):
        images = np.random.default_rng(seed).random((6, 6, 6, 3)).astype("float32")
        model.train_on_batch(images, np.arange(6) % 3)
    model.save(f"{sys.argv[1]}/{kind}-model", save_format="tf")
    tf.train.Checkpoint(model=model, optimizer=model.optimizer).save(f"{sys.argv[1]}/{kind}-checkpoint/ckpt")
    slots = model.optimizer.variables() if kind == "legacy" else model.optimizer.variables
    np.savez(f"{sys.argv[1]}/{kind}.npz", *[slot.numpy() for slot in slots])
"""


@pytest.fixture(scope="module")
def nadams(tmp_path_factory):
    """Trains a Keras 2 model for four steps of Nadam, with the legacy and the new-style optimizer."""
    pytest.importorskip("tf_keras")
    folder = tmp_path_factory.mktemp("nadam")
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1"}
    forking.run([sys.executable, "-c", NADAM, folder], check=True, env=environment)
    return folder


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize("form", ["model", "checkpoint"])
@pytest.mark.parametrize("kind", ["new", "legacy"])
def test_nadam_has_the_product_that_keras_3_would_have(nadams, kind, form):
    """Nadam's slots are the file's; its momentum product is that of its four updates in Keras 3.

    Keras 2 multiplies it once per weight, or at another pace.
    """
    state = read_checkpoint(nadams / f"{kind}-{form}")
    saved = state.optimizer
    if saved.class_name is None:  # a new-style optimizer in a tf.train.Checkpoint has no name
        saved = SavedOptimizer("Nadam", {"beta_1": 0.8}, 0)
    assert (saved.class_name, state.step, state.rate.schedule) == ("Nadam", 4, None)
    assert state.rate.value == pytest.approx(1e-2)
    head = keras.layers.Dense(3, name="head")
    model = keras.Sequential([keras.Input((6, 6, 3)), keras.layers.GlobalMaxPooling2D(), head])
    optimizer = optimizers.make_optimizer(saved, state.rate.value)
    optimizer.build(model.trainable_variables)
    restoration = restore.restore(model, state, optimizer=optimizer)
    assert "product of momentums is computed from its 4 updates" in restoration.summary
    expected = np.prod([0.8 * (1 - 0.5 * 0.96**update) for update in range(1, 5)])
    assert float(keras.ops.convert_to_numpy(optimizer._u_product)) == pytest.approx(expected, rel=1e-5)
    with np.load(nadams / f"{kind}.npz") as written:
        theirs = [written[name] for name in written.files if written[name].shape]
    ours = [keras.ops.convert_to_numpy(slot) for slot in (*optimizer._momentums, *optimizer._velocities)]
    together = [np.sort(np.concatenate([np.ravel(array) for array in each])) for each in (theirs, ours)]
    assert_same_bytes({"slots": together[0]}, {"slots": together[1]})


@pytest.mark.one_backend(trains=True)
def test_what_the_file_says_of_its_optimizer_is_taken():
    """Legacy Adam is read from the file, its decay as a schedule; for others the error names candidates."""
    decay = read_checkpoint(GOLDEN / "nested-legacy-decay")
    assert decay.rate.schedule["class_name"] == "InverseTimeDecay"
    assert decay.optimizer.class_name == "Adam"
    assert decay.writer == "tf.train.Checkpoint, Keras 2"
    assert slot_forms.graph_classes(read_checkpoint(GOLDEN / "sequential-legacy-sgd")) == ["SGD"]
    assert "Adam" in slot_forms.graph_classes(read_checkpoint(GOLDEN / "subclassed-adam"))
    saved = read_checkpoint(GOLDEN / "saved-small-legacy-sgd")
    assert (saved.format, saved.optimizer.class_name, saved.optimizer.config["momentum"]) == (
        "saved-model", "SGD", pytest.approx(0.9),
    )  # fmt: skip


@pytest.mark.one_backend(trains=True)
def test_another_model_is_an_error_and_nothing_is_assigned():
    """An additional layer or another width is an error with a table, and nothing is assigned."""
    state = read_checkpoint(GOLDEN / "sequential-adam")
    model = MODELS["nested"]()
    before = [array.tobytes() for array in model.get_weights()]
    with pytest.raises(RestoreError, match="does not fit the model"):
        restore.restore(model, state, optimizer=None)
    assert [array.tobytes() for array in model.get_weights()] == before


@pytest.mark.one_backend(trains=True)
def test_a_saved_model_gives_its_architecture_to_another_checkpoint():
    """`--model SAVED_MODEL` gives the architecture for a checkpoint of variables alone."""
    spec = str(GOLDEN / "saved-small-adam")
    model = build.build_model(spec, state=None, num_classes=3, image_size=None)
    restore.restore(model, read_checkpoint(GOLDEN / "saved-small-legacy-sgd"), optimizer=None)
    expected = EXPECTED["saved-small-legacy-sgd"]["predictions"]
    np.testing.assert_allclose(model.predict(IMAGES, verbose=0), expected, atol=5e-6)


@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
@pytest.mark.parametrize(
    "file", ["sequential-adam/ckpt.index", "sequential-adam/ckpt.data-00000-of-00001", "saved-small-adam/saved_model.pb",
             "saved-small-adam/keras_metadata.pb", "saved-small-adam/variables/variables.data-00000-of-00001"]
)  # fmt: skip
@pytest.mark.one_backend
def test_a_damaged_file_is_refused(tmp_path, file, damage):
    """A truncated, flipped or empty file is one clear error."""
    name = file.partition("/")[0]
    shutil.copytree(GOLDEN / name, tmp_path / name)
    broken = tmp_path / file
    data = bytearray(broken.read_bytes())
    if damage == "flip":
        place = len(data) // 2 if "data-0" in file else 4 if file.endswith(".index") else 0
        data[place] ^= 0x55
    broken.write_bytes(data[: len(data) // 2] if damage == "cut" else b"" if damage == "empty" else data)
    with pytest.raises(CheckpointError, match=r"truncated or damaged|damaged"):
        read_checkpoint(tmp_path / name)


def test_an_export_of_keras_3_gives_its_weights(tmp_path):
    """`model.export` of Keras 3 restores weights by their order; it has no layers and no optimizer."""
    model = MODELS["nested"]()
    model.compile("adam", "sparse_categorical_crossentropy")
    model.train_on_batch(IMAGES, LABELS)
    model.export(str(tmp_path / "export"), verbose=False)
    state = read_checkpoint(tmp_path / "export")
    assert (state.format, state.optimizer, state.architecture) == ("saved-model", None, None)
    other = MODELS["nested"]()
    restore.restore(other, state, optimizer=None)
    for one, two in zip(model.get_weights(), other.get_weights(), strict=True):
        assert one.tobytes() == two.tobytes()


@pytest.mark.one_backend
def test_a_folder_of_prefixes_without_an_index_is_listed(tmp_path):
    """A folder of prefixes without an index is an error that lists them; a prefix or the index chooses."""
    for name in ("ckpt-1", "ckpt-2"):
        for file in (GOLDEN / "sequential-adam").iterdir():
            shutil.copy(file, tmp_path / file.name.replace("ckpt", name))
    with pytest.raises(CheckpointError, match=r"2 checkpoints and no index, newest first: ckpt-\d .*--from .*ckpt-\d$"):
        read_checkpoint(tmp_path)
    assert read_checkpoint(tmp_path / "ckpt-1").step == 3
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "ckpt-2"\nall_model_checkpoint_paths: "ckpt-1"\n')
    assert read_checkpoint(tmp_path).step == 3


EXTENDED = [
    (
        "nested-sgd",
        {"model": "tests/helpers/golden_models.py:nested", "optimizer": "sgd"},
        "SGD: momentum=0.9, nesterov=False, no clipping assumed",
    ),
    ("saved-small-adam", {}, "5 weights, 12 optimizer"),
    ("../orbax-0.12.8-jax/nested-adam", {}, "step 3"),
]


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize(("name", "arguments", "words"), EXTENDED)
def test_training_goes_on_from_it(tmp_path, pictures, monkeypatch, capfd, name, arguments, words):
    """`train` extends the checkpoint at a new rate; the first snapshot holds the old slots."""
    if "orbax" in name:
        pytest.importorskip("orbax.checkpoint")
    monkeypatch.chdir(ROOT)
    options = {"pixels": "0-1", "classes": "circle,square,stripes", "data": [str(pictures / "old")], "batch_size": 8}
    options |= {"add": [str(pictures / "new")], "lr": 1e-3, "epochs": 1, "out": str(tmp_path / "run"), **arguments}
    train(from_arguments(str(GOLDEN / name), options), Reporter())
    assert words in " ".join(capfd.readouterr().err.split())
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["rate"]["peak"] == 1e-3
    assert record["iterations"] == record["base_step"] == 3
