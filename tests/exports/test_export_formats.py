"""Tests the other formats: conversion keeps training state bit for bit, and other runtimes agree."""

import json
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest

from kresume.checkpoints.read import read_checkpoint
from kresume.errors import CheckpointError, ExportError, MissingPackage, UsageError
from kresume.evaluation.served import Prediction
from kresume.exports import formats, tensorflow_process, training_state
from kresume.exports.export import export
from kresume.exports.job import Job
from kresume.exports.parity import compare
from kresume.exports.samples import gather_samples
from kresume.models.load import Subject, load
from kresume.reporter import Reporter
from tests.helpers.backends import few_under_jax
from tests.helpers.pictures import CLASSES
from tests.helpers.runs import assert_same_bytes

pytestmark = pytest.mark.optimized_graphs

SIZE = 12
WRITTEN: dict[tuple[bool, str], bytes] = {}
"""The files that `trained` has written."""


def trained(path: Path, pictures: np.ndarray, *, ema: bool = False, policy: str = "float32") -> Path:
    """Writes a foreign `.keras` file after a few steps of Keras's fit.

    It has a schedule, dropout and batch statistics. The same file is trained once, on the pictures of `images`.
    """
    if (ema, policy) in WRITTEN:
        path.write_bytes(WRITTEN[ema, policy])
        return path
    keras.utils.set_random_seed(3)
    layers = keras.layers
    inputs = keras.Input((SIZE, SIZE, 3))
    x = layers.Normalization(mean=(120.0, 118.0, 121.0), variance=(4000.0, 4100.0, 3900.0))(
        inputs
    )  # tensors that are no variables
    x = layers.Conv2D(4, 3, strides=2, activation="gelu", dtype=policy)(x)
    x = layers.BatchNormalization(dtype=policy)(x)
    x = layers.Dropout(0.3)(layers.Flatten()(x))
    model = keras.Model(inputs, layers.Dense(3, activation="softmax", dtype="float32")(x))
    rate = 0.02 if ema else keras.optimizers.schedules.CosineDecay(0.02, 50)
    model.compile(keras.optimizers.Adam(rate, use_ema=ema, ema_momentum=0.8), "sparse_categorical_crossentropy")
    if ema:
        model.optimizer.finalize_variable_values = lambda variables: None  # else fit ends with the averages as weights
    labels = np.arange(len(pictures)) % 3
    model.fit(pictures.astype(np.float32), labels, batch_size=8, epochs=2, verbose=0)
    if ema:
        del model.optimizer.finalize_variable_values
    model.save(path)
    WRITTEN[ema, policy] = path.read_bytes()
    return path


@pytest.fixture(scope="module")
def images():
    """Returns 24 pictures, `(24, 12, 12, 3) uint8`, of three classes in turn."""
    from tests.helpers.pictures import draw

    return np.stack([draw(CLASSES[index % 3], index, SIZE) for index in range(24)])


def writable(name: str, checkpoint: Path, folder: Path, **options) -> Path:
    """Writes a format as the exporter does, without running its runtime; used to chain conversions."""
    folder.mkdir()
    job = Job(format=name, **options)
    if formats.EXPORTERS[name].needs_tensorflow and keras.config.backend() != "tensorflow":
        tensorflow_process.write_by_tensorflow(Subject(str(checkpoint)), folder, job, anonymous=True)
    else:
        formats.EXPORTERS[name].write(load(Subject(str(checkpoint)), anonymous=True), folder, job)
    return folder


def test_a_training_goes_through_the_formats_bit_for_bit(tmp_path, images):
    """.keras -> tf.train.Checkpoint -> .keras keeps the bytes of weights, slots, iterations and step.

    So does .weights.h5.
    """
    first = trained(tmp_path / "first.keras", images)
    result = export(first, tmp_path / "tf", format="tf-checkpoint")  # loaded by plain Keras, every variable compared
    assert result.parity.max_difference < 1e-5
    assert result.record["step"] == 6
    back = writable("keras", tmp_path / "tf", tmp_path / "back")
    before, after = read_checkpoint(first), read_checkpoint(back / "model.keras")
    drop = "seed_generator"
    arrays = {name: array for name, array in before.arrays.items() if drop not in name}
    found = {name: array for name, array in after.arrays.items() if drop not in name}
    # The count of iterations is int64 under TensorFlow and int32 under JAX; only its value must stay the same.
    assert int(arrays.pop("optimizer/vars/0")) == int(found.pop("optimizer/vars/0")) == 6
    assert_same_bytes(arrays, found)
    assert after.step == before.step == 6
    assert after.rate.schedule["class_name"] == "CosineDecay"
    weights = writable("weights-h5", tmp_path / "tf", tmp_path / "h5") / "model.weights.h5"
    stored: dict[str, np.ndarray] = {}
    with h5py.File(weights) as file:
        file.visititems(lambda name, item: stored.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
    stored = {name: array for name, array in stored.items() if drop not in name}
    assert int(stored.pop("optimizer/vars/0")) == 6
    assert_same_bytes(arrays, stored)


LOSSES = {
    "label smoothing": (keras.losses.CategoricalCrossentropy(label_smoothing=0.1), None),
    "focal": (keras.losses.CategoricalFocalCrossentropy(alpha=0.4, gamma=1.5), None),
    "a name": ("sparse_categorical_crossentropy", None),
    "weighed": (keras.losses.SparseCategoricalCrossentropy(ignore_class=0), [0.5]),
    "no cross-entropy": (keras.losses.MeanSquaredError(), None),
}


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize("name", ["keras", "tf-checkpoint", "weights-h5"])
@pytest.mark.parametrize("case", LOSSES)
def test_a_training_format_holds_the_loss(tmp_path, name, case):
    """Training goes on with the checkpoint's loss, its settings and its weight, from each of the formats."""
    loss, weight = LOSSES[case]
    layers = [keras.layers.Rescaling(1 / 255), keras.layers.Flatten(), keras.layers.Dense(3, activation="softmax")]
    model = keras.Sequential([keras.Input((4, 4, 3)), *layers])
    model.compile(keras.optimizers.SGD(0.01), loss, loss_weights=weight)
    model.optimizer.build(model.trainable_variables)
    model.save(tmp_path / "first.keras")
    folder = writable(name, tmp_path / "first.keras", tmp_path / "out")
    before, after = (load(Subject(str(path), classes=CLASSES)).loss for path in (tmp_path / "first.keras", folder))
    assert after.as_dict() == before.as_dict()
    made = [each.keras_loss() for each in (before, after)]
    assert type(made[0]) is type(made[1])
    assert made[0].get_config() == made[1].get_config()


def test_averages_stay_where_training_left_them(tmp_path, images):
    """A checkpoint with EMA is converted raw, with its averages as optimizer variables; scores use them."""
    first = trained(tmp_path / "first.keras", images, ema=True)
    back = writable("keras", first, tmp_path / "back")
    assert_same_bytes(dict(read_checkpoint(first).arrays), dict(read_checkpoint(back / "model.keras").arrays))
    loaded = load(Subject(str(first), classes=CLASSES))
    assert loaded.averages
    raw = keras.saving.load_model(first)
    values = images[:4].astype(np.float32)
    averaged = np.asarray(loaded.model.predict_on_batch(values))
    assert np.abs(averaged - np.asarray(raw.predict_on_batch(values))).max() > 1e-4
    for weight, average in zip(raw.trainable_variables, raw.optimizer._model_variables_moving_average, strict=True):
        weight.assign(np.array(average.value))
    np.testing.assert_allclose(averaged, np.asarray(raw.predict_on_batch(values)), atol=1e-6)


@pytest.mark.parametrize("name", few_under_jax(["keras", "weights-h5", "tf-checkpoint"], ["keras"]))
def test_a_checkpoint_with_averages_is_verified_on_its_raw_weights(tmp_path, images, name):
    """The scores of the averages were compared with those of the raw weights, and a right export was refused."""
    first = trained(tmp_path / "first.keras", images, ema=True)
    made = export(first, tmp_path / "out", format=name, classes=CLASSES)
    assert made.parity.holds
    assert made.record["source"]["averages"] is False
    assert made.record["weights"] == "raw; the averages are among the optimizer's variables"


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize("name", ["keras", "weights-h5", "tf-checkpoint"])
def test_an_adapted_normalisation_is_in_each_format(tmp_path, capsys, name):
    """Its mean and variance are; the reader of a TensorFlow checkpoint is told what plain Keras has to call then."""
    normal = keras.layers.Normalization()
    normal.adapt(np.random.default_rng(0).normal(90.0, 40.0, (64, 12, 12, 3)))
    layers = [normal, keras.layers.Flatten(), keras.layers.Dense(3, activation="softmax")]
    keras.Sequential([keras.Input((12, 12, 3)), *layers]).save(tmp_path / "normal.keras")
    export(tmp_path / "normal.keras", tmp_path / "out", format=name, reporter=Reporter())
    assert ("call `finalize_state()` of the layer normalization" in capsys.readouterr().err) == (
        name == "tf-checkpoint"
    )


@pytest.mark.one_backend(trains=True)
def test_an_unnamed_optimizer_is_asked_for(tmp_path, images):
    """A checkpoint that does not name its optimizer is an error that names those that fit."""
    first = trained(tmp_path / "first.keras", images)
    folder = writable("tf-checkpoint", first, tmp_path / "tf")
    (folder / "optimizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"does not name its optimizer: give optimizer='NAME' .*adam"):
        export(folder, tmp_path / "out", format="keras")
    assert not (tmp_path / "out").exists()
    with pytest.raises(UsageError, match="is Adam; leave the option out, or give sgd:reset"):
        export(first, tmp_path / "out", format="keras", optimizer="sgd")


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize(("asked", "rate"), [("adamw:reset", 0.02), ("sgd:reset", 0.01)])
def test_an_optimizer_may_begin_fresh(tmp_path, images, asked, rate):
    """`NAME:reset` keeps the bytes of the weights and drops step and slots, as in `train`.

    The rate keeps its meaning.
    """
    first = trained(tmp_path / "first.keras", images)
    export(first, tmp_path / "out", format="keras", optimizer=asked)
    model, before = keras.saving.load_model(tmp_path / "out" / "model.keras"), keras.saving.load_model(first)
    for one, other in zip(model.weights, before.weights, strict=True):
        assert np.asarray(one.value).tobytes() == np.asarray(other.value).tobytes()
    assert type(model.optimizer).__name__.lower() == asked.partition(":")[0]
    assert float(model.optimizer.learning_rate) == pytest.approx(rate)
    slots = [np.asarray(variable.value) for variable in model.optimizer.variables if variable.path.count("/") > 1]
    assert int(model.optimizer.iterations) == 0
    assert all(not slot.any() for slot in slots)


@pytest.mark.one_backend(trains=True)
def test_a_fresh_optimizer_needs_no_name_of_the_old_one(tmp_path, images):
    """A fresh optimizer needs no name of the old one, as the error says.

    Options without meaning are refused as in `train`.
    """
    folder = writable("tf-checkpoint", trained(tmp_path / "first.keras", images), tmp_path / "tf")
    (folder / "optimizer.json").unlink()
    back = writable("keras", folder, tmp_path / "back", optimizer="adamw:reset")
    assert type(keras.saving.load_model(back / "model.keras").optimizer) is keras.optimizers.AdamW
    for wrong, words in (
        ("keep:reset", "contradicts itself"),
        ("adam:fresh", "give keep, NAME, NAME:keep or NAME:reset"),
    ):
        with pytest.raises(UsageError, match=words):
            writable("weights-h5", folder, tmp_path / wrong, optimizer=wrong)


@pytest.mark.parametrize(("name", "options", "limit"), [("onnx", {}, 1e-5), ("litert", {"quantize": "float16"}, 1e-2)])
def test_other_runtimes_answer_as_the_model(tmp_path, images, pictures, name, options, limit):
    """onnxruntime and LiteRT give the model's scores on pictures; the loss of accuracy is stated."""
    first = trained(tmp_path / "first.keras", images)
    result = export(first, tmp_path / "out", format=name, classes=CLASSES, data=pictures / "val", **options)
    assert result.parity.max_difference < limit
    assert result.parity.agreement == 1.0
    assert result.parity.accuracy is not None
    assert "(the same)" in str(result)
    assert (tmp_path / "out" / "labels.txt").read_text().split() == list(CLASSES)
    record = json.loads((tmp_path / "out" / "export.json").read_text())
    assert record["input"]["shape"] == [None, SIZE, SIZE, 3]
    assert record["file"] in record["files"]


def test_mixed_precision_is_served_in_its_own_numbers(tmp_path, images):
    """A mixed_bfloat16 model's SavedModel gives float32 scores within bfloat16's precision."""
    import tensorflow as tf

    first = trained(tmp_path / "first.keras", images, policy="mixed_bfloat16")
    np.save(tmp_path / "pictures.npy", images[:1])
    from PIL import Image

    Image.fromarray(images[0]).save(tmp_path / "0.png")
    options = {"files": (str(tmp_path / "0.png"),), "pictures": str(tmp_path / "pictures.npy")}
    folder = writable("saved-model", first, tmp_path / "served", **options)
    model = tf.saved_model.load(str(folder))
    got = model.signatures["predict_images"](images=tf.constant(images))["scores"].numpy()
    expected = np.asarray(keras.saving.load_model(first).predict_on_batch(images.astype(np.float32)))
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, atol=3e-2)


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize(
    ("name", "policy"), [("litert", "mixed_bfloat16"), ("litert", "mixed_float16"), ("onnx", "mixed_bfloat16")]
)
@pytest.mark.sample("litert-mixed_float16", "onnx-mixed_bfloat16")
def test_a_model_trained_in_16_bits_is_written_in_32(tmp_path, images, name, policy):
    """Their runtimes have no 16-bit layers: the file gives what a float32 model of plain Keras with these weights gives."""
    first = trained(tmp_path / "first.keras", images, policy=policy)
    short = keras.saving.load_model(first)
    plain = keras.saving.load_model(trained(tmp_path / "plain.keras", images))
    plain.set_weights(short.get_weights())
    folder = writable(name, first, tmp_path / "out")
    with gather_samples(load(Subject(str(first)), anonymous=True), [], Reporter(quiet=True), limit=8) as samples:
        facts = {"file": next(path.name for path in folder.iterdir() if path.stem == "model")}
        found = formats.EXPORTERS[name].predict(folder, facts, samples)
        pictures = np.load(samples.folder / "pictures.npy").astype(np.float32)
    np.testing.assert_allclose(found.scores, plain.predict_on_batch(pictures), atol=1e-5)


@pytest.mark.one_backend(trains=True)
def test_parity_counts_what_tolerance_does_not_explain(tmp_path, images, quiet):
    """Two nearly equal classes may be exchanged; a clear prediction may not; an unread picture fails."""
    loaded = load(Subject(str(trained(tmp_path / "first.keras", images)), classes=CLASSES))
    with gather_samples(loaded, [], quiet, limit=8) as samples:
        scores = samples.reference
        same = compare(Prediction(scores, scores.argmax(axis=-1)), samples, 1e-4)
        assert same.holds
        assert same.max_difference == 0
        assert same.accuracy is None
        assert "generated" in same.of
        other = compare(Prediction(scores, (scores.argmax(axis=-1) + 1) % 3), samples, 1e-4)
        assert other.clear_disagreements == 8
        assert not other.holds
        unread = compare(Prediction(scores, scores.argmax(axis=-1), {0: "broken"}), samples, 1e-4)
        assert not unread.holds
        folder = samples.folder
    assert not folder.exists()


@pytest.mark.one_backend(trains=True)
def test_a_damaged_export_is_noticed(tmp_path, images, quiet):
    """A changed weight in an export is an error: plain Keras reads every variable back."""
    loaded = load(Subject(str(trained(tmp_path / "first.keras", images)), classes=CLASSES))
    (tmp_path / "out").mkdir()
    facts = formats.EXPORTERS["weights-h5"].write(loaded, tmp_path / "out", Job(format="weights-h5"))
    with h5py.File(tmp_path / "out" / facts["file"], "r+") as file:
        file["layers/dense/vars/0"][0, 0] += 1
    with (
        gather_samples(loaded, [], quiet, limit=4) as samples,
        pytest.raises(ExportError, match="the weights that plain Keras reads back differ from those of the checkpoint"),
    ):
        formats.EXPORTERS["weights-h5"].predict(tmp_path / "out", facts, samples)


@pytest.mark.one_backend
def test_a_missing_package_is_named(monkeypatch):
    """A missing package is an error with the pip command of the extra."""
    monkeypatch.setattr(formats.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingPackage, match=r"pip install 'kresume\[onnx\]'"):
        formats.find_exporter("onnx")
    with pytest.raises(UsageError, match="--format pickle: use saved-model"):
        formats.find_exporter("pickle")


@pytest.mark.one_backend
def test_the_digest_ignores_the_width_of_counters():
    """int32 and int64 counters of the same value have the same digest; other values or floats do not."""

    class Variable:
        def __init__(self, value, path="x/iterations"):
            self.value, self.path = value, path

    one = training_state.digest([Variable(np.int32(6))])
    assert one == training_state.digest([Variable(np.int64(6))])
    assert one != training_state.digest([Variable(np.int64(7))])
    assert one == training_state.digest([Variable(np.int32(6)), Variable(np.uint32(1), "x/seed_generator_state")])
