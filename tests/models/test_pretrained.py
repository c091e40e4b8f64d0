"""Tests `--weights` and `--new-head`: given weights below a new head, with the network's own preprocessing."""

import sys
import types

import keras
import numpy as np
import pytest

import kresume
from kresume import runs
from kresume.errors import ModelError, RestoreError, UsageError
from kresume.models import freeze, pretrained
from kresume.models.pixels import read_convention
from tests.helpers.pictures import write_pictures
from tests.helpers.runs import TINY, kill_at_every_snapshot, run_training, trained

layers = keras.layers
NAMES = sorted(name for name in dir(keras.applications) if name[0].isupper())


def value(variable):
    return np.array(keras.ops.convert_to_numpy(variable))


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize("name", NAMES)
def test_the_preprocessing_becomes_layers(name):
    """For every application the layers compute what its `preprocess_input` does, and plain Keras loads them."""
    inputs = keras.Input((4, 4, 3))
    outputs = pretrained.preprocessed(name, inputs)
    model = keras.Model(inputs, outputs if outputs is not inputs else layers.Identity()(inputs))
    pictures = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3)).astype("float32")
    module = sys.modules[getattr(keras.applications, name).__module__]
    expected = keras.ops.convert_to_numpy(module.preprocess_input(pictures.copy()))
    again = keras.models.model_from_json(model.to_json())
    np.testing.assert_allclose(again.predict(pictures, verbose=0), expected, rtol=1e-5, atol=1e-4)


def tiny(**options):
    """Builds a small network with the arguments of an application; its top is a 1x1 convolution, as MobileNet's."""
    inputs = keras.Input(options.get("input_shape") or (12, 12, 3))
    x = layers.Conv2D(4, 3, strides=2, name="stem")(inputs)
    x = layers.BatchNormalization()(x)
    x = layers.DepthwiseConv2D(3, name="deep")(layers.ReLU()(x))
    if options["include_top"]:
        x = layers.GlobalAveragePooling2D(keepdims=True)(x)
        x = layers.Flatten()(layers.Conv2D(options["classes"], 1, name="preds")(layers.Dropout(0.1)(x)))
    else:
        x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, x, name="tiny")
    if options.get("weights") == "imagenet":
        model.load_weights(keras.utils.get_file("tiny_no_top.weights.h5", "https://models.test/tiny_no_top.weights.h5"))
    return model


@pytest.fixture
def application(monkeypatch):
    """Makes `tiny` an application of Keras, with preprocessing of the kind that subtracts means."""
    module = types.ModuleType("tiny_application")
    module.preprocess_input = keras.applications.resnet.preprocess_input
    monkeypatch.setitem(sys.modules, "tiny_application", module)
    monkeypatch.setattr(tiny, "__module__", "tiny_application")
    monkeypatch.setattr(keras.applications, "Tiny", tiny, raising=False)
    return tiny


def written(folder, top):
    """Writes random weights in each format that people have, and returns the network."""
    model = tiny(include_top=top, classes=7)
    for variable in model.variables:
        if "seed" not in variable.path:
            variable.assign(np.random.default_rng(len(variable.path)).random(variable.shape))
    model.save_weights(folder / "a.weights.h5")
    model.save(folder / "a.h5")
    model.save(folder / "a.keras")
    return model


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize("top", [True, False])
@pytest.mark.parametrize("file", ["a.weights.h5", "a.h5", "a.keras"])
def test_a_file_with_or_without_top_fills_the_network(tmp_path, application, file, top):
    """Every weight below the top has the file's bytes, whatever the count of classes; the model expects 0-255."""
    source = written(tmp_path, top)
    model, said = pretrained.pretrained("Tiny", str(tmp_path / file), 5, (16, 16))
    base = next(layer for layer in model.layers if isinstance(layer, keras.Model))
    assert base.input_shape == (None, 16, 16, 3)
    assert model.output_shape == (None, 5)
    assert read_convention(model) == "0-255"
    for one, other in zip(base.weights, source.weights, strict=False):
        assert value(one).tobytes() == value(other).tobytes(), one.path
    assert ("whose top of 7 classes is left out" in said) == top


@pytest.mark.one_backend(trains=True)
def test_a_real_application_is_filled(tmp_path):
    """MobileNetV3Small with its own top of 9 classes, as Keras saves it."""
    source = keras.applications.MobileNetV3Small(weights=None, classes=9)
    source.save_weights(tmp_path / "m.weights.h5")
    base, said = pretrained.pretrained_base("MobileNetV3Small", str(tmp_path / "m.weights.h5"), (48, 48))
    for one, other in zip(base.weights, source.weights, strict=False):
        assert value(one).tobytes() == value(other).tobytes(), one.path
    assert "whose top of 9 classes is left out" in said


@pytest.mark.one_backend(trains=True)
def test_weights_of_imagenet_come_through_keras(tmp_path, application, monkeypatch):
    """A file that Keras has fetched before is used; without one and without a network the error says where to put it."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "home"))

    def nothing(*_, **__):
        raise Exception(
            "URL fetch failure on https://models.test/tiny_no_top.weights.h5: None -- [Errno -2] no network"
        )

    monkeypatch.setattr(keras.utils, "get_file", nothing)
    with pytest.raises(ModelError) as caught:
        pretrained.pretrained_base("Tiny", "imagenet", (16, 16))
    assert f"Put the file at {tmp_path / 'home' / 'models' / 'tiny_no_top.weights.h5'}, or give any copy" in str(
        caught.value
    )
    source = written(tmp_path, top=False)
    monkeypatch.setattr(keras.utils, "get_file", lambda name, url: str(tmp_path / "a.weights.h5"))
    base, said = pretrained.pretrained_base("Tiny", "imagenet", (16, 16))
    assert [value(each).tobytes() for each in base.weights] == [value(each).tobytes() for each in source.weights]
    assert said == f"{len(base.weights)} weights of Tiny, trained on ImageNet"


@pytest.mark.one_backend(trains=True)
def test_weights_of_another_network_are_refused_with_a_table(tmp_path, application):
    """The error names the first variable and holds the table of outcomes."""
    keras.Sequential([keras.Input((8,)), layers.Dense(3)]).save_weights(tmp_path / "other.weights.h5")
    with pytest.raises(RestoreError, match="does not hold the weights of Tiny, with or without a top: ") as caught:
        pretrained.pretrained_base("Tiny", str(tmp_path / "other.weights.h5"), (16, 16))
    assert any("stem" in row[0] for row in caught.value.rows)


@pytest.fixture
def place(tmp_path, monkeypatch, pictures, application):
    """Makes a folder with pictures and weights, and works in it."""
    monkeypatch.chdir(tmp_path)
    written(tmp_path, top=True)
    write_pictures(tmp_path / "mine", 6, 40, ("pear", "plum"))
    return tmp_path


PRETRAINED = {
    "model": "applications:Tiny",
    "weights": "a.weights.h5",
    "image_size": "12",
    "batch_size": 5,
    "val_split": 0.25,
}


@pytest.mark.one_backend(trains=True)
def test_the_head_trains_alone_first_then_all_but_batch_normalisation(place, pictures):
    """In the first epoch nothing below the head changes; at the end all weights have, but those of batch normalisation."""
    options = {**PRETRAINED, "data": [str(pictures / "old")], "epochs": 2, "snapshot_every": "1epochs", "keep": 9}
    plan = kresume.plan(None, quiet=True, **options)
    assert "freeze:   all but the head for the first epoch, 1 layer of batch normalisation throughout" in str(plan)
    assert "rate:     0.001 for the new head alone, falling to 0.0001; from step " in str(plan)
    assert "whose top of 7 classes is left out" in str(plan)
    run_training(out="1", **options)
    model = keras.models.load_model("1/model.keras")
    source = tiny(include_top=True, classes=7)
    source.load_weights("a.weights.h5")
    base = next(layer for layer in model.layers if isinstance(layer, keras.Model))
    same = [
        value(one).tobytes() == value(other).tobytes() for one, other in zip(base.weights, source.weights, strict=False)
    ]
    kept = [bool("batch_normalization" in variable.path) for variable in base.weights]
    assert same == kept
    record = runs.open_run("1").record
    assert (record.freezing.until, record.freezing.head_alone) == (1, True)
    named = freeze.layers_of(model)
    assert [named[each][0] for each in record.freezing.always] == ["tiny/batch_normalization"]


@pytest.mark.one_backend(trains=True)
def test_a_pretrained_run_continues_exactly(tmp_path, place, pictures):
    """Killed while the head trains alone, and after that, it ends with the same bits."""
    names = kill_at_every_snapshot(tmp_path, places=(1, -3), data=[str(pictures / "old")], epochs=2, **PRETRAINED)
    assert len(names) == 2


@pytest.mark.one_backend(trains=True)
def test_a_new_head_replaces_the_old_one(place, pictures):
    """Other classes, no score before, fresh slots for the head and kept ones below; the parent's images are not used."""
    trained("runs/1", data=[str(pictures / "old")], **TINY)
    options = {"data": ["mine"], "new_head": True, "epochs": 2, "batch_size": 5, "val_split": 0.25}
    plan = kresume.plan("runs/1", quiet=True, **options)
    text = str(plan)
    assert plan.card.classes == ("pear", "plum")
    assert plan.images["total"] == 12
    assert plan.before is None
    assert "grow:     a new head of 2 classes in the layer head: pear (" in text
    assert "before:" not in text
    run_training("runs/1", out="runs/2", **options)
    assert keras.models.load_model("runs/2/model.keras").output_shape == (None, 2)
    assert runs.open_run("runs/2").record.card.classes == ("pear", "plum")
    one, other = (keras.models.load_model(f"runs/{number}/model.keras") for number in (1, 2))
    for before, after in zip(one.layers, other.layers, strict=True):
        if isinstance(before, layers.BatchNormalization):  # frozen at the statistics that the parent predicts with
            assert value(before.moving_mean).tobytes() == value(after.moving_mean).tobytes()
    later = kresume.plan("runs/1", quiet=True, **{**options, "epochs": 4, "unfreeze_at": 2})
    assert "all but the head for the first 2 epochs" in str(later)
    child = kresume.plan("runs/2", quiet=True, lr=1e-3)
    assert child.card.classes == ("pear", "plum")


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize(
    ("checkpoint", "options", "words"),
    [
        (None, {**PRETRAINED, "model": "convnet"}, "weights='a.weights.h5' is for model='applications:NAME'"),
        (
            None,
            {"new_head": True},
            "new_head=True replaces the head of a checkpoint",
        ),
        ("a.keras", {"weights": "imagenet", "model": "applications:Tiny"}, "both say where to start"),
        ("a.keras", {"new_head": True, "grow": True}, "drops the old classes and grow=True keeps them"),
        ("a.keras", {"new_head": True, "max_forgetting": 1}, "a new head knows none of its classes"),
        ("a.keras", {"new_head": True, "data": None, "add": ["mine"]}, "for the classes of the images at hand"),
    ],
)
def test_what_contradicts_itself_is_refused(place, checkpoint, options, words):
    """Weights of another kind of model, a head without a checkpoint, two starts, and no images."""
    arguments = {"data": ["mine"], **options}
    with pytest.raises(UsageError, match=words):
        kresume.plan(checkpoint, quiet=True, **{name: each for name, each in arguments.items() if each is not None})
