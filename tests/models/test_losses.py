"""Tests losses: the checkpoint's own continues, and outputs are read from the model.

A line names what is not used.
"""

import json
import re
import shutil
import zipfile

import h5py
import keras
import numpy as np
import pytest
from keras import layers, losses, ops
from PIL import Image

from kresume import runs
from kresume.errors import ImagesError, ModelError, UsageError
from kresume.evaluation.evaluate import evaluate
from kresume.evaluation.served import Prediction
from kresume.exports.export import export
from kresume.exports.parity import compare
from kresume.exports.samples import gather_samples
from kresume.models.load import Subject, load
from kresume.models.losses import choose_loss, from_record, unused_metrics
from kresume.models.outputs import output_count, read_outputs
from kresume.models.own_code import OwnCode
from kresume.options.resolve import from_arguments
from kresume.options.table import TrainConfig
from kresume.training.adjust import rebuild
from kresume.training.preview import make_plan
from kresume.values.loss import Loss
from tests.helpers.backends import few_under_jax
from tests.helpers.pictures import CLASSES, photo
from tests.helpers.reporters import Warned
from tests.helpers.runs import kill_at_every_snapshot, run_training

SIDE = 6
PLAIN = {"interpolation": "area", "augment": "none"}


def head(*last, count=3, front=()):
    """Builds a small model with these layers after its Dense layer, far from uniform outputs."""
    dense = layers.Dense(count, **(last[0] if last and isinstance(last[0], dict) else {}))
    rest = last[1:] if last and isinstance(last[0], dict) else last
    model = keras.Sequential([keras.Input((SIDE, SIDE, 3)), *front, layers.Flatten(), dense, *rest])
    random = np.random.default_rng(3)
    for weight in dense.weights:
        weight.assign(random.normal(0, 0.15, weight.shape))
    return model


def functional(wrap, count=3):
    """Builds the same as a functional model, with `wrap` around the outputs of a Dense layer."""
    inputs = keras.Input((SIDE, SIDE, 3))
    return keras.Model(inputs, wrap(layers.Dense(count)(layers.Flatten()(inputs))))


def mine(values):
    """Computes an activation of the user's own."""
    return ops.softmax(values)


def nested(activation):
    inner = keras.Sequential([keras.Input((3,)), layers.Activation(activation), layers.Dropout(0.5)])
    return functional(lambda values: layers.Reshape((3,))(inner(values)))


ENDS = {
    "softmax in Dense": (lambda: head({"activation": "softmax"}), "probabilities"),
    "softmax as a layer": (lambda: head(layers.Softmax()), "probabilities"),
    "softmax as an Activation": (lambda: head(layers.Activation("softmax")), "probabilities"),
    "softmax as a layer in Dense": (lambda: head({"activation": layers.Softmax()}), "probabilities"),
    "softmax behind a nested model": (lambda: nested("softmax"), "probabilities"),
    "softmax before a cast": (lambda: head(layers.Softmax(), layers.Activation("linear", dtype="float32")), "probabilities"),
    "softmax as an operation": (lambda: functional(lambda x: ops.cast(ops.softmax(x), "float32")), "probabilities"),
    "softmax of the user's own": (lambda: head({"activation": mine}), "probabilities"),
    "softmax per pixel, averaged": (
        lambda: keras.Sequential(
            [keras.Input((SIDE, SIDE, 3)), layers.Conv2D(3, 1, activation="softmax"), layers.GlobalAveragePooling2D()]
        ),
        "probabilities",
    ),
    "sigmoid": (lambda: head({"activation": "sigmoid"}, count=1), "probabilities"),
    "sigmoid of the user's own": (lambda: head({"activation": ops.sigmoid}, count=1), "probabilities"),
    "linear": (head, "logits"),
    "linear behind a nested model": (lambda: nested("linear"), "logits"),
    "linear of the user's own": (lambda: head({"activation": lambda x: 2 * x}), "logits"),
    "log softmax": (lambda: head({"activation": "log_softmax"}), "logits"),
    "relu": (lambda: head({"activation": "relu"}), None),
}  # fmt: skip


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize("end", ENDS)
def test_outputs_are_read_from_the_model(end):
    """Outputs are read from the last activation, through any wrapper; one without a name is measured."""
    make, expected = ENDS[end]
    assert read_outputs(make()).are == expected


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (
            lambda x: {"probs": x},
            r"a dictionary with the key 'probs', .*keras.Model\(model.inputs, model.outputs\[0\]\)",
        ),
        (layers.Reshape((1, 1, 3)), r"of the shape \(None, 1, 1, 3\), .*keras.layers.Flatten\(\)\(model"),
        (
            lambda x: ops.squeeze(x[:, :1], -1),
            r"of the shape \(None,\), .*keras.layers.Reshape\(\(1,\)\)\(model.outputs",
        ),
        (lambda x: {"a": x, "b": x}, r"has 2 outputs; .*use kresume.BackupAndRestore in your own fit"),
        (lambda x: [x, layers.Dense(2)(x)], r"has 2 outputs; .*use kresume.BackupAndRestore in your own fit"),
        (lambda x: [x], None),
    ],
)
def test_outputs_that_are_no_row_of_numbers_are_refused_with_the_way_on(wrap, message):
    """One output in a list is one; the way that the error names gives a model that is taken."""
    model = functional(wrap)
    if message is None:
        assert output_count(model) == 3
        return
    with pytest.raises(ModelError, match=message) as caught:
        output_count(model)
    if found := re.search(r"keras\.Model\(.*\), for example|keras\.Model\(.*?\) for example", str(caught.value)):
        way = found[0].removesuffix(" for example").removesuffix(",")
        assert output_count(eval(way, {"keras": keras, "model": model})) in {1, 3}


def plain_loss(scores, labels, kind):
    """Computes the cross-entropy of probabilities by numpy."""
    if kind == "binary":
        right = np.where(labels == 1, scores[:, 0], 1 - scores[:, 0])
        return -np.log(right).mean()
    return -np.log(scores[np.arange(len(labels)), labels]).mean()


OBJECTS = {
    "sparse": losses.SparseCategoricalCrossentropy,
    "categorical": losses.CategoricalCrossentropy,
    "binary": losses.BinaryCrossentropy,
}


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize("kind", OBJECTS)
@pytest.mark.parametrize("said", [True, False])
@pytest.mark.parametrize("probabilities", [True, False])
def test_from_logits_follows_the_last_activation(kind, said, probabilities):
    """The loss equals numpy's for the model's probabilities, and a wrong `from_logits` is reported."""
    count, activation = (1, "sigmoid") if kind == "binary" else (3, "softmax")
    model = head({"activation": activation if probabilities else None}, count=count)
    model.compile("adam", OBJECTS[kind](from_logits=said))
    images = np.random.default_rng(0).random((4, SIDE, SIDE, 3)).astype("float32")
    labels = np.array([0, 1, 1, 0])
    given = np.asarray(model.predict_on_batch(images), np.float64)
    shares = given if probabilities else 1 / (1 + np.exp(-given))
    if kind != "binary" and not probabilities:
        shares = np.exp(given) / np.exp(given).sum(axis=1, keepdims=True)
    for choice in (choose_loss(model), choose_loss(model, saved=model.get_compile_config())):
        wanted = np.eye(3, dtype="float32")[labels] if choice.form == "rows" else labels
        value = float(choice.keras_loss()(wanted, given.astype("float32")))
        assert value == pytest.approx(plain_loss(shares, labels, kind), rel=1e-4)
        assert choice.from_logits is not probabilities
        assert bool(choice.note) is (said == probabilities)
        if choice.note:
            end = activation if probabilities else "linear"
            assert f"from_logits={said}" in choice.note
            assert f"last activation is {end}" in choice.note


def distance(labels, outputs):
    """Computes a loss of the user's own that compares one output with the label."""
    return ops.mean(ops.square(ops.cast(ops.reshape(labels, (-1, 1)), outputs.dtype) - outputs), axis=-1)


def of_logits(labels, outputs):
    """Computes a loss of the user's own that reads one output as a logit."""
    return ops.mean(ops.softplus((1 - 2 * ops.cast(ops.reshape(labels, (-1, 1)), outputs.dtype)) * outputs), axis=-1)


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize(
    ("loss", "activation", "cut"),
    [
        *((loss, None, 0.5) for loss in ("mse", "mean_absolute_error", "huber", "log_cosh", "msle", distance)),
        *((loss, "relu", 0.5) for loss in ("mse", distance)),
        *((loss, "sigmoid", 0.5) for loss in ("mse", "binary_crossentropy", "hinge", distance, of_logits)),
        *((loss, None, 0.0) for loss in ("hinge", "squared_hinge", "binary_crossentropy", of_logits)),
        ("hinge", "tanh", 0.0),
        ("mse", "tanh", None),
        (distance, "tanh", None),
    ],
)
def test_one_output_means_the_second_class_above_the_number_that_its_loss_sets(loss, activation, cut):
    """A squared error trains a linear output to be 0 or 1, a hinge to be below or above 0; training and scores agree."""
    model = head({"activation": activation}, count=1)
    model.compile("sgd", loss)
    code = OwnCode({"distance": distance, "of_logits": of_logits}, "m.py:build")
    if cut is None:
        with pytest.raises(UsageError, match=r"0 and 1 or -1 and 1 is unknown\. Give --loss binary_crossentropy"):
            choose_loss(model, saved=model.get_compile_config(), code=code)
        return
    for choice in (choose_loss(model, code=code), choose_loss(model, saved=model.get_compile_config(), code=code)):
        outputs = np.array([[cut - 5], [cut - 0.01], [cut + 0.01], [cut + 5]])
        shares = choice.head.probabilities(outputs)
        assert choice.head.task.answers(shares).tolist() == [0, 0, 1, 1]
        assert 0 <= shares.min() <= shares.max() <= 1
        np.testing.assert_allclose(
            np.asarray(choice.head.graph_probabilities(outputs.astype("float32"))), shares, atol=1e-6
        )
        metric = choice.keras_metrics()[0]
        assert float(metric(np.array([[0], [0], [1], [1]]), outputs)) == 1.0
        assert ("above 0.5 it means the second class" in choice.note) is (cut == 0.5 and activation != "sigmoid")


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize(("activation", "count"), [(None, 1), ("tanh", 1), ("sigmoid", 1), (None, 3), ("softmax", 3)])
def test_without_its_loss_a_model_with_one_output_says_how_it_is_read(activation, count):
    """A score needs no loss, but one unbounded output means what its loss makes it mean: at 0 or at 0.5."""
    model = head({"activation": activation}, count=count)
    model.compile("sgd", distance)
    choice = choose_loss(model, saved=model.get_compile_config(), trains=False)
    assert "distance" in choice.lost
    said = "distance" in choice.note and "read as a logit: above 0 it means the second class" in choice.note
    assert said is (count == 1 and activation != "sigmoid")


@pytest.mark.one_backend(trains=True)
def test_binary_crossentropy_over_a_softmax_trains_rows_of_0_and_1():
    """Outputs that add up to 1 are no independent questions: one class per image, as tutorials have it for two outputs."""
    for count, settings in ((2, {}), (3, {"label_smoothing": 0.1})):
        model = head({"activation": "softmax"}, count=count)
        model.compile("sgd", losses.BinaryCrossentropy(**settings))
        labels = np.array([0, 1, 1, count - 1])
        outputs = np.random.default_rng(0).dirichlet(np.ones(count), 4).astype("float32")
        for choice in (choose_loss(model), choose_loss(model, saved=model.get_compile_config())):
            assert (choice.form, choice.from_logits) == ("rows", False)
            wanted = choice.head.task.targets(labels, choice.form, count)
            assert float(choice.keras_loss()(wanted, outputs)) == float(model.loss(np.eye(count)[labels], outputs))
            assert from_record(Loss.from_dict(choice.as_dict()), OwnCode()).form == "rows"


@pytest.fixture(scope="module")
def slip(tmp_path_factory):
    """Writes a model that ends in a softmax but was compiled with `from_logits=True`.

    Returns the folder with m.keras and m.h5, and the model.
    """
    folder = tmp_path_factory.mktemp("slip")
    model = head({"activation": "softmax"}, front=(layers.Rescaling(1 / 255),))
    model.compile(keras.optimizers.SGD(1e-9), losses.SparseCategoricalCrossentropy(from_logits=True))
    model.optimizer.build(model.trainable_variables)
    model.save(folder / "m.keras")
    model.save(folder / "m.h5")
    return folder, model


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Writes `old/` with 8 and `val/` with 2 pictures of each class, no two alike.

    So all of them are trained on, or scored.
    """
    folder = tmp_path_factory.mktemp("photos")
    for name, count, first in (("old", 8, 0), ("val", 2, 100)):
        for place, label in enumerate(CLASSES):
            (folder / name / label).mkdir(parents=True)
            for index in range(count):
                seed = first + 10 * place + index
                Image.fromarray(photo(seed)).save(folder / name / label / f"{seed}.png")
    return folder


@pytest.fixture(scope="module")
def images(pictures):
    """Returns the old pictures as plain Keras reads them, `(24, 6, 6, 3)`, and labels."""
    data = keras.utils.image_dataset_from_directory(
        pictures / "old", image_size=(SIDE, SIDE), interpolation="area", batch_size=24, shuffle=False, verbose=False
    )
    values, labels = next(iter(data))
    return np.asarray(values), np.asarray(labels)


SLIP = r"from_logits=True, but the model gives probabilities: its last activation is softmax"


@pytest.mark.parametrize("name", ["m.keras", "m.h5"])
def test_a_slip_in_from_logits_changes_no_score(slip, images, pictures, quiet, name):
    """A wrong `from_logits` changes no score: `eval` and `plan` give numpy's loss and name the correction."""
    folder, model = slip
    values, labels = images
    expected = plain_loss(np.asarray(model.predict_on_batch(values), np.float64), labels, "sparse")
    path = str(folder / name)
    evaluation = evaluate(path, pictures / "old")
    assert evaluation.scores["all"]["loss"] == pytest.approx(expected, rel=1e-3)
    assert "from_logits=True" in evaluation.note
    given = {"val": [str(pictures / "old")], "data": [str(pictures / "val")], "lr": 1e-9, **PLAIN}
    plan = make_plan(from_arguments(path, given), quiet)
    assert plan.before["all"]["loss"] == pytest.approx(expected, rel=1e-3)
    assert [note for note in plan.notes if "from_logits=True" in note]
    assert plan.loss == "sparse_categorical_crossentropy (the checkpoint's)"


def one_epoch_that_changes_nothing(pictures):
    """Returns options of a run at a rate near 0, so that it reports the loss of the checkpoint."""
    return {
        "val": [str(pictures / "val")],
        "data": [str(pictures / "old")],
        "lr": 1e-9,
        "epochs": 1,
        "batch_size": 24,
        **PLAIN,
    }


def test_a_slip_in_from_logits_trains_and_extends_alike(slip, images, pictures, tmp_path):
    """Training with a wrong `from_logits` reports numpy's loss; its child has nothing to correct."""
    folder, model = slip
    values, labels = images
    expected = plain_loss(np.asarray(model.predict_on_batch(values), np.float64), labels, "sparse")
    given = one_epoch_that_changes_nothing(pictures)
    result = run_training(str(folder / "m.keras"), out=str(tmp_path / "run"), **given)
    line = runs.read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]
    assert line["loss"] == pytest.approx(expected, rel=1e-3)
    assert not load(Subject(result.run)).loss.note


@pytest.mark.one_backend(trains=True)
def test_a_served_score_is_the_models_own(slip, images, pictures, tmp_path):
    """A SavedModel of that model gives plain Keras's predictions, without a second softmax."""
    folder, model = slip
    result = export(folder / "m.keras", tmp_path / "served", classes=CLASSES, data=[str(pictures / "old")])
    assert result.parity.own_difference < 1e-5
    record = json.loads((tmp_path / "served" / "1" / "export.json").read_text())
    assert record["parity"]["own_difference"] < 1e-5
    import tensorflow as tf

    served = tf.saved_model.load(str(tmp_path / "served" / "1")).signatures["predict_images"]
    values, _ = images
    got = served(images=tf.constant(values.astype("uint8")))["scores"].numpy()
    np.testing.assert_allclose(got, np.asarray(model.predict_on_batch(values.astype("uint8"))), atol=1e-5)


@pytest.mark.one_backend(trains=True)
def test_a_wrong_reading_of_the_outputs_is_no_verified_export(slip, quiet):
    """An export that agrees with our reading but not with the model's outputs fails parity."""
    folder, _ = slip
    loaded = load(Subject(str(folder / "m.keras"), classes=CLASSES))
    with gather_samples(loaded, [], quiet, limit=8) as samples:
        again = np.exp(samples.reference) / np.exp(samples.reference).sum(axis=1, keepdims=True)
        object.__setattr__(samples, "reference", again)  # simulates a wrong reading
        parity = compare(Prediction(again, again.argmax(axis=-1)), samples, 1e-4)
    assert parity.max_difference == 0
    assert parity.own_difference > 0.1
    assert not parity.holds


# --- the checkpoint's own loss ----------------------------------------------------------------------------------------

OWN = """
import keras
from keras import ops

def focal(labels, scores):
    return -ops.sum(labels * (1 - scores) ** 2 * ops.log(scores + 1e-7), axis=-1)

def sparse_focal(labels, scores):
    return focal(ops.one_hot(ops.reshape(ops.cast(labels, "int32"), (-1,)), 3), scores)

def focal_of(gamma):
    def loss(labels, scores):
        return -ops.sum(labels * (1 - scores) ** gamma * ops.log(scores + 1e-7), axis=-1)
    return loss

@keras.saving.register_keras_serializable("own")
class Focal(keras.losses.Loss):
    def __init__(self, gamma=1.0, **options):
        super().__init__(**options)
        self.gamma = gamma

    def call(self, labels, scores):
        return -ops.sum(labels * (1 - scores) ** self.gamma * ops.log(scores + 1e-7), axis=-1)

    def get_config(self):
        return {**super().get_config(), "gamma": self.gamma}

def network():
    return keras.Sequential([keras.Input((6, 6, 3)), keras.layers.Rescaling(1 / 255), keras.layers.Flatten(),
                             keras.layers.Dense(3, activation="softmax")])

def compiled():
    model = network()
    model.compile("sgd", focal_of(3.0))
    return model
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    """Writes a file with a user's own losses; returns its path and its definitions."""
    path = tmp_path_factory.mktemp("own") / "own.py"
    path.write_text(OWN)
    space: dict = {"__name__": "own"}
    exec(OWN, space)
    return path, space


LOSSES = {
    "own function": lambda own: own["focal"],
    "own function of indices": lambda own: own["sparse_focal"],
    "own class": lambda own: own["Focal"](gamma=1.5),
    "closure": lambda own: own["focal_of"](3.0),
    "focal of Keras": lambda own: losses.CategoricalFocalCrossentropy(alpha=[0.1, 0.5, 0.4], gamma=1.0),
    "ignored class": lambda own: losses.SparseCategoricalCrossentropy(ignore_class=1),
    "smoothing": lambda own: losses.CategoricalCrossentropy(label_smoothing=0.2),
    "sum": lambda own: losses.SparseCategoricalCrossentropy(reduction="sum"),
    "by a short name": lambda own: "mse",
    "function of Keras": lambda own: losses.kl_divergence,
    "weighted": lambda own: "sparse_categorical_crossentropy",
}
INDICES = {"own function of indices", "ignored class", "sum", "weighted"}


@pytest.mark.parametrize("name", few_under_jax(LOSSES, ["closure", "weighted"]))
@pytest.mark.sample("closure", "weighted", "focal of Keras", "ignored class", "own function of indices")
def test_the_checkpoints_own_loss_trains_on(name, script, images, pictures, tmp_path):
    """A run reports the loss of the checkpoint's model in plain Keras on the same images."""
    path, own = script
    values, labels = images
    model = own["network"]()
    model.compile(keras.optimizers.SGD(1e-9), LOSSES[name](own), loss_weights=2.5 if name == "weighted" else None)
    model.optimizer.build(model.trainable_variables)
    model.save(tmp_path / "m.keras")
    wanted = labels if name in INDICES else np.eye(3, dtype="float32")[labels]
    expected = float(model.evaluate(values, wanted, batch_size=24, verbose=0))
    given = one_epoch_that_changes_nothing(pictures)
    if name == "closure":
        given["model"] = f"{path}:compiled"
    elif name.startswith("own"):
        given["imports"] = [str(path)]
    result = run_training(str(tmp_path / "m.keras"), out=str(tmp_path / "run"), classes=",".join(CLASSES), **given)
    line = runs.read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]
    assert line["loss"] == pytest.approx(expected, rel=1e-3)
    # Another process makes the same loss from the record, and a child run continues with it.
    run = runs.open_run(result.run)
    scores = np.asarray(model.predict_on_batch(values))
    again = rebuild(run, TrainConfig(**run.record.as_dict()["options"])).loss
    one, other = (
        ops.mean(each(wanted, scores)) for each in (again, choose_loss(model, code=code_of(script)).keras_loss())
    )
    assert float(one) == float(other)
    child = load(Subject(result.run)).loss
    assert (child.kind, child.labels, child.weight, child.lost) == (
        run.record.as_dict()["loss"]["kind"],
        run.record.as_dict()["loss"]["labels"],
        run.record.as_dict()["loss"]["weight"],
        "",
    )


def code_of(script):
    path, own = script
    return OwnCode({name: own[name] for name in ("focal", "sparse_focal", "Focal")}, f"{path}:compiled")


def test_a_run_with_a_closure_as_its_loss_continues_bit_for_bit(script, pictures, tmp_path):
    """A run whose loss is a closure continues bit for bit: each process calls the user's function."""
    given = {"data": [str(pictures / "old")], "epochs": 1, "batch_size": 8, "val_split": 0.25, "pixels": "0-255"}
    kill_at_every_snapshot(tmp_path, places=[1], model=f"{script[0]}:compiled", **given)
    record = runs.open_run(tmp_path / "whole").record.as_dict()["loss"]
    assert record["settings"]["compiled_by"] == f"{script[0]}:compiled"
    assert record["labels"] == "rows"
    # A file compiled with it could not be loaded.
    assert "saved models are compiled with categorical_crossentropy" in record["note"]
    plain = keras.saving.load_model(tmp_path / "whole" / "model.keras")
    assert plain.loss.get_config()["name"] == "categorical_crossentropy"


def test_an_older_run_goes_on_as_it_began():
    """A record of four fields keeps its loss and its reading of outputs, even with a wrong `from_logits`."""
    record = {"kind": "categorical_crossentropy", "from_logits": True, "label_smoothing": 0.1, "reason": "--loss"}
    choice = from_record(Loss.from_dict(record), OwnCode())
    assert choice.head.kind == "logits"
    assert choice.form == "rows"
    config = choice.keras_loss().get_config()
    assert (config["from_logits"], config["label_smoothing"]) == (True, 0.1)
    assert choice.weight is None


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize("form", ["by name", "as tf_keras writes it", "registered"])
def test_a_loss_that_nobody_can_make_is_named(form, script, pictures, quiet, tmp_path):
    """A loss that cannot be made is named: training asks for the file or `--loss`.

    Scoring needs no loss. An export for training names its substitute.
    """
    forms = {
        "by name": {"module": "builtins", "class_name": "function", "config": "special", "registered_name": "function"},
        "as tf_keras writes it": "special",
        "registered": {"module": None, "class_name": "special", "config": {}, "registered_name": "theirs>special"},
    }
    path = tmp_path / "m.keras"
    model = script[1]["network"]()
    model.compile("sgd", "mse", metrics=["accuracy", keras.metrics.AUC(), "mse"])
    model.optimizer.build(model.trainable_variables)
    model.save(path)
    _rewrite(path, lambda config: config["compile_config"].update(loss=forms[form]))
    given = {"data": [str(pictures / "old")], "lr": 1e-3, "classes": ",".join(CLASSES)}
    with pytest.raises(UsageError, match=r"a custom loss, special: .*--import FILE.py .*--loss NAME"):
        make_plan(from_arguments(str(path), given), quiet)
    plan = make_plan(from_arguments(str(path), {**given, "loss": "categorical_crossentropy", "metric": ["AUC"]}), quiet)
    assert "the checkpoint's own loss, special, is replaced by categorical_crossentropy" in plan.notes
    assert "metrics of the checkpoint are not computed: mse; --metric NAME adds one" in plan.notes
    assert "special" not in evaluate(path, pictures / "old").note
    if form != "by name":
        return
    said = Warned()
    export(path, tmp_path / "out", format="keras", reporter=said)
    assert any("special" in line and "compiled with sparse_categorical_crossentropy" in line for line in said.warnings)
    assert any("metrics are not in the export: auc" in line for line in said.warnings)


def _rewrite(path, change):
    """Changes the config of a `.keras` file."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(members["config.json"])
    change(config)
    members["config.json"] = json.dumps(config).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)


@pytest.mark.one_backend(trains=True)
def test_an_own_loss_is_exported_by_its_name(script, tmp_path):
    """A `.keras` export loads in plain Keras with the user's file, compiled with the user's loss."""
    path, own = script
    model = own["network"]()
    model.compile("sgd", own["focal"])
    model.optimizer.build(model.trainable_variables)
    model.save(tmp_path / "m.keras")
    export(tmp_path / "m.keras", tmp_path / "out", format="keras", imports=[str(path)])
    loaded = keras.saving.load_model(tmp_path / "out" / "model.keras", custom_objects={"focal": own["focal"]})
    assert loaded.loss is own["focal"]


TF_KERAS = {
    "class_name": "CategoricalCrossentropy",
    "config": {"reduction": "auto", "name": "categorical_crossentropy", "from_logits": True, "label_smoothing": 0.1,
               "axis": -1, "fn": "categorical_crossentropy"},
}  # fmt: skip


@pytest.mark.one_backend(trains=True)
def test_a_compile_config_of_tf_keras_is_understood():
    """A compile config of tf_keras 2.21 is read: the first of `loss_weights`, metrics by function."""
    model = head({"activation": "softmax"})
    saved = {
        "loss": TF_KERAS,
        "loss_weights": [2.0, 3.0, 4.0],
        "metrics": [
            [
                {"class_name": "MeanMetricWrapper", "config": {"name": "hits", "fn": "categorical_accuracy"}},
                {"class_name": "AUC", "config": {"name": "auc"}},
            ]
        ],
    }
    choice = choose_loss(model, saved=saved)
    assert (choice.kind, choice.from_logits, choice.label_smoothing) == ("categorical_crossentropy", False, 0.1)
    assert choice.weight == 2.0
    assert "Keras used the first, 2" in choice.note
    assert "from_logits=True" in choice.note
    assert unused_metrics(saved, ()) == ("auc",)
    assert unused_metrics(saved, ("AUC",)) == ()


@pytest.mark.one_backend(trains=True)
def test_what_no_loss_can_do_is_refused_truthfully():
    """A task that the loss cannot do is refused with the true reason.

    Tried: several labels per image, one output for many classes, a loss without a notion of right, mixed labels.
    """
    many, one = head({"activation": "sigmoid"}), head({"activation": "sigmoid"}, count=1)
    for saved, requested in (({"loss": "binary_crossentropy"}, None), (None, "binary_crossentropy")):
        with pytest.raises(
            UsageError, match=r"3 independent yes-or-no .*one image to one of 3 .*kresume.BackupAndRestore"
        ):
            choose_loss(many, saved=saved, requested=requested)
    with pytest.raises(UsageError, match=r"1 output, which tells two classes apart: give --loss binary_crossentropy"):
        choose_loss(one, saved={"loss": "sparse_categorical_crossentropy"})
    many.compile("sgd", lambda labels, scores: ops.mean(scores, axis=-1))
    with pytest.raises(UsageError, match=r"no lower for right answers than for wrong ones"):
        choose_loss(many, code=OwnCode({}, "m.py:build"))
    with pytest.raises(UsageError, match=r"--mixup and --cutmix .* expects one class per image"):
        choose_loss(
            many,
            saved={"loss": {"class_name": "SparseCategoricalCrossentropy", "config": {"ignore_class": 1}}},
            soft_labels=True,
        )
    assert "smoothing=0.1" in choose_loss(many, saved={"loss": TF_KERAS}, requested="categorical_crossentropy").note


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize("how", ["a list with lists", "the same files in two folders"])
def test_several_labels_per_image_are_said_to_be_another_task(how, pictures, quiet, tmp_path):
    """A list of labels is refused as multi-label, not taken for a class name.

    Files under two labels are refused with the supported tasks.
    """
    given = {"image_size": "12", "epochs": 1}
    if how == "a list with lists":
        files = sorted((pictures / "old").glob("*/*.png"))
        rows = [
            {"path": str(file), "label": [file.parent.name, "dark"][: 1 + index % 2]}
            for index, file in enumerate(files)
        ]
        (tmp_path / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        words = (
            r"list.jsonl, row 2: 2 labels \(circle, dark\): kresume trains one image to one label; .*BackupAndRestore"
        )
        with pytest.raises(ImagesError, match=words):
            make_plan(from_arguments(None, {"data": [str(tmp_path / "list.jsonl")], **given}), quiet)
        single = [{**row, "label": row["label"][:1]} for row in rows]
        (tmp_path / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in single))
        assert (
            make_plan(from_arguments(None, {"data": [str(tmp_path / "list.jsonl")], **given}), quiet).card.classes
            == CLASSES
        )
        return
    for name in CLASSES:
        shutil.copytree(pictures / "old" / "circle", tmp_path / "all" / name)
    with pytest.raises(ImagesError, match=r"have two labels .*, and kresume trains one image to one label"):
        make_plan(from_arguments(None, {"data": [str(tmp_path / "all")], **given}), quiet)


# --- how many outputs -------------------------------------------------------------------------------------------------

COUNTED = """
import keras

def build(num_classes=%s, image_size=None):
    return keras.Sequential([keras.Input((6, 6, 3)), keras.layers.Flatten(), keras.layers.Dense(4, activation="relu"),
                             keras.layers.Dense(num_classes, activation="softmax")])
"""


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize("default", [3, 7])
@pytest.mark.parametrize("ending", [".weights.h5", "-weights.h5", "tf"])
def test_a_bare_checkpoint_says_how_many_outputs_it_has(default, ending, pictures, tmp_path):
    """`export` and `eval` build the model with the checkpoint's three outputs, whatever its default is."""
    (tmp_path / "m.py").write_text(COUNTED % default)
    space: dict = {}
    exec(COUNTED % default, space)
    model = space["build"](3)
    path = tmp_path / f"m{ending}"
    if ending == "tf":
        if keras.config.backend() != "tensorflow":
            pytest.skip("TensorFlow alone writes its checkpoints")
        import tensorflow as tf

        path = tf.train.Checkpoint(model=model).write(str(path))
    elif ending == "-weights.h5":
        _layers_by_name(path, model)
    else:
        model.save_weights(path)
    given = {"model": f"{tmp_path / 'm.py'}:build", "pixels": "0-1"}
    if (ending, default) == (".weights.h5", 7):
        assert export(path, tmp_path / "out", format="keras", model=given["model"]).record["card"] is None
    assert load(Subject(str(path), given["model"]), anonymous=True).model.output_shape == (None, 3)
    assert evaluate(path, pictures / "old", **given).scores["all"]["images"] == 24
    with pytest.raises(UsageError, match="has 3 outputs"):
        load(Subject(str(path), **given), fallback_classes=("a", "b"))


def _layers_by_name(path, model):
    """Writes weights as Keras 2's `save_weights` did."""
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [layer.name for layer in model.layers]
        for layer in model.layers:
            group = file.create_group(layer.name)
            names = [f"{layer.name}/{weight.name}:0" for weight in layer.weights]
            group.attrs["weight_names"] = names
            for name, weight in zip(names, layer.weights, strict=True):
                group[name] = np.asarray(weight)


@pytest.mark.one_backend(trains=True)
def test_the_functions_default_counts_where_the_checkpoint_does_not_tell(tmp_path):
    """The function's default output count holds if the checkpoint does not tell it.

    The head is a layer of the user's own, whose arrays show no count.
    """
    source = """
import keras

class Head(keras.layers.Layer):
    def __init__(self, count, **options):
        super().__init__(**options)
        self.count = count

    def build(self, shape):
        self.kernel = self.add_weight(shape=(self.count, shape[-1]))

    def call(self, values):
        return keras.ops.softmax(keras.ops.matmul(values, keras.ops.transpose(self.kernel)))

def build(num_classes=5):
    return keras.Sequential([keras.Input((6, 6, 3)), keras.layers.Flatten(), keras.layers.Dense(4), Head(num_classes)])
"""
    (tmp_path / "m.py").write_text(source)
    space: dict = {"__name__": "m"}
    exec(source, space)
    space["build"]().save_weights(tmp_path / "m.weights.h5")
    loaded = load(Subject(str(tmp_path / "m.weights.h5"), f"{tmp_path / 'm.py'}:build"), anonymous=True)
    assert loaded.model.output_shape == (None, 5)
    assert loaded.loss.head.kind == "probabilities"
