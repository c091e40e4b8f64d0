"""Tests `model=` with a Keras model in memory: it trains like the function that builds it, and stays as it is."""

import threading
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest

import kresume
from kresume.checkpoints import snapshot
from kresume.errors import ConfigMismatch, ModelError, UsageError
from kresume.models.build import _from_object
from kresume.models.optimizers import describe
from kresume.options.model_objects import model_of, name_of
from kresume.values.state import UNDECAYED
from tests.helpers.runs import TINY, assert_same_bytes, result_arrays, run_training, stopped_by

FUNCTION = """
import keras

def build():
    model = keras.Sequential([
        keras.Input((10, 10, 3)),
        keras.layers.Rescaling(1 / 255),
        keras.layers.Conv2D(4, 3, name="conv"),
        keras.layers.Dropout(0.2),
        keras.layers.GlobalAveragePooling2D(),
        keras.layers.Dense(3, activation="softmax"),
    ])
    model.compile(keras.optimizers.SGD(0.02, momentum=0.9, nesterov=True), keras.losses.SparseCategoricalCrossentropy())
    return model
"""


@keras.saving.register_keras_serializable("kresume_tests")
def doubled(labels, answers):
    """Returns a loss of the user's own."""
    return 2 * keras.losses.sparse_categorical_crossentropy(labels, answers)


class Unregistered(keras.layers.Layer):
    """A layer that Keras cannot find again."""


def build(seed=0, activation="softmax", loss=None, inside=()):
    """Returns the model of `FUNCTION`, with weights of a seed."""
    keras.utils.set_random_seed(seed)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((10, 10, 3)),
            layers.Rescaling(1 / 255),
            layers.Conv2D(4, 3, name="conv"),
            layers.Dropout(0.2),
            layers.GlobalAveragePooling2D(),
            *inside,
            layers.Dense(3, activation=activation),
        ]
    )
    loss = loss or keras.losses.SparseCategoricalCrossentropy()
    model.compile(keras.optimizers.SGD(0.02, momentum=0.9, nesterov=True), loss)
    return model


@pytest.mark.one_backend(trains=True)
def test_a_name_follows_from_the_architecture():
    """Neither weights, the compiled rate nor Keras's counters of names matter: the same script is the same command."""
    one, other = build(), build(seed=3)
    other.compile("adam", "sparse_categorical_crossentropy")
    assert one.layers[-1].name != other.layers[-1].name
    assert name_of(one) == name_of(other)
    assert name_of(build(activation="sigmoid")) != name_of(one)

    def skipped(number, **options):
        inputs = keras.Input((4, 4, 3))
        made = [inputs]
        for _ in range(3):
            made.append(keras.layers.Conv2D(3, 1)(made[-1]))
        cut = keras.layers.RandomCrop(2, 2, **options)(keras.layers.Add()([made[-1], made[number]]))
        return keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Flatten()(cut)))

    assert name_of(skipped(1)) == name_of(skipped(1))  # the seed of a crop is drawn
    assert name_of(skipped(1)) != name_of(skipped(2))


def test_an_object_trains_from_its_weights_as_it_is_compiled(monkeypatch, tmp_path, pictures):
    """The object keeps its weights; the same call with a model of other weights continues the run, to equal bytes."""
    model = build(loss=doubled)
    before = [np.array(value) for value in model.get_weights()]
    monkeypatch.setattr(snapshot, "prune_snapshots", lambda *_: None)
    given = {"data": [str(pictures / "old")], "snapshot_every": "1", "quiet": True, **TINY}
    plan = kresume.plan(None, model=model, **given)
    assert (plan.optimizer, plan.rate.peak, plan.action) == ("SGD", pytest.approx(0.02), "start")
    assert "kresume_tests>doubled" in plan.loss
    whole = kresume.resume(None, model=model, **given, out=str(tmp_path / "whole"))
    first = snapshot.read_snapshot(snapshot.snapshot_path(whole.snapshots, 0))
    assert whole.record.optimizer.config["nesterov"]
    held = {array.tobytes() for name, array in first.arrays.items() if name.startswith("trainable/")}
    assert held == {value.tobytes() for value in before}
    assert all(np.array_equal(*pair) for pair in zip(model.get_weights(), before, strict=True))
    asked = {name: value for name, value in given.items() if name != "quiet"} | {"out": str(tmp_path / "killed")}
    stopped_by(monkeypatch, lambda keeper: keeper.progress.step == 2, model=model, **asked)
    with pytest.raises(ConfigMismatch, match="model: object:"):
        kresume.resume(None, model=build(activation="sigmoid"), **given, out=asked["out"])
    continued = kresume.resume(None, model=build(seed=5, loss=doubled), **given, out=asked["out"])
    assert_same_bytes(result_arrays(whole.path), result_arrays(continued.path))


@pytest.mark.one_backend(trains=True)
def test_an_object_is_the_architecture_of_a_checkpoint_without_one(monkeypatch, tmp_path, pictures):
    """Training, scores, predictions and exports equal those with the function that builds it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mymodel.py").write_text(FUNCTION)
    trained = build(seed=7)
    trained.optimizer.build(trained.trainable_variables)
    trained.save_weights("w.weights.h5")
    object_, results = build(seed=8), []
    for model in ("mymodel.py:build", object_):
        name = f"{len(results)}"
        given = {"data": [str(pictures / "old")], "lr": 1e-3, **TINY, "out": name}
        run_training("w.weights.h5", model=model, **given)
        facts = {"model": model, "classes": "circle,square,stripes", "pixels": "0-255"}
        scores = kresume.evaluate("w.weights.h5", pictures / "val", **facts)
        rows = kresume.predict("w.weights.h5", pictures / "val", **facts).rows
        kresume.export("w.weights.h5", f"{name}-serving", format="keras", data=pictures / "val", **facts)
        results.append((result_arrays(tmp_path / name), str(scores), rows))
    (one, *before), (other, *now) = results
    assert_same_bytes(one, other)
    assert before == now


@pytest.mark.one_backend(trains=True)
def test_the_optimizer_is_that_of_the_object(pictures):
    """With what it leaves out of weight decay, and its schedule; a class that Keras cannot find again is refused."""
    model, options = build(), {"data": [str(pictures / "old")], "quiet": True, **TINY}
    optimizer = keras.optimizers.AdamW(keras.optimizers.schedules.CosineDecay(0.01, 50), weight_decay=0.1)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    model.compile(optimizer, "sparse_categorical_crossentropy")
    made = _from_object(name_of(model), {}, None, False, (10, 10))
    one, other = (describe(each.optimizer, each) for each in (made, model))
    assert one.class_name == other.class_name == "AdamW"
    assert {**one.config, "name": ""} == {**other.config, "name": ""}
    assert sorted(one.config[UNDECAYED]) == ["conv/bias", "dense/bias"]
    assert kresume.plan(None, model=model, **options).optimizer == "AdamW"

    class Own(keras.optimizers.SGD):
        """A class that is not registered."""

    model.compile(Own(0.1), "sparse_categorical_crossentropy")
    with pytest.raises(ModelError, match=r"register the classes with Keras"):
        kresume.plan(None, model=model, **options)


@pytest.mark.one_backend(trains=True)
def test_objects_of_one_architecture_are_told_apart_between_threads():
    """Each thread trains what it was given, although both have one name."""
    models = [build(seed=1, activation="linear"), build(seed=2, activation="linear")]
    with ThreadPoolExecutor(2) as pool:
        names = list(pool.map(name_of, models))
        assert names[0] == names[1]
    assert model_of(names[0]) is None  # this thread was given none
    meet = threading.Barrier(2)

    def made(model):
        name = name_of(model)
        meet.wait(60)
        return model_of(name)

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(made, models)) == models


@keras.saving.register_keras_serializable("model-objects")
class WithSpare(keras.Model):
    """Has a layer that its `call` does not use, built in `__init__` or later."""

    def __init__(self, inside=False, **options):
        super().__init__(**options)
        self.inside = inside
        self.pool, self.top = keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(2, "softmax")
        self.spare = keras.layers.Dense(5)
        if inside:
            self.spare.build((None, 4))

    def call(self, images):
        return self.top(self.pool(images / 255.0))

    def get_config(self):
        return {**super().get_config(), "inside": self.inside}


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.filterwarnings("ignore:.*was called on layer:UserWarning")
def test_a_layer_that_call_does_not_use_keeps_its_weights_or_is_named(inside):
    """A run builds the model again from its configuration, which says nothing of a layer that was built by itself."""
    model = WithSpare(inside=inside)
    model(np.zeros((1, 10, 10, 3), "float32"))
    if inside:
        made = _from_object(name_of(model), {}, None, False, (10, 10))
        assert [np.array(each).tobytes() for each in made.spare.weights] == [
            np.array(each).tobytes() for each in model.spare.weights
        ]
        return
    model.spare.build((None, 4))
    with pytest.raises(
        ModelError, match=r"the object alone has the weights .*bias, .*kernel: let its call use the layer"
    ):
        _from_object(name_of(model), {}, None, False, (10, 10))


@pytest.mark.one_backend(trains=True)
def test_what_no_run_could_continue_is_refused(pictures):
    """Each message says what to do instead."""
    trained = build()
    trained.optimizer.build(trained.trainable_variables)
    trained.optimizer.iterations.assign(3)
    cases = [
        (None, trained, UsageError, r"has made 3 updates\), so it is the checkpoint: model.save"),
        (None, keras.Sequential, UsageError, "give a keras.Model, or the name"),
        (None, build, UsageError, "give a keras.Model, or the name"),
        (None, build(inside=[Unregistered()]), ModelError, r"register custom classes with imports=\['FILE.py'\]"),
        (None, "object:0123456789ab", ModelError, "a Python program had in memory"),
        (trained, None, UsageError, "a Sequential as the first argument: .* model.save"),
    ]
    for checkpoint, model, error, words in cases:
        with pytest.raises(error, match=words):
            kresume.plan(checkpoint, model=model, data=[str(pictures / "old")], quiet=True)
    for use in (kresume.evaluate, kresume.predict, kresume.export):
        with pytest.raises(UsageError, match=r"a Sequential as the first argument: .* model.save"):
            use(trained, pictures / "val")


@pytest.mark.one_backend(trains=True)
def test_an_optimizer_is_kept_although_the_object_was_saved_as_h5(tmp_path, pictures):
    """Keras drops it from the compile config of a model when it writes the legacy format."""
    model = build()
    model.save(tmp_path / "m.h5")
    plan = kresume.plan(None, model=model, data=[str(pictures / "old")], **TINY, quiet=True)
    assert (plan.optimizer, plan.rate.peak) == ("SGD", pytest.approx(0.02))
