"""Tests that the requested rate trains: read from the optimizer, and from its update.

Runs under this backend.
"""

import json
import math

import keras
import numpy as np
import pytest

import kresume
from kresume.checkpoints.inspect import describe
from kresume.checkpoints.read import read_checkpoint
from kresume.errors import UsageError
from kresume.models.load import Subject, load
from kresume.models.losses import choose_loss
from kresume.options.table import TrainConfig
from kresume.training.adjust import Adjustment, adjust
from kresume.training.plan.parent import Parent, restore_parent, saved_rate, wanted_optimizer
from kresume.training.plan.rate import decide_rate, keras_rate, look_ahead
from kresume.values.amount import Amount
from kresume.values.card import Card
from tests.helpers.backends import few_under_jax
from tests.helpers.pictures import CLASSES
from tests.helpers.runs import run_training

STEPS, DONE, SIDE, BATCH = 8, 5, 4, 3
FLOAT, PEAK = 0.02, 0.04
CARD = Card(("a", "b", "c"), (SIDE, SIDE), "0-1", "stretch", "area")


def batch(step):
    rng = np.random.default_rng(step)
    return rng.uniform(0, 1, (BATCH, SIDE, SIDE, 3)).astype("float32"), np.arange(BATCH).astype("int32")


@keras.saving.register_keras_serializable("mine")
class Halved(keras.optimizers.schedules.LearningRateSchedule):
    """A user's own schedule: no setting of it is called a rate."""

    def __init__(self, a=PEAK):
        self.a = a

    def __call__(self, step):
        return self.a / (1.0 + keras.ops.cast(step, "float32") / 10.0)

    def get_config(self):
        return {"a": self.a}


COMPILED = """import keras

def build():
    model = keras.Sequential([keras.Input((4, 4, 3)), keras.layers.Flatten(), keras.layers.Dense(3, activation="softmax")])
    model.compile(keras.optimizers.SGD(keras.saving.get_registered_object("mine>Halved")()), "sparse_categorical_crossentropy")
    return model
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Writes a checkpoint at a float rate, one at a schedule and one at a user's own schedule, after five steps.

    Each is written as `.keras`, as `.h5` and as `.weights.h5`.
    """
    folder = tmp_path_factory.mktemp("rates")
    rates = {"float": FLOAT, "schedule": keras.optimizers.schedules.ExponentialDecay(PEAK, 10, 0.5), "custom": Halved()}
    (folder / "compiled.py").write_text(COMPILED)
    for name, rate in rates.items():
        layers = [keras.Input((SIDE, SIDE, 3)), keras.layers.Flatten(), keras.layers.Dense(3, activation="softmax")]
        model = keras.Sequential(layers)
        model.compile(keras.optimizers.SGD(rate), "sparse_categorical_crossentropy")
        for step in range(DONE):
            model.train_on_batch(*batch(step))
        (folder / "architecture.json").write_text(
            json.dumps({**keras.saving.serialize_keras_object(model), "compile_config": None})
        )
        model.save(folder / f"{name}.keras")
        model.save(folder / f"{name}.h5")
        model.save_weights(folder / f"{name}.weights.h5")
    return folder


def adjusted(path, compiled=False, **options):
    """Returns the model as `train` begins with it, and its plan; with `compiled`, the rate may be that of the function."""
    config = TrainConfig(from_=str(path), **options)
    parent = Parent(read_checkpoint(path), None, None)
    live = restore_parent(config, parent, num_classes=3, image_size=None)
    wanted = wanted_optimizer(live.saved, config, live.model)
    rate = decide_rate(
        saved=saved_rate(config, parent, live, wanted) if compiled else parent.state.rate,
        optimizer=wanted.class_name,
        steps=STEPS,
        lr=config.lr,
        lr_scale=config.lr_scale,
        schedule=config.lr_schedule,
        warmup_steps=config.warmup_steps,
        adds_images=True,
    )
    rate, _ = look_ahead(rate, live.iterations)
    loss, amount = choose_loss(live.model, saved=parent.state.compiled), Amount(1, STEPS, BATCH, (STEPS,), "")
    to = Adjustment(wanted, rate, live.iterations, loss, CARD, amount)
    adjust(live.model, to, restored=live.optimizer)
    return live.model, rate


def cosine(peak, step, warmup=1):
    """Computes half a cosine after one warm-up step, as documented."""
    return (
        peak * (step + 1) / warmup
        if step < warmup
        else 0.5 * peak * (1 + math.cos(math.pi * (step - warmup) / (STEPS - warmup)))
    )


def held(peak, step):
    return peak


def decayed(_, step):
    return PEAK * 0.5 ** ((DONE + step) / 10)


def reference(weights, rate, step):
    """Returns the weights after one step of plain SGD at this rate."""
    layers = [keras.Input((SIDE, SIDE, 3)), keras.layers.Flatten(), keras.layers.Dense(3, activation="softmax")]
    model = keras.Sequential(layers)
    model.compile(keras.optimizers.SGD(rate), "sparse_categorical_crossentropy")
    model.set_weights([np.array(each) for each in weights])  # JAX may train in the buffer that it is given
    model.train_on_batch(*batch(step))
    return model.get_weights()


CASES = {
    "keep": ({"lr_schedule": "keep"}, FLOAT, PEAK, held),
    "lr": ({"lr": 0.005}, 0.005, 0.005, cosine),
    "lr-scale": ({"lr_scale": 0.1}, 0.1 * FLOAT, 0.1 * PEAK, cosine),
    "constant": ({"lr_schedule": "constant"}, FLOAT, PEAK, held),
    "cosine": ({"lr_schedule": "cosine"}, FLOAT, PEAK, cosine),
    "rewarm-cosine": ({"lr_schedule": "rewarm-cosine"}, FLOAT, PEAK, cosine),
    "plateau": ({"lr_schedule": "plateau"}, FLOAT, PEAK, held),
    "lr, constant": ({"lr": 0.005, "lr_schedule": "constant"}, 0.005, 0.005, held),
    "lr-scale, constant": ({"lr_scale": 0.1, "lr_schedule": "constant"}, 0.1 * FLOAT, 0.1 * PEAK, held),
    "nothing": ({}, FLOAT, PEAK, cosine),
}


@pytest.mark.parametrize("saved", ["float", "schedule"])
@pytest.mark.parametrize("case", few_under_jax(CASES, ["rewarm-cosine", "plateau"]))
def test_the_rate_that_was_asked_for_trains(written, saved, case):
    """The requested rate trains at the first and last step, in the optimizer and in plain SGD's update."""
    options, of_float, of_schedule, shape = CASES[case]
    if case == "keep" and saved == "schedule":
        shape = decayed
    model, _ = adjusted(written / f"{saved}.keras", **options)
    peak = of_float if saved == "float" else of_schedule
    for step in range(STEPS):
        if step in {0, STEPS - 1}:
            expected = shape(peak, step)
            assert int(model.optimizer.iterations) == DONE + step
            assert float(keras.ops.convert_to_numpy(model.optimizer.learning_rate)) == pytest.approx(expected, rel=1e-5)
            after = reference(model.get_weights(), expected, 100 + step)
        model.train_on_batch(*batch(100 + step))
        if step in {0, STEPS - 1}:
            for ours, theirs in zip(model.get_weights(), after, strict=True):
                np.testing.assert_allclose(ours, theirs, atol=1e-7)


def test_weights_alone_keep_their_float_and_have_lost_their_schedule(written):
    """A `.weights.h5` keeps a float rate but no schedule, so `keep` is refused there."""
    model, plan = adjusted(
        written / "float.weights.h5", model=str(written / "float.keras"), optimizer="sgd", lr_schedule="keep"
    )
    assert plan.checkpoint == pytest.approx(FLOAT)
    assert float(keras.ops.convert_to_numpy(model.optimizer.learning_rate)) == pytest.approx(FLOAT)
    with pytest.raises(UsageError, match="needs a checkpoint whose rate is known"):
        adjusted(
            written / "schedule.weights.h5", model=str(written / "float.keras"), optimizer="sgd", lr_schedule="keep"
        )


def halved(_, step):
    return PEAK / (1.0 + (DONE + step) / 10.0)


ASKS = "custom schedule .Halved., whose peak cannot be read: give --lr, .*--lr-schedule keep"
OWN_SCHEDULE = {
    "lr": ({"lr": 0.005}, cosine),
    "lr, constant": ({"lr": 0.005, "lr_schedule": "constant"}, held),
    "lr, fresh": ({"lr": 0.005, "lr_schedule": "constant", "optimizer": "sgd:reset"}, held),
    "keep": ({"lr_schedule": "keep"}, halved),
    "lr-scale": ({"lr_scale": 0.1}, ASKS),
    "cosine": ({"lr_schedule": "cosine"}, ASKS),
    "constant": ({"lr_schedule": "constant"}, ASKS),
    "nothing": ({}, ASKS),
}
IN_FILES = ["custom.keras", "custom.h5", "custom.weights.h5"]


@pytest.mark.filterwarnings("ignore:.*HDF5 file")
@pytest.mark.parametrize("file", few_under_jax(IN_FILES, ["custom.keras"]))
@pytest.mark.parametrize("case", OWN_SCHEDULE)
def test_a_checkpoint_with_a_schedule_of_the_users_trains(written, file, case):
    """A user's own schedule is replaced by `--lr` or goes on; only what needs its peak is refused, with both ways on."""
    options, shape = OWN_SCHEDULE[case]
    if file.endswith(".weights.h5"):
        options = {"model": f"{written / 'compiled.py'}:build", "compiled": True, **options}
    if isinstance(shape, str):
        with pytest.raises(UsageError, match=shape):
            adjusted(written / file, **options)
        return
    model, plan = adjusted(written / file, **options)
    assert plan.checkpoint is None
    assert plan.peak == pytest.approx(0.005 if "lr" in options else halved(None, 0))
    expected = shape(0.005, 0)
    assert float(keras.ops.convert_to_numpy(model.optimizer.learning_rate)) == pytest.approx(expected, rel=1e-5)
    after = reference(model.get_weights(), expected, 100)
    model.train_on_batch(*batch(100))
    for ours, theirs in zip(model.get_weights(), after, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-7)


@pytest.mark.filterwarnings("ignore:.*HDF5 file")
@pytest.mark.parametrize("file", IN_FILES[:2])
def test_a_schedule_whose_class_is_not_here_is_needed_to_go_on_alone(written, monkeypatch, file):
    """Without the class of its schedule a checkpoint is inspected, predicts, and trains at `--lr`."""
    monkeypatch.delitem(keras.saving.get_custom_objects(), "mine>Halved")
    found = describe(read_checkpoint(written / file))
    assert (found.rate["value"], found.rate["schedule"]) == (None, "Halved")
    assert "rate        a custom schedule, Halved, which does not say its peak" in str(found)
    assert any("--lr F; or --lr-schedule keep" in missing for missing in found.missing)
    assert load(Subject(str(written / file)), anonymous=True).model.count_params() == 147
    assert adjusted(written / file, lr=0.005)[1].peak == 0.005
    with pytest.raises(UsageError, match=r"not known here, Halved: register it with --import FILE.py .*or give --lr"):
        adjusted(written / file, lr_schedule="keep")


def test_a_schedule_that_the_file_does_not_hold_asks_for_a_rate(written, pictures, quiet):
    """If the file does not hold its schedule, the command is refused until `--lr` gives the rate."""
    from kresume.options.resolve import from_arguments
    from kresume.training.preview import make_plan

    arguments = {
        "data": [str(pictures / "old")],
        "model": str(written / "architecture.json"),
        "optimizer": "sgd",
        "pixels": "0-1",
        "classes": ",".join(CLASSES),  # after five steps on noise, another order may fit by chance
    }
    path = str(written / "schedule.weights.h5")
    with pytest.raises(UsageError, match=r"does not say its learning rate .*give --lr, the rate"):
        make_plan(from_arguments(path, arguments), quiet)
    assert make_plan(from_arguments(path, {**arguments, "lr": 0.01}), quiet).rate.peak == 0.01


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize("precision", ["float32", "mixed_float16"])
@pytest.mark.sample("mixed_float16")
def test_a_schedule_that_goes_on_is_in_the_result_and_in_its_exports(pictures, tmp_path, precision):
    """Plain Keras trains on at the rate of the next step; kresume continues the schedule from the file alone, too."""
    keras.config.set_dtype_policy(precision)
    layers = [
        keras.Input((4, 4, 3)),
        keras.layers.Flatten(),
        keras.layers.Dense(3),
        keras.layers.Softmax(dtype="float32"),
    ]
    model = keras.Sequential(layers)
    model.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(3e-3, 40)), "sparse_categorical_crossentropy"
    )
    model.fit(np.random.default_rng(0).random((8, 4, 4, 3)), np.arange(8) % 3, batch_size=1, epochs=3, verbose=0)
    model.save(tmp_path / "parent.keras")
    options = {
        "data": [str(pictures / "old")],
        "pixels": "0-1",
        "classes": ",".join(CLASSES),
        "batch_size": 4,
        "val_split": 0,
        "cache": "off",  # likenesses of pictures of 4x4 pixels would be those of the session's pictures
    }
    path = tmp_path / "run"
    run_training(str(tmp_path / "parent.keras"), out=str(path), lr_schedule="keep", steps=4, **options)
    kresume.export(path, tmp_path / "exported", format="keras")
    kresume.export(path, tmp_path / "weights", format="weights-h5")
    exported = next((tmp_path / "exported").rglob("*.keras"))
    beside = next((tmp_path / "weights").rglob("model.json")).parent
    for written in (path / "model.keras", exported, beside):
        rate = 0.5 * 3e-3 * (1 + np.cos(np.pi * 28 / 40))
        if written == beside:
            found = keras.saving.deserialize_keras_object(json.loads((beside / "optimizer.json").read_text()))
            rebuilt = keras.saving.deserialize_keras_object(json.loads((beside / "model.json").read_text()))
            found.build(rebuilt.trainable_variables)
            rebuilt.compile(found, "sparse_categorical_crossentropy")
            rebuilt.load_weights(beside / "model.weights.h5")
        else:
            found = keras.models.load_model(written).optimizer
        assert int(found.iterations) == 28
        assert float(found.learning_rate) == pytest.approx(rate, rel=1e-5)
        plan = kresume.plan(written, lr_schedule="keep", steps=4, quiet=True, **options)
        assert plan.rate.saved["class_name"] == "CosineDecay"
    held = run_training(str(path), out=str(tmp_path / "own"), lr_schedule="cosine", lr=0.1, steps=2, **options).run
    assert float(keras.models.load_model(f"{held}/model.keras").optimizer.learning_rate) == pytest.approx(0.1)


def test_the_schedule_of_a_compiled_model_goes_on(written, pictures, quiet, tmp_path):
    """A schedule that the function compiles continues at its step with `keep`, though the file lacks it."""
    from kresume.options.resolve import from_arguments
    from kresume.training.preview import make_plan

    (tmp_path / "mymodel.py").write_text(
        "import keras\n\ndef build():\n"
        "    model = keras.Sequential([keras.Input((4, 4, 3)), keras.layers.Flatten(),\n"
        "                              keras.layers.Dense(3, activation='softmax')])\n"
        "    model.compile(keras.optimizers.SGD(keras.optimizers.schedules.ExponentialDecay(0.04, 10, 0.5)))\n"
        "    return model\n"
    )
    arguments = {
        "data": [str(pictures / "old")],
        "model": f"{tmp_path / 'mymodel.py'}:build",
        "pixels": "0-1",
        "classes": ",".join(CLASSES),
    }
    plan = make_plan(from_arguments(str(written / "schedule.weights.h5"), arguments), quiet)
    assert (plan.rate.schedule, plan.rate.saved["class_name"]) == ("keep", "ExponentialDecay")
    assert float(keras_rate(plan.rate, DONE)(DONE)) == pytest.approx(decayed(None, 0))
