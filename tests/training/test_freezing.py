"""Tests `--freeze` and `--unfreeze-at` on whole runs: what trains when, exactly, with slots kept."""

import dataclasses
import re
import shutil

import keras
import numpy as np
import pytest

import kresume
from kresume import runs
from kresume.checkpoints import sealed_arrays, snapshot
from kresume.errors import UsageError
from kresume.models import freeze
from kresume.reports.generation import compare_options
from kresume.values.freezing import Freezing
from tests.helpers.backends import few_under_jax
from tests.helpers.runs import TINY, kill_at_every_snapshot, result_arrays, run_training, trained

OPTIONS = {"batch_size": 5, "val_split": 0.25, "lr": 1e-3}
layers = keras.layers


@pytest.fixture(scope="module")
def place(tmp_path_factory, pictures):
    """Makes a folder with a parent run whose optimizer has slots."""
    folder = tmp_path_factory.mktemp("freezing")
    for name in ("old", "new"):
        shutil.copytree(pictures / name, folder / name)
    trained(folder / "parent", data=[str(folder / "old")], **TINY)
    return folder


def nested():
    """Builds a model with a model inside, both with a layer that is called `dense`."""
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(3), layers.BatchNormalization()], name="backbone")
    return keras.Sequential(
        [keras.Input((4,)), inner, layers.Dropout(0.1), layers.Dense(2), layers.Dense(2, name="top")]
    )


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        (["top"], ["top"]),
        (["dense"], ["backbone/dense", "dense"]),
        (["backbone"], ["backbone/dense", "backbone/batch_normalization"]),
        (["backbone/d*"], ["backbone/dense"]),
        (["*norm*", "top"], ["backbone/batch_normalization", "top"]),
        (["*"], ["backbone/dense", "backbone/batch_normalization", "dense", "top"]),
    ],
)
def test_patterns_are_compared_with_names_and_paths(patterns, names):
    """A pattern matches a layer, a path, or a model with all that is in it; the order is the model's."""
    model = nested()
    named = {address: name for address, (name, _) in freeze.layers_of(model).items()}
    assert [named[address] for address in freeze.matching(model, patterns)] == names
    with pytest.raises(
        UsageError, match=r"--freeze nothing matches no layer with weights; the model has backbone/dense"
    ):
        freeze.matching(model, [*patterns, "nothing"])


@pytest.mark.one_backend(trains=True)
def test_a_layer_inside_a_frozen_model_can_train():
    """Thawing a layer opens the models around it and leaves their other layers as they are."""
    model = nested()
    model.layers[0].trainable = False
    address = freeze.matching(model, ["backbone/dense"])
    freeze.set_frozen(model, Freezing(address, 2), 0)
    assert len(model.trainable_variables) == 4
    freeze.set_frozen(model, Freezing(address, 2), 2)
    assert [variable.path.split("/")[-2] for variable in model.trainable_variables[:2]] == [
        model.layers[0].layers[0].name
    ] * 2
    assert len(model.trainable_variables) == 6
    assert not model.layers[0].layers[1].trainable


def slots_by_weight(model, optimizer):
    """Returns the slots by attribute and address, of all weights that the optimizer trains."""
    return freeze.held_slots(model, optimizer, freeze.layers_of(model))


@pytest.mark.one_backend(trains=True)
def test_slots_are_held_and_given_back():
    """Slots that were held have equal bytes afterwards; weights without any start with a step count of their own."""
    from kresume.models import own_counts, slots

    model = nested()
    model.compile(keras.optimizers.Adam(), "mse")
    for _ in range(3):
        model.train_on_batch(np.ones((4, 4), "float32"), np.ones((4, 2), "float32"))
    before, whole = slots_by_weight(model, model.optimizer), model.optimizer
    address = freeze.matching(model, ["backbone/dense", "top"])
    held = freeze.held_slots(model, whole, address)
    assert len(held) == 8
    freeze.set_frozen(model, Freezing(address, 1), 0)
    part = keras.optimizers.Adam()
    part.build(model.trainable_variables)
    slots.carry(whole, part)
    assert slots_by_weight(model, part).keys() == before.keys() - held.keys()
    freeze.set_frozen(model, Freezing(address, 1), 1)
    again = keras.optimizers.Adam()
    again.build(model.trainable_variables)
    slots.carry(part, again)
    freeze.give_back(model, again, held, address, 3)
    after = slots_by_weight(model, again)
    assert {name: array.tobytes() for name, array in after.items()} == {
        name: array.tobytes() for name, array in before.items()
    }
    assert own_counts.counts_of(again) == {}
    again.iterations.assign(10)
    freeze.give_back(model, again, held, address, 3)
    assert set(own_counts.counts_of(again).values()) == {7}  # the moments have seen three of the ten steps
    freeze.give_back(model, again, {}, address, 3)
    assert set(own_counts.counts_of(again).values()) == {10}
    assert len(own_counts.counts_of(again)) == 4


def weights_of(arrays, names):
    return {name: arrays[name].tobytes() for name in names}


def test_frozen_layers_keep_their_bits_and_the_others_train(place):
    """Weights of frozen layers equal the parent's to the last bit; plain Keras loads the result with them frozen."""
    run_training(
        str(place / "parent"),
        add=[str(place / "new")],
        freeze=["conv*", "*norm*"],
        epochs=1,
        out=str(place / "1"),
        **OPTIONS,
    )
    before, after = (keras.models.load_model(place / name / "model.keras") for name in ("parent", "1"))
    for one, other in zip(before.layers, after.layers, strict=True):
        same = all(
            np.array(keras.ops.convert_to_numpy(a)).tobytes() == np.array(keras.ops.convert_to_numpy(b)).tobytes()
            for a, b in zip(one.weights, other.weights, strict=True)
        )
        assert same == (one.name != "head"), one.name
        assert other.trainable == (one.name == "head") or not one.weights
    record = runs.open_run(place / "1").record
    assert record.freezing.until is None
    # A child keeps them frozen without the option; a new model does not.
    for parent, told in ((record.parent, []), (None, ["--freeze"])):
        child = dataclasses.replace(record, options={}, parent=parent)
        assert [each.name for each in compare_options(record, child) if each.name == "--freeze"] == told
    child = kresume.plan(str(place / "1"), quiet=True, lr=1e-3)
    assert "4 of 5 layers with weights are frozen" in str(child) or "layers with weights are frozen: only head" in str(
        child
    )
    free = kresume.plan(str(place / "1"), quiet=True, lr=1e-3, freeze="none")
    assert re.search(r"freeze:   none; 2 of 3 layers .*; their optimizer state begins here\n", str(free))
    assert "are frozen: only" not in str(free)


THAWS = [
    ({"optimizer": "sgd", "lr": 0.01, "lr_schedule": "plateau"}, (2, -8)),
    ({"ema": 0.9}, (2, -8, -2)),
]


@pytest.mark.parametrize(("optimizer", "kills"), few_under_jax(THAWS, THAWS[:1]))
@pytest.mark.sample("optimizer0-kills0")
def test_a_run_that_thaws_continues_exactly(tmp_path, place, optimizer, kills):
    """Killed before and after the epoch in which layers begin to train, and at the end, it ends with the same bits."""
    options = {**OPTIONS, "epochs": 3, "freeze": ["conv*"], "unfreeze_at": 1, **optimizer}
    names = kill_at_every_snapshot(
        tmp_path, places=kills, checkpoint=str(place / "parent"), add=[str(place / "new")], **options
    )
    assert len(names) == len(kills)
    whole = runs.open_run(tmp_path / "whole")
    assert whole.held.is_file() == ("optimizer" not in optimizer or optimizer["optimizer"] != "sgd")
    taken = snapshot.list_snapshots(whole.snapshots)
    counts = [
        len([name for name in snapshot.read_snapshot(path).arrays if name.startswith("trainable/")])
        for _, path in taken
    ]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]


@pytest.mark.one_backend(trains=True)
def test_a_run_that_thaws_leaves_a_whole_parent(tmp_path, place):
    """Its result has slots for every layer: a child restores them all, and trains all."""
    run_training(
        str(place / "parent"),
        add=[str(place / "new")],
        freeze=["conv*"],
        unfreeze_at=1,
        epochs=2,
        out=str(tmp_path / "2"),
        **OPTIONS,
    )
    state = result_arrays(tmp_path / "2")
    parent = result_arrays(place / "parent")
    assert {name for name in state if name.startswith(("trainable", "optimizer"))} == {
        name for name in parent if name.startswith(("trainable", "optimizer"))
    }
    plan = kresume.plan(str(tmp_path / "2"), quiet=True, lr=1e-3)
    assert "start fresh" not in str(plan)
    assert "frozen" not in str(plan)


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize("average", [None, "0.5"])
@pytest.mark.sample("0.5")
def test_the_best_epoch_may_be_one_before_the_thaw(tmp_path, place, monkeypatch, average):
    """Its weights are the result, averaged or not, in a model whose layers all train by now."""
    from kresume.evaluation.live import LiveScorer

    score, seen = LiveScorer.score, []

    def found(scorer, reporter, label, *arguments, **options):
        result, answers = score(scorer, reporter, label, *arguments, **options)
        if label == "scoring":
            seen.append(label)
            result["all"]["loss"] = float(len(seen))
        return result, answers

    monkeypatch.setattr(LiveScorer, "score", found)
    run_training(
        str(place / "parent"), add=[str(place / "new")], freeze=["conv*"], unfreeze_at=1, epochs=2, monitor="val_loss",
        average=average, out=str(tmp_path / "2"), **OPTIONS,
    )  # fmt: skip
    run = runs.open_run(tmp_path / "2")
    assert run.record.best.epoch == 0
    before, after = (keras.models.load_model(path) for path in (place / "parent" / "model.keras", run.model))
    one, other = (
        next(layer for layer in model.layers if isinstance(layer, layers.Conv2D)) for model in (before, after)
    )
    assert np.array(one.kernel).tobytes() == np.array(other.kernel).tobytes()
    monkeypatch.setattr(LiveScorer, "score", score)
    assert kresume.export(run, tmp_path / "export", format="keras").parity.holds
    trained(tmp_path / "3", every_snapshot=True, checkpoint=str(run.path), lr=1e-3, epochs=1, batch_size=5)
    begun = snapshot.read_snapshot(tmp_path / "3" / "snapshots" / "step-00000000").arrays
    assert convolution_slots(begun) == convolution_slots(result_arrays(place / "parent"))  # the parent held them
    assert all(layer.trainable for layer in keras.models.load_model(tmp_path / "3" / "model.keras").layers)


def convolution_slots(arrays):
    """Returns the bytes of the optimizer's slots of the convolutions."""
    return {array.tobytes() for name, array in arrays.items() if name.startswith("optimizer") and array.ndim == 4}


@keras.saving.register_keras_serializable("freezing")
class WithToken(keras.Model):
    """A model that has a weight of its own beside its layers."""

    def __init__(self, **options):
        super().__init__(**options)
        self.token = self.add_weight(shape=(4,), name="token")
        self.body = layers.Dense(4, name="body")
        self.top = layers.Dense(2, name="top")

    def call(self, inputs):
        return self.top(self.body(inputs) + self.token)


@pytest.mark.one_backend(trains=True)
def test_a_layer_that_holds_a_training_layer_is_not_frozen():
    """Freezing a layer would freeze all that is in it; a block that is named with all its layers is frozen with its weights."""
    model = WithToken()
    model(np.zeros((1, 4), "float32"))
    assert freeze.closed(model, ["", "dense"]) == ("dense",)
    assert freeze.closed(model, ["", "dense", "dense_1"]) == ("", "dense", "dense_1")
    freeze.set_frozen(model, Freezing(freeze.matching(model, ["body"]), 1), 0)
    assert len(model.trainable_variables) == 3


@pytest.mark.one_backend
@pytest.mark.parametrize(
    ("before", "now", "found"),
    [
        ("Adam", "Adam", {"_momentums|a", "_velocities|a", "began|a"}),
        ("Adam", "AdamW", {"_momentums|a", "_velocities|a", "began|a"}),
        ("Lion", "Adam", set()),  # a momentum without the sizes that it is divided by
        ("Adam", "Lion", {"_momentums|a", "began|a"}),
        ("Adam", "Adamax", set()),
        ("SGD", "Adam", set()),
    ],
)
def test_held_slots_of_another_class_are_what_means_the_same(before, now, found):
    """As for layers that train: a momentum that is divided by sizes from zero makes steps of hundreds of times the rate."""
    kinds = {"Adam": ["_momentums", "_velocities"], "Lion": ["_momentums"], "SGD": ["momentums"]}[before]
    held = {f"{kind}|a": np.ones(2) for kind in kinds} | {"began|a": np.array(3)}
    assert set(freeze.held_for(held, before, now)) == found


@pytest.mark.one_backend
@pytest.mark.parametrize(
    ("before", "now", "began", "found"),
    [(2, 2, 4, 4), (1, 1, None, None), (1, 3, None, -20), (4, 1, None, 8), (2, 4, 4, 10 - 12), (4, 2, 3, 10 - 2)],
)
def test_held_slots_continue_at_their_update(before, now, began, found):
    """Slots that were frozen at ten batches have had as many updates under another number of batches per update."""
    held = {"_momentums|a": np.ones(2)} | ({} if began is None else {"began|a": np.array(began)})
    again = freeze.regrouped(held, before, now, 10)
    assert again.get("began|a") == found
    assert again["_momentums|a"] is held["_momentums|a"]


@pytest.mark.one_backend(trains=True)
def test_layers_of_a_parent_that_ended_too_early_train(tmp_path, place):
    """A child trains the layers that its parent froze for its first epochs, if the parent ended before them."""
    arguments = {"add": [str(place / "new")], "freeze": ["conv*"], "unfreeze_at": 2, "epochs": 3, **OPTIONS}
    run_training(str(place / "parent"), until="all.loss>=0", out=str(tmp_path / "2"), **arguments)
    plan = kresume.plan(str(tmp_path / "2"), quiet=True, lr=1e-3)
    assert "freeze:   none; " in str(plan)
    plan = kresume.plan(str(tmp_path / "2"), quiet=True, lr=1e-3, freeze="*norm*", unfreeze_at=1, epochs=2)
    line = next(line for line in str(plan).splitlines() if line.startswith("freeze:"))
    assert re.search(r"for the first epoch: .*; \d+ more as in the checkpoint: conv2d", line), line
    slots = {}
    for name, optimizer in (("3", "keep"), ("4", "adamw:reset")):
        out = tmp_path / name
        trained(
            out,
            every_snapshot=True,
            checkpoint=str(tmp_path / "2"),
            lr=1e-3,
            epochs=1,
            batch_size=5,
            optimizer=optimizer,
        )
        assert all(layer.trainable for layer in keras.models.load_model(out / "model.keras").layers)
        slots[name] = convolution_slots(snapshot.read_snapshot(out / "snapshots" / "step-00000000").arrays)
    expected = convolution_slots(result_arrays(place / "parent"))
    again = {"freeze": ["conv*"], "unfreeze_at": 1, "epochs": 2, "lr": 1e-3, "batch_size": 5}
    trained(tmp_path / "5", every_snapshot=True, checkpoint=str(tmp_path / "2"), **again)
    held = sealed_arrays.read(tmp_path / "5" / "held.safetensors")
    assert {array.tobytes() for array in held.values() if array.ndim == 4} == expected
    child, steps = runs.open_run(tmp_path / "5"), runs.open_run(place / "parent").result_step()
    state = snapshot.read_snapshot(snapshot.snapshot_path(child.snapshots, child.result_step()))
    since = {count for _, count in state.records["structure"]["own_counts"]}  # as many steps as they had trained
    assert child.record.iterations + child.record.amount.boundaries[0] - steps in since
    assert slots["3"] == expected  # its parent held them, and they are its grandparent's
    assert not slots["4"] & expected


@pytest.mark.one_backend(trains=True)
def test_averages_of_the_parent_count(tmp_path, place):
    """A parent with `--ema` is scored with its averages, and frozen layers are those that it predicts with."""
    parent = str(tmp_path / "ema")
    options = {**TINY, "ema": 0.8}
    run_training(data=[str(place / "old")], out=parent, **options)
    plan = kresume.plan(parent, add=[str(place / "new")], quiet=True, **OPTIONS)
    assert plan.before["old"] == runs.open_run(parent).record.result.scores["all"]
    run_training(parent, add=[str(place / "new")], freeze=["conv*"], epochs=1, out=str(tmp_path / "2"), **OPTIONS)
    one, other = (keras.models.load_model(f"{path}/model.keras") for path in (parent, tmp_path / "2"))
    for before, after in zip(one.layers, other.layers, strict=True):
        if isinstance(before, layers.Conv2D):
            assert np.array(before.kernel).tobytes() == np.array(after.kernel).tobytes()


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"freeze": ["*"]}, "every layer of the model would be frozen at first"),
        ({"freeze": ["nothing"]}, "freeze='nothing' matches no layer with weights; the model has conv2d"),
        ({"freeze": ["conv*"], "unfreeze_at": 3}, "unfreeze_at=3: the run has 3 epochs"),
        ({"unfreeze_at": 1}, "no layer of the checkpoint is frozen"),
        ({"freeze": ["none", "conv*"]}, "freeze='none' freezes nothing"),
    ],
)
def test_what_cannot_be_frozen_is_refused(place, options, words):
    """A pattern without a layer, nothing left to train, and an epoch after the end are usage errors."""
    with pytest.raises(UsageError, match=words):
        kresume.plan(str(place / "parent"), add=[str(place / "new")], quiet=True, **{**OPTIONS, "epochs": 3, **options})


@pytest.mark.one_backend(trains=True)
def test_the_plan_says_what_is_frozen(place):
    """The plan has a line with the layers, their number and the epochs."""
    plan = kresume.plan(
        str(place / "parent"), add=[str(place / "new")], quiet=True, freeze="conv*", unfreeze_at=1, epochs=3, **OPTIONS
    )
    assert "layers for the first epoch: conv2d" in str(plan)
