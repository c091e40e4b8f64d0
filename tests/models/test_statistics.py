"""Tests the statistics of batch normalisation: what they are, what stays as it was, and where a run uses them."""

import json
import shutil

import keras
import numpy as np
import pytest

import kresume
from kresume import runs
from kresume.checkpoints import snapshot
from kresume.errors import ImagesError
from kresume.evaluation.evaluate import evaluate
from kresume.models import statistics
from kresume.models.load import Subject, load
from kresume.models.unscored import with_statistics
from kresume.reporter import Reporter
from tests.helpers.pictures import CLASSES, draw
from tests.helpers.runs import TINY, make_interrupted, result_arrays, run_training, trained, write_record

SIZE = 12
BN_TINY = {"image_size": TINY["image_size"], "batch_size": TINY["batch_size"], "lr": 0.01, "epochs": 3}


def images(count=24):
    """Returns pictures of three classes in turn, `(count, 12, 12, 3) float32`, and their labels."""
    pictures = [draw(CLASSES[index % 3], index, SIZE) for index in range(count)]
    return np.stack(pictures).astype("float32"), np.arange(count) % 3


def batches(x, size=8):
    return [x[start : start + size] for start in range(0, len(x), size)]


def network(policy="float32", *, frozen=False, dropout=0.5):
    """Returns a compiled model with two layers of batch normalisation, and dropout between them."""
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((SIZE, SIZE, 3)),
            layers.Rescaling(1 / 127.5, offset=-1),
            layers.Conv2D(4, 3, strides=2, name="conv", dtype=policy),
            layers.BatchNormalization(name="first", dtype=policy),
            layers.RandomTranslation(0.2, 0.2, seed=1),
            layers.Dropout(dropout, seed=2),
            layers.Conv2D(4, 3, activation="relu", dtype=policy),
            layers.BatchNormalization(name="second", momentum=0.9, dtype=policy),
            layers.GlobalAveragePooling2D(),
            layers.Dense(3, activation="softmax", dtype="float32"),
        ]
    )
    if frozen:
        model.get_layer("first").trainable = False
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def values(variables):
    return [np.array(keras.ops.convert_to_numpy(variable)) for variable in variables]


def by_name(model, found):
    """Returns the statistics by the path of their variable."""
    return {
        "/".join(model.non_trainable_variables[place].path.split("/")[-2:]): array for place, array in found.items()
    }


@pytest.mark.parametrize("policy", ["float32", "mixed_float16", "mixed_bfloat16"])
def test_they_are_mean_and_variance_of_what_enters_the_layer(policy):
    """The first layer's statistics are those of all images together, as numpy computes them from its inputs."""
    model, (x, _) = network(policy), images()
    found = by_name(model, statistics.compute_statistics(model, batches(x)))
    assert sorted(found) == [
        "first/moving_mean",
        "first/moving_variance",
        "second/moving_mean",
        "second/moving_variance",
    ]
    entering = (
        keras.Sequential([keras.Input((SIZE, SIZE, 3)), *model.layers[:2]]).predict(x, verbose=0).astype("float64")
    )
    rough = {"float32": 1e-5, "mixed_float16": 5e-3, "mixed_bfloat16": 3e-2}[policy]
    np.testing.assert_allclose(found["first/moving_mean"], entering.mean((0, 1, 2)), rtol=rough, atol=rough)
    np.testing.assert_allclose(found["first/moving_variance"], entering.var((0, 1, 2)), rtol=rough, atol=rough)


def test_a_layer_behind_another_sees_what_prediction_gives_it():
    """With one batch the second layer's statistics are numpy's too, without dropout and augmentation."""
    model, (x, _) = network(), images()
    found = statistics.compute_statistics(model, [x])
    with statistics.used(model, found):
        entering = keras.Sequential([keras.Input((SIZE, SIZE, 3)), *model.layers[:6]]).predict(x, verbose=0)
    of_second = by_name(model, found)
    np.testing.assert_allclose(of_second["second/moving_mean"], entering.mean((0, 1, 2)), atol=1e-5)
    np.testing.assert_allclose(of_second["second/moving_variance"], entering.var((0, 1, 2)), atol=1e-5)


def test_nothing_else_changes():
    """Weights, moving averages, slots, random states, momenta and compiled functions are as before.

    Training goes on to the same bits as without.
    """
    x, y = images()

    def train(recomputes):
        keras.utils.set_random_seed(4)
        model = network()
        model.fit(x, y, batch_size=8, epochs=2, verbose=0)
        model.predict(x, verbose=0)
        if recomputes:
            before, compiled = values([*model.variables, *model.optimizer.variables]), model.predict_function
            found = statistics.compute_statistics(model, batches(x))
            with statistics.used(model, found):
                assert values(model.non_trainable_variables)[min(found)].tobytes() == found[min(found)].tobytes()
            after = values([*model.variables, *model.optimizer.variables])
            assert [array.tobytes() for array in before] == [array.tobytes() for array in after]
            assert model.predict_function is compiled
            assert model.get_layer("second").momentum == 0.9
            assert "call" not in vars(model.get_layer("second"))
            assert "predict_step" not in vars(model)
        model.fit(x, y, batch_size=8, epochs=2, verbose=0)
        return values([*model.variables, *model.optimizer.variables])

    assert [array.tobytes() for array in train(False)] == [array.tobytes() for array in train(True)]


def test_an_error_leaves_the_model_as_it_was():
    """If a batch cannot be read, or there is none, the moving averages are back."""
    model, (x, _) = network(), images()
    before = [array.tobytes() for array in values(model.variables)]

    def breaking():
        yield x
        raise OSError("the drive is gone")

    with pytest.raises(OSError, match="the drive is gone"):
        statistics.compute_statistics(model, breaking())
    with pytest.raises(ImagesError, match="no image to recompute"):
        statistics.compute_statistics(model, [])
    assert [array.tobytes() for array in values(model.variables)] == before
    assert "call" not in vars(model.get_layer("first"))


def test_only_layers_that_train_are_recomputed():
    """A frozen layer keeps its moving averages; layers with other statistics are named."""
    model, (x, _) = network(frozen=True), images()
    assert {name.partition("/")[0] for name in by_name(model, statistics.compute_statistics(model, [x]))} == {"second"}
    layers = keras.layers
    other = keras.Sequential(
        [
            keras.Input((4,)),
            layers.SpectralNormalization(layers.Dense(3), name="spectral"),
            layers.BatchNormalization(renorm=True, name="renormalised"),
            layers.GroupNormalization(1),
        ]
    )
    assert statistics.other_running(other) == ["spectral", "renormalised"]
    assert statistics.compute_statistics(other, [np.zeros((2, 4), "float32")]) == {}


def test_a_layer_in_two_places_gets_the_mean_over_both():
    """A layer that the model calls twice has the mean of both inputs' statistics."""
    norm, inputs = keras.layers.BatchNormalization(), keras.Input((3,))
    model = keras.Model(inputs, norm(inputs) + norm(5.0 * inputs + 1.0))
    x = np.random.default_rng(0).normal(size=(16, 3)).astype("float32")
    for _ in range(2):
        found = list(statistics.compute_statistics(model, [x]).values())
        np.testing.assert_allclose(found[0], (x.mean(0) + (5 * x + 1).mean(0)) / 2, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found[1], (x.var(0) + (5 * x + 1).var(0)) / 2, rtol=1e-4)


def test_moving_averages_that_are_no_numbers_are_replaced():
    """Statistics that became NaN in training do not spoil the new ones."""
    model, (x, _) = network(), images()
    model.get_layer("first").moving_mean.assign(np.full(4, np.nan, "float32"))
    assert all(np.isfinite(array).all() for array in statistics.compute_statistics(model, [x]).values())


class Batches(keras.utils.PyDataset):
    """Returns batches of pictures and labels by index."""

    def __init__(self, x, y):
        super().__init__()
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x) // 8

    def __getitem__(self, index):
        return self.x[8 * index : 8 * index + 8], self.y[8 * index : 8 * index + 8]


@pytest.mark.parametrize("kind", ["tf.data", "PyDataset", "generator", "array"])
def test_a_users_own_fit(kind):
    """`kresume.recompute_statistics` takes training data as `fit` does, and what it finds stays in the model."""
    import tensorflow as tf

    model, (x, y) = network(), images()
    data = {
        "tf.data": lambda: tf.data.Dataset.from_tensor_slices((x, y)).batch(8),
        "PyDataset": lambda: Batches(x, y),
        "generator": lambda: ((x[i : i + 8], y[i : i + 8]) for i in range(0, 24, 8)),
        "array": lambda: x,
    }[kind]()
    expected = statistics.compute_statistics(model, batches(x) if kind != "array" else [x])
    assert kresume.recompute_statistics(model, data) == 2
    for place, array in expected.items():
        assert values(model.non_trainable_variables)[place].tobytes() == array.tobytes()
    assert kresume.recompute_statistics(keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]), x) == 0


@pytest.fixture
def finished(tmp_path, pictures):
    """Returns a run with the default statistics and validation images, and one with moving averages."""
    options = {"data": [str(pictures / "old")], "val": [str(pictures / "val")], **BN_TINY}
    return (
        trained(tmp_path / "recomputed", every_snapshot=True, **options),
        trained(tmp_path / "moving", every_snapshot=True, bn_stats="moving", **options),
    )


def test_a_run_predicts_with_them_and_trains_without(finished, pictures):
    """Snapshots of both runs have equal weights, averages and slots; the scores and `model.keras` differ.

    `model.keras` in plain Keras scores what the run recorded.
    """
    recomputed, moving = finished
    ours, plain = result_arrays(recomputed), result_arrays(moving)
    extra = {name for name in ours if name.startswith("statistics/")}
    assert extra
    assert {name: array.tobytes() for name, array in ours.items() if name not in extra} == {
        name: array.tobytes() for name, array in plain.items()
    }
    told = json.loads((recomputed / "evaluation.json").read_text())["after"]["all"]
    assert told != json.loads((moving / "evaluation.json").read_text())["after"]["all"]
    model = keras.saving.load_model(recomputed / "model.keras")
    model.compile(loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    rows = [(path, label) for label, name in enumerate(CLASSES) for path in sorted((pictures / "val" / name).iterdir())]
    from kresume.images.decode import decode
    from kresume.values.decode_spec import DecodeSpec

    x = np.stack([decode(path.read_bytes(), DecodeSpec(10, 10)) for path, _ in rows]).astype("float32")
    loss, accuracy = model.evaluate(x, np.array([label for _, label in rows]), verbose=0)
    assert accuracy == pytest.approx(told["accuracy"])
    assert loss == pytest.approx(told["loss"], rel=1e-4)


def test_what_reads_a_run_predicts_as_its_result(finished, pictures):
    """`eval` and what `export` loads use the statistics of the result, as `model.keras` has them."""
    recomputed, _ = finished
    saved = keras.saving.load_model(recomputed / "model.keras")
    loaded = load(Subject(str(recomputed)))
    layers = [statistics.normalised_layers(model) for model in (loaded.model, saved)]
    for one, other in zip(*layers, strict=True):
        assert [array.tobytes() for array in values(one.variables)] == [
            array.tobytes() for array in values(other.variables)
        ]
    told = json.loads((recomputed / "evaluation.json").read_text())["after"]["all"]
    assert evaluate(recomputed, data=pictures / "val").scores["all"]["loss"] == pytest.approx(told["loss"], rel=1e-5)


@pytest.mark.one_backend(trains=True)
def test_a_child_is_compared_with_what_its_parent_predicted(finished, pictures, tmp_path):
    """`before` of a finished parent is the score of its result; training starts from its moving averages."""
    recomputed, _ = finished
    told = json.loads((recomputed / "evaluation.json").read_text())["after"]["all"]
    child = run_training(str(recomputed), add=[str(pictures / "new")], val_split=0.0, epochs=1, out=str(tmp_path / "2"))
    assert child.before["old"]["loss"] == pytest.approx(told["loss"], rel=1e-5)
    first = snapshot.read_snapshot(
        snapshot.snapshot_path(recomputed / "snapshots", runs.open_run(recomputed).result_step())
    )
    begun = runs.open_run(tmp_path / "2").record
    assert begun.statistics == "recomputed"
    assert "statistics/0" in first.arrays


@pytest.mark.one_backend(trains=True)
def test_an_interrupted_parent_is_scored_with_statistics_of_its_images(finished, pictures, tmp_path):
    """A run that was killed inside an epoch has only moving averages; its images give the statistics for `before`."""
    recomputed, _ = finished
    killed = tmp_path / "killed"
    shutil.copytree(recomputed, killed)
    make_interrupted(killed, "step-00000003")
    state = snapshot.read_snapshot(killed / "snapshots" / "step-00000003")
    assert not any(name.startswith("statistics/") for name in state.arrays)
    options = {"add": [str(pictures / "new")], "val_split": 0.0, "epochs": 1, "lr": 0.01}
    with_them = run_training(str(killed), out=str(tmp_path / "a"), **options)
    without = run_training(str(killed), out=str(tmp_path / "b"), bn_stats="moving", **options)
    assert with_them.before["all"]["loss"] != without.before["all"]["loss"]


def test_an_interrupted_run_is_evaluated_with_statistics_of_its_images(finished, pictures, tmp_path):
    """`eval` and `export` of a snapshot inside an epoch recompute them; without the images they say what they use."""
    recomputed, moving = finished
    losses = {}
    for name, run in (("recomputed", recomputed), ("moving", moving)):
        killed = tmp_path / name / "killed"
        shutil.copytree(run, killed)
        make_interrupted(killed, "step-00000003")
        found = evaluate(killed, data=pictures / "val")
        losses[name] = found.scores["all"]["loss"]
    child = kresume.plan(str(tmp_path / "recomputed/killed"), add=[str(pictures / "new")], lr=0.01, quiet=True)
    assert child.before["old"]["loss"] == pytest.approx(losses["recomputed"], rel=1e-4)
    assert losses["recomputed"] != pytest.approx(losses["moving"], rel=1e-3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "kresume.models.unscored.PictureReader.attempt",
            lambda reader, rows: (
                np.zeros((len(rows), 10, 10, 3), np.uint8),
                dict.fromkeys(range(len(rows)), "is gone"),
            ),
        )
        loaded = with_statistics(load(Subject(str(tmp_path / "recomputed/killed"))), Reporter(quiet=True))
    assert "moving averages of batch normalisation, which trail the weights, are used" in loaded.unfinished


@pytest.mark.one_backend(trains=True)
def test_a_run_without_the_record_keeps_moving_averages(tmp_path, pictures):
    """A run of a version that did not recompute continues with moving averages."""
    whole = trained(
        tmp_path / "run",
        every_snapshot=True,
        bn_stats="moving",
        data=[str(pictures / "old")],
        val_split=0.25,
        **BN_TINY,
    )
    lines = runs.read_metrics(whole / "metrics.jsonl")
    make_interrupted(whole, "step-00000003")
    record = json.loads((whole / "run.json").read_text())
    del record["statistics"], record["options"]["bn_stats"], record["given"]["bn_stats"]
    write_record(whole, record)
    run_training(out=str(whole))
    assert [line["all"] for line in runs.read_metrics(whole / "metrics.jsonl")] == [line["all"] for line in lines]
