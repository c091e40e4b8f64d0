"""Tests a user's own models and code: subclassed models, exceptions, optimizers by name, `inspect`."""

import json
import sys
import zipfile

import h5py
import keras
import numpy as np
import pytest
from keras import layers

from kresume import cli
from kresume.checkpoints import keras_arrays
from kresume.checkpoints.inspect import describe
from kresume.checkpoints.read import read_checkpoint
from kresume.errors import ModelError, RestoreError
from kresume.evaluation.evaluate import evaluate
from kresume.models import build, own_code, restore
from kresume.models.own_code import innermost
from kresume.models.shapes import input_shape_of, output_shape_of
from kresume.options.resolve import from_arguments
from kresume.training.preview import make_plan
from tests.helpers.pictures import CLASSES
from tests.helpers.runs import run_training

SUBCLASSED = """
import keras
from keras import layers

class Net(keras.Model):
    def __init__(self, count=3, **options):
        super().__init__(**options)
        self.count = count
        self.conv = layers.Conv2D(4, 3, activation="relu")
        self.norm = layers.BatchNormalization()
        self.flatten = layers.Flatten()
        self.head = layers.Dense(count, activation="softmax")

    def call(self, images, training=None):
        features = self.norm(self.conv(images / 255), training=training)
        return self.head(self.flatten(features))

    def get_config(self):
        return {**super().get_config(), "count": self.count}

def build(num_classes=3, image_size=None):
    return Net(num_classes)
"""


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    """Writes a subclassed model after a step; returns the folder and the model.

    The files are net.py, m.keras and m.weights.h5.
    """
    folder = tmp_path_factory.mktemp("net")
    (folder / "net.py").write_text(SUBCLASSED)
    space: dict = {"__name__": "net"}
    exec(SUBCLASSED, space)
    model = space["build"](3)
    model.compile(keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy")
    model.train_on_batch(np.random.default_rng(0).random((6, 12, 12, 3)).astype("float32"), np.arange(6) % 3)
    model.save(folder / "m.keras")
    model.save_weights(folder / "m.weights.h5")
    return folder, model


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize("way", ["--import", "--model"])
def test_a_subclassed_model_is_scored_and_planned_for(net, pictures, quiet, way):
    """`eval` gives a subclassed model the accuracy of plain Keras; `plan` restores every variable."""
    folder, model = net
    code = str(folder / "net.py")
    path = str(folder / ("m.keras" if way == "--import" else "m.weights.h5"))
    given = {"imports": (code,)} if way == "--import" else {"model": f"{code}:build", "image_size": (12, 12)}
    data = keras.utils.image_dataset_from_directory(
        pictures / "old", image_size=(12, 12), interpolation="area", shuffle=False, verbose=False, batch_size=24
    )
    values, labels = next(iter(data))
    expected = (np.asarray(model.predict_on_batch(np.asarray(values))).argmax(axis=1) == np.asarray(labels)).mean()
    found = evaluate(path, pictures / "old", pixels="0-255", classes=CLASSES, **given)
    assert found.scores["all"]["accuracy"] == pytest.approx(float(expected), abs=0.05)
    options = (
        {"imports": [code]}
        if way == "--import"
        else {"model": f"{code}:build", "image_size": "12", "optimizer": "adam"}
    )
    asked = {"data": [str(pictures / "old")], "lr": 1e-3, "classes": ",".join(CLASSES), "pixels": "0-255", **options}
    plan = make_plan(from_arguments(path, asked), quiet)
    count = len(model.variables) + len(model.optimizer.variables)
    assert plan.restored.startswith(f"{count} of {count} variables")
    assert plan.loss.startswith("sparse_categorical_crossentropy")


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize("file", ["m.keras", "m.weights.h5"])
def test_a_model_that_was_built_for_another_size_names_the_option(net, pictures, quiet, file):
    """A model built for another image size is an error that names `--image-size`, which works.

    A Dense after a Flatten has a shape that depends on the size.
    """
    folder, _ = net
    state = read_checkpoint(folder / file)
    made = {"state": state, "num_classes": 3}
    spec = f"{folder / 'net.py'}:build"
    model = build.build_model(spec, image_size=None, **made)
    with pytest.raises(
        RestoreError, match=r"built for images of the shape \(64, 64, 3\): .* give it with --image-size; otherwise"
    ):
        restore.restore(model, state, optimizer=None)
    restore.restore(build.build_model(spec, image_size=(12, 12), **made), state, optimizer=None)


@pytest.mark.one_backend(trains=True)
def test_a_model_of_another_width_names_no_size(net):
    """If the last axis differs, too, the error does not blame the image size."""
    folder, _ = net
    state = read_checkpoint(folder / "m.weights.h5")
    model = build.build_model(f"{folder / 'net.py'}:build", state=state, num_classes=4, image_size=(12, 12))
    with pytest.raises(RestoreError, match="the model that wrote the checkpoint with --model") as caught:
        restore.restore(model, state, optimizer=None)
    assert "--image-size" not in str(caught.value)


def test_a_subclassed_model_trains_and_is_extended(net, pictures, tmp_path):
    """A run of a subclassed model is extended from its own record."""
    folder, _ = net
    given = {"epochs": 1, "batch_size": 8, "lr": 1e-3}
    first = run_training(
        str(folder / "m.keras"),
        data=[str(pictures / "old")],
        out=str(tmp_path / "a"),
        imports=[str(folder / "net.py")],
        classes=",".join(CLASSES),
        pixels="0-255",
        **given,
    )
    second = run_training(first.run, add=[str(pictures / "new")], out=str(tmp_path / "b"), **given)
    assert second.step > first.step


@pytest.mark.one_backend(trains=True)
def test_shapes_of_a_model_that_is_no_graph(net):
    """A subclassed model's input is that of its build, its output that of its code; several are named."""
    _, model = net
    assert input_shape_of(model) == (None, 12, 12, 3)
    assert output_shape_of(model) == (None, 3)

    class Two(keras.Model):
        def __init__(self):
            super().__init__()
            self.flatten, self.one, self.two = layers.Flatten(), layers.Dense(2), layers.Dense(3)

        def call(self, images):
            values = self.flatten(images)
            return {"one": self.one(values), "two": self.two(values)}

    two = Two()
    two(np.zeros((1, 4, 4, 3), "float32"))
    assert output_shape_of(two) == {"one": (None, 2), "two": (None, 3)}


@pytest.mark.parametrize("way", ["in call", "in build", "in call of a file", "in the constructor of a file"])
def test_an_exception_in_the_users_code_is_a_line(net, pictures, quiet, tmp_path, way):
    """An exception in a user's code is one line with its words, file and line, without a traceback.

    The line gives no advice on other matters.
    """
    folder, _ = net
    where = {
        "in call": ("features = ", "1 // 0; features = "),
        "in build": ("return Net", "raise KeyError('no such size'); return Net"),
        "in call of a file": ("features = ", "1 // 0; features = "),
        "in the constructor of a file": (
            "self.count = count",
            "self.count = count; raise OSError('weights.bin is gone')",
        ),
    }
    before, after = where[way]
    source = SUBCLASSED.replace(before, after, 1)
    line = source[: source.index(after)].count("\n") + 1
    (tmp_path / "bad.py").write_text(source)
    says = {"in build": "no such size", "in the constructor of a file": "weights.bin is gone"}
    asked = {"data": [str(pictures / "old")], "lr": 1e-3, "pixels": "0-255", "classes": ",".join(CLASSES)}
    path = None
    if "file" in way:
        path, asked["imports"] = str(folder / "m.keras"), [str(tmp_path / "bad.py")]
    else:
        asked["model"] = f"{tmp_path / 'bad.py'}:build"
    with pytest.raises(ModelError) as caught:
        make_plan(from_arguments(path, asked), quiet)
    text = str(caught.value)
    assert f"bad.py, line {line}" in text
    assert says.get(way, "division") in text
    assert "\n" not in text
    assert "Lambda" not in text
    assert "Exception encountered" not in text


RAISES = """
import keras

class Raising(keras.layers.Layer):
    def call(self, values, training=None):
        if training:
            raise RuntimeError("no training here")
        return values

def build(num_classes=3):
    return keras.Sequential([keras.Input((12, 12, 3)), Raising(), keras.layers.Flatten(),
                             keras.layers.Dense(num_classes, activation="softmax")])
"""


def test_an_exception_while_training_is_a_line_too(pictures, tmp_path, monkeypatch, capsys):
    """An exception in a user's code during training is one line; our own exceptions keep their traceback."""
    (tmp_path / "raises.py").write_text(RAISES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli.crash, "show_traces", lambda: None)
    arguments = [
        "train",
        "--data",
        str(pictures / "old"),
        "--model",
        "raises.py:build",
        "--pixels",
        "0-255",
        "--epochs",
        "1",
    ]
    with pytest.raises(SystemExit) as left:
        cli.main(arguments)
    assert left.value.code == 1
    assert (
        capsys.readouterr().err.splitlines()[-1] == "kresume: raises.py, line 7 raised RuntimeError: no training here"
    )
    for name in [name for name in sys.modules if name.startswith(own_code.PREFIX)]:
        monkeypatch.delitem(sys.modules, name)  # other tests use files of this folder's names as the user's code
    monkeypatch.setattr("kresume.training.resume.train", lambda *_: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        cli.main(arguments)


def test_the_innermost_reason_of_nested_errors():
    """The innermost of nested errors is reported: Keras wraps it once for each model around the layer."""
    inner = keras.Sequential([layers.Dense(2), layers.Reshape((7,))])
    outer = keras.Sequential([layers.Flatten(), inner])
    with pytest.raises(ValueError, match="Exception encountered when calling") as caught:
        outer(np.zeros((2, 4), "float32"))
    said = innermost(caught.value)
    assert said.startswith("The total size of the tensor must be unchanged")
    of_tensorflow = (
        "{{function_node __wrapped__Mul_device_CPU:0}} Incompatible shapes: [2,5] vs. [4] [[{{node a/Mul}}]]"
    )
    assert innermost(ValueError(of_tensorflow)).startswith("Incompatible shapes: [2,5] vs. [4]")
    assert "\x1b" not in said


# --- optimizers by name -----------------------------------------------------------------------------------------------


@pytest.mark.one_backend(trains=True)
def test_the_rate_of_an_optimizer_by_name_is_its_own():
    """The table of default rates is Keras's."""
    for name in keras_arrays.OPTIMIZERS:
        found = keras_arrays.by_name(name.lower())
        rate = float(np.asarray(getattr(keras.optimizers, name)().learning_rate))
        assert found == {"class_name": name, "config": {"learning_rate": pytest.approx(rate)}}
    assert keras_arrays.by_name("special") is None


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize("name", ["adam", "sgd", "nadam"])
@pytest.mark.parametrize("writer", ["Keras 3.1", "tf_keras"])
@pytest.mark.sample("Keras 3.1-adam", "tf_keras-nadam")
def test_an_optimizer_compiled_by_name_is_that_optimizer(writer, name, pictures, quiet, tmp_path):
    """An optimizer compiled by name is read, with the saved rate or its default.

    Keras 3.1 and tf_keras write `compile("adam")` so.
    """
    model = keras.Sequential([keras.Input((6, 6, 3)), layers.Flatten(), layers.Dense(3, activation="softmax")])
    model.compile(name, "sparse_categorical_crossentropy")
    model.train_on_batch(np.zeros((3, 6, 6, 3), "float32"), np.arange(3))
    rate = float(np.asarray(model.optimizer.learning_rate))
    path = tmp_path / "m.keras"
    model.optimizer.learning_rate = rate / 2
    model.save(path)
    with zipfile.ZipFile(path) as archive:
        members = {member: archive.read(member) for member in archive.namelist()}
    config = json.loads(members["config.json"])
    config["compile_config"]["optimizer"] = name
    members["config.json"] = json.dumps(config).encode()
    if writer == "tf_keras":  # it keeps no variable of the rate
        (tmp_path / "w.h5").write_bytes(members["model.weights.h5"])
        with h5py.File(tmp_path / "w.h5", "r+") as file:
            group = file["optimizer/vars"]
            kept = [group[str(index)][()] for index in range(len(group)) if index != 1]
            for index in range(len(group)):
                del group[str(index)]
            for index, array in enumerate(kept):
                group[str(index)] = array
        members["model.weights.h5"] = (tmp_path / "w.h5").read_bytes()
    with zipfile.ZipFile(path, "w") as archive:
        for member, data in members.items():
            archive.writestr(member, data)
    state = read_checkpoint(path)
    assert state.optimizer.class_name == {"adam": "Adam", "sgd": "SGD", "nadam": "Nadam"}[name]
    assert state.rate.value == pytest.approx(rate / 2 if writer == "Keras 3.1" else rate)
    if writer == "Keras 3.1":
        asked = {"data": [str(pictures / "old")], "pixels": "0-1", "classes": ",".join(CLASSES)}
        plan = make_plan(from_arguments(str(path), asked), quiet)
        assert plan.optimizer == state.optimizer.class_name
        assert "2 of 2" not in plan.restored


# --- inspect ----------------------------------------------------------------------------------------------------------


@pytest.mark.one_backend(trains=True)
def test_inspect_tells_several_outputs_and_unknown_classes(net, tmp_path):
    """`inspect` names outputs, and classes, functions and losses unknown to Keras; else it prints nothing."""
    folder, _ = net
    assert any(
        "the code of Net: --import FILE.py" in text for text in describe(read_checkpoint(folder / "m.keras")).missing
    )
    inputs = keras.Input((6, 6, 3))
    values = layers.Flatten()(inputs)
    two = keras.Model(inputs, [layers.Dense(2, name="left")(values), layers.Dense(3, name="right")(values)])
    two.save(tmp_path / "two.keras")
    notes = describe(read_checkpoint(tmp_path / "two.keras")).notes
    assert any(
        "the model has 2 outputs (left, right), but kresume train supports one label per image" in text
        for text in notes
    )

    def mine(labels, scores):
        return keras.ops.mean(scores)

    plain = keras.Sequential([inputs, layers.Flatten(), layers.Dense(2, activation="softmax")])
    plain.compile("sgd", mine)
    plain.save(tmp_path / "plain.keras")
    found = describe(read_checkpoint(tmp_path / "plain.keras"))
    assert not any("outputs" in text for text in found.notes)
    assert not any("the code of" in text for text in found.missing)
    assert any("the loss mine: --import FILE.py" in text for text in found.missing)
