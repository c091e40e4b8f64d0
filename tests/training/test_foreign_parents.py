"""Tests foreign parents: weights alone, Keras's backup folder, another precision, another optimizer."""

import json
import runpy
import shutil
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from kresume import runs
from kresume.checkpoints.keras_arrays import OPTIMIZERS, class_of
from kresume.checkpoints.read import read_checkpoint
from kresume.errors import CheckpointError, ModelError, RestoreError, UsageError
from kresume.exports.export import export
from kresume.models import build, precision, restore, slot_forms, slots
from kresume.options.resolve import from_arguments
from kresume.options.table import TrainConfig
from kresume.training.plan.parent import Parent, restore_parent
from kresume.training.preview import make_plan
from tests.helpers.backends import few_under_jax
from tests.helpers.pictures import CLASSES
from tests.helpers.runs import TINY, assert_same_bytes, result_arrays, run_training
from tests.helpers.steps import step_at_random

SIZE = 12
MODEL = """
import keras

def build(num_classes=3, compiled=False):
    model = keras.Sequential([
        keras.Input((12, 12, 3)), keras.layers.Rescaling(1 / 255), keras.layers.Conv2D(4, 3, strides=2),
        keras.layers.BatchNormalization(), keras.layers.Flatten(), keras.layers.Dense(num_classes, activation="softmax"),
    ])
    return model

def compiled():
    model = build()
    model.compile(keras.optimizers.RMSprop(1e-2, momentum=0.9))
    return model
"""


@pytest.fixture
def script(tmp_path):
    (tmp_path / "mymodel.py").write_text(MODEL)
    return tmp_path / "mymodel.py"


def trained(script, optimizer, steps=3, policy="float32"):
    """Returns the script's model after a few steps of plain Keras."""
    namespace = {}
    exec(script.read_text(), namespace)
    keras.config.set_dtype_policy(policy)
    try:
        model = namespace["build"]()
        model.compile(optimizer, "sparse_categorical_crossentropy")
        step_at_random(model, steps)
    finally:
        keras.config.set_dtype_policy("float32")
    return model


def numpy(variables):
    return {str(place): np.asarray(keras.ops.convert_to_numpy(v)) for place, v in enumerate(variables)}


def parent_of(path, script=None, **options):
    """Restores the parent as `train` does."""
    if script is not None:
        options.setdefault("model", f"{script}:build")
    parent = Parent(read_checkpoint(path), None, None)
    return parent, restore_parent(
        TrainConfig(from_=str(path), **options), parent, num_classes=len(CLASSES), image_size=None
    )


# --- weights without names --------------------------------------------------------------------------------------------


FORMS = [
    (lambda: keras.optimizers.Adam(1e-2), "adam"),
    (lambda: keras.optimizers.AdamW(1e-2, use_ema=True), "adamw"),
    (lambda: keras.optimizers.SGD(1e-2, momentum=0.9), "sgd"),
    (lambda: keras.optimizers.SGD(1e-2), "sgd"),
    (lambda: keras.optimizers.RMSprop(1e-2), "rmsprop"),
    (lambda: keras.optimizers.Lion(1e-2), "lion"),
    (lambda: keras.optimizers.Nadam(1e-2), "nadam"),
    (lambda: keras.optimizers.Adamax(1e-2), "adamax"),
    (lambda: keras.optimizers.Adagrad(1e-2), "adagrad"),
    (lambda: keras.optimizers.Adadelta(1e-2), "adadelta"),
    (lambda: keras.optimizers.Adafactor(1e-2), "adafactor"),
    (
        lambda: keras.optimizers.Adafactor(keras.optimizers.schedules.CosineDecay(1e-2, 50), use_ema=True),
        "adafactor",
    ),
    (lambda: keras.optimizers.Ftrl(1e-2), "ftrl"),
    (lambda: keras.optimizers.Lamb(1e-2), "lamb"),
    (lambda: keras.optimizers.Muon(1e-2), "muon"),
    (lambda: keras.optimizers.Adam(1e-2, amsgrad=True), "adam"),
    (lambda: keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(1e-2, 50)), "adam"),
]


# Under JAX: slots, averages, rows and columns, a schedule.
@pytest.mark.parametrize(("make", "name"), few_under_jax(FORMS, [FORMS[1], FORMS[2], FORMS[11], FORMS[16]]))
def test_weights_alone_restore_with_the_name_of_their_optimizer(script, tmp_path, make, name):
    """`--optimizer NAME` finds the form that fits: every weight and slot is restored bit for bit."""
    model = trained(script, make())
    model.save_weights(tmp_path / "m.weights.h5")
    parent, live = parent_of(tmp_path / "m.weights.h5", script, optimizer=name)
    assert_same_bytes(numpy(model.variables), numpy(live.model.variables))
    one, other = slots.slot_lists(model.optimizer), slots.slot_lists(live.optimizer)
    assert one.keys() == other.keys()
    for attribute in one:
        assert_same_bytes(numpy(one[attribute]), numpy(other[attribute]))
    assert (parent.state.step, live.iterations) == (3, 3)


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize(("make", "name"), [*FORMS[:11], *FORMS[12:]])
def test_checkpoints_of_tensorflow_restore_with_the_name_of_their_optimizer(script, tmp_path, make, name):
    """So do `tf.train.Checkpoint`s, whose variables have numbers: a schedule has none, and all others are lower by one."""
    model = trained(script, make())
    tf.train.Checkpoint(model=model, optimizer=model.optimizer).save(str(tmp_path / "ckpt"))
    _, live = parent_of(tmp_path, script, optimizer=name)
    assert_same_bytes(numpy(model.variables), numpy(live.model.variables))
    one, other = slots.slot_lists(model.optimizer), slots.slot_lists(live.optimizer)
    assert one.keys() == other.keys()
    for attribute in one:
        assert_same_bytes(numpy(one[attribute]), numpy(other[attribute]))
    assert live.iterations == 3


@pytest.mark.one_backend(trains=True)
def test_averages_of_adafactor_in_a_checkpoint_of_tensorflow_need_the_function(script, tmp_path):
    """Its forms cannot be told apart there: the error names the way on, and nothing is taken for another slot."""
    model = trained(script, FORMS[11][0]())
    tf.train.Checkpoint(model=model, optimizer=model.optimizer).save(str(tmp_path / "ckpt"))
    with pytest.raises(RestoreError, match="compile the checkpoint's class and settings in the function of --model"):
        parent_of(tmp_path, script, optimizer="adafactor")


def test_a_class_that_no_name_begins_is_taken_as_the_users_function_compiles_it(script, tmp_path):
    """An optimizer whose class no option names is restored if the user's function compiles it.

    It is ScheduleFreeAdamW, whose momentum begins as the weights.
    """
    model = trained(script, keras.optimizers.ScheduleFreeAdamW(1e-2))
    model.save_weights(tmp_path / "m.weights.h5")
    with pytest.raises(UsageError, match="to use another class, compile it in the function of --model"):
        parent_of(tmp_path / "m.weights.h5", script, optimizer="schedulefreeadamw")
    code = tmp_path / "free.py"
    code.write_text(
        MODEL + "\ndef free():\n    model = build()\n    model.compile(keras.optimizers.ScheduleFreeAdamW(1e-2))\n"
        "    return model\n"
    )
    _, live = parent_of(tmp_path / "m.weights.h5", model=f"{code}:free")
    assert_same_bytes(numpy(model.optimizer._momentums), numpy(live.optimizer._momentums))
    assert_same_bytes(numpy(model.optimizer._velocities), numpy(live.optimizer._velocities))


def test_several_optimizers_in_one_are_refused_with_a_way_on(script, tmp_path):
    """A MultiOptimizer is refused, because no single class has its arrays; the named fresh start works."""
    made = trained(script, "sgd", steps=0)
    kinds = keras.optimizers.OptimizerMap(default_optimizer=keras.optimizers.Adam(1e-2))
    model = trained(script, keras.optimizers.MultiOptimizer(kinds))
    model.save_weights(tmp_path / "m.weights.h5")
    with pytest.raises(CheckpointError, match="reset"):
        parent_of(tmp_path / "m.weights.h5", script)
    _, live = parent_of(tmp_path / "m.weights.h5", script, optimizer="adamw:reset")
    assert_same_bytes(numpy(model.variables), numpy(live.model.variables))
    assert made.count_params() == live.model.count_params()


def test_an_unnamed_optimizer_is_an_error_that_names_those_that_fit(script, tmp_path):
    """An unnamed optimizer, or one whose slots do not fit, is an error that names those that fit."""
    trained(script, keras.optimizers.Adam(1e-2)).save_weights(tmp_path / "m.weights.h5")
    with pytest.raises(CheckpointError, match=r"--optimizer NAME \(its state would fit: adam, adamw, adamax, lamb\)"):
        parent_of(tmp_path / "m.weights.h5", script)
    with pytest.raises(CheckpointError, match=r"not those of SGD .*its state would fit: adam, "):
        parent_of(tmp_path / "m.weights.h5", script, optimizer="sgd")
    with pytest.raises(CheckpointError, match=r"not those of RMSprop as the model's function compiles it"):
        parent_of(tmp_path / "m.weights.h5", script, model=f"{script}:compiled")
    with pytest.raises(ModelError, match="no architecture: give the model"):
        parent_of(tmp_path / "m.weights.h5", optimizer="adam")


def test_a_compiled_model_names_the_optimizer_and_its_settings(script, tmp_path):
    """The function that compiles the model names the optimizer and its settings.

    RMSprop with momentum has the same slots as a centered one.
    """
    model = trained(script, keras.optimizers.RMSprop(1e-2, momentum=0.9))
    model.save_weights(tmp_path / "m.weights.h5")
    _, live = parent_of(tmp_path / "m.weights.h5", script, model=f"{script}:compiled")
    assert live.optimizer.momentum == 0.9
    assert_same_bytes(numpy(model.optimizer._momentums), numpy(live.optimizer._momentums))
    with pytest.raises(
        CheckpointError, match=r"fits RMSprop with momentum=0.9 or centered=True, and does not record which"
    ):
        parent_of(tmp_path / "m.weights.h5", script, optimizer="rmsprop")


def test_a_users_own_optimizer_is_found_by_its_registered_name(script, tmp_path):
    """A user's optimizer is found by its registered name `package>name`.

    Without the code, the error says which file to give.
    """

    @keras.saving.register_keras_serializable("mine")
    class MyAdam(keras.optimizers.Adam):
        """An Adam under another name."""

    try:
        model = trained(script, MyAdam(1e-2))
        model.save(tmp_path / "m.keras")
        _, live = parent_of(tmp_path / "m.keras")
        assert type(live.optimizer) is MyAdam
        assert_same_bytes(numpy(model.optimizer._velocities), numpy(live.optimizer._velocities))
        assert live.iterations == 3
    finally:
        keras.saving.get_custom_objects().pop("mine>MyAdam")
    with pytest.raises(CheckpointError, match=r"optimizer mine>MyAdam cannot be built .*--import FILE.py"):
        parent_of(tmp_path / "m.keras")
    assert class_of({"class_name": "Custom>Adam", "config": {}}) == "Adam"  # as Keras 2 wrote it


@pytest.mark.one_backend(trains=True)
def test_what_leaves_no_trace_in_a_file_is_said(script, tmp_path):
    """Settings that leave no trace in a file are assumed to be Keras's defaults, and a line says so.

    These are Nesterov, AdamW's decay, that of averages, betas, epsilons and clipping. An option overrides them.
    """
    betas = "beta_1=0.9, beta_2=0.999, epsilon=1e-07"
    for optimizer, name, words in (
        (keras.optimizers.SGD(1e-2, momentum=0.9), "sgd", "SGD: momentum=0.9, nesterov=False, no clipping assumed"),
        (keras.optimizers.SGD(1e-2, clipnorm=1.0), "sgd", "SGD: no clipping assumed"),
        (keras.optimizers.AdamW(1e-2), "adamw", f"AdamW: weight_decay=0.004, {betas}, no clipping assumed"),
        (
            keras.optimizers.Adam(1e-2, use_ema=True), "adam",
            f"Adam: use_ema=True, ema_momentum=0.99, {betas}, no clipping assumed",
        ),
        (keras.optimizers.Adam(1e-2, beta_1=0.5), "adam", f"Adam: {betas}, no clipping assumed"),
        (keras.optimizers.RMSprop(1e-2, rho=0.5), "rmsprop", "RMSprop: rho=0.9, epsilon=1e-07, no clipping assumed"),
    ):  # fmt: skip
        trained(script, optimizer).save_weights(tmp_path / "m.weights.h5")
        _, live = parent_of(tmp_path / "m.weights.h5", script, optimizer=name)
        assert live.summary.endswith(words)
    trained(script, keras.optimizers.AdamW(1e-2)).save_weights(tmp_path / "m.weights.h5")
    _, live = parent_of(tmp_path / "m.weights.h5", script, optimizer="adamw", weight_decay=0.02)
    assert live.summary.endswith(f"AdamW: {betas}, no clipping assumed")


SCHEDULED = """

def scheduled():
    model = build()
    rate = keras.optimizers.schedules.CosineDecay(1e-3, 100, warmup_target=2e-3, warmup_steps=5)
    model.compile(keras.optimizers.Adam(rate, clipnorm=1.0), "sparse_categorical_crossentropy")
    return model
"""


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize("kind", ["tf-checkpoint", "weights"])
def test_the_schedule_of_the_users_function_is_restored_into_and_exported(script, tmp_path, kind):
    """A schedule of the user's function is restored and exported although the file does not hold it.

    Its variables match those of the file.
    """
    code = tmp_path / "scheduled.py"
    code.write_text(script.read_text() + SCHEDULED)
    model = runpy.run_path(str(code))["scheduled"]()
    for _ in range(3):
        model.train_on_batch(np.ones((6, SIZE, SIZE, 3), "float32"), np.arange(6) % 3)
    path = tmp_path / ("ckpt" if kind == "tf-checkpoint" else "m.weights.h5")
    if kind == "tf-checkpoint":
        if keras.config.backend() != "tensorflow":
            pytest.skip("written by TensorFlow")
        import tensorflow as tf

        tf.train.Checkpoint(model=model).save(str(path / "ckpt"))
    else:
        model.save_weights(path)
    _, live = parent_of(path, model=f"{code}:scheduled")
    assert live.iterations == 3
    assert_same_bytes(numpy(model.optimizer._velocities), numpy(live.optimizer._velocities))
    result = export(path, tmp_path / "out", format="keras", model=f"{code}:scheduled", classes=CLASSES, pixels="0-255")
    loaded = keras.models.load_model(Path(result.path) / "model.keras")
    assert isinstance(loaded.optimizer._learning_rate, keras.optimizers.schedules.CosineDecay)
    assert_same_bytes(numpy(model.optimizer._velocities), numpy(loaded.optimizer._velocities))
    assert loaded.optimizer.clipnorm == 1.0


def test_an_export_finds_the_form_of_an_unnamed_optimizer_as_training_does(script, tmp_path):
    """An export finds the form of an unnamed optimizer, as training does.

    It is SGD with momentum, the most common; its slots tell.
    """
    model = trained(script, keras.optimizers.SGD(1e-2, momentum=0.9))
    model.save_weights(tmp_path / "m.weights.h5")
    options = {"format": "keras", "model": f"{script}:build", "classes": CLASSES, "pixels": "0-255"}
    result = export(tmp_path / "m.weights.h5", tmp_path / "out", optimizer="sgd", **options)
    loaded = keras.models.load_model(Path(result.path) / "model.keras")
    assert_same_bytes(numpy(model.optimizer.momentums), numpy(loaded.optimizer.momentums))
    assert (
        "momentum=0.9, nesterov=False, no clipping assumed"
        in json.loads((Path(result.path) / "export.json").read_text())["weights"]
    )
    with pytest.raises(CheckpointError, match="its state would fit: sgd"):
        export(tmp_path / "m.weights.h5", tmp_path / "other", optimizer="rmsprop", **options)


@pytest.mark.one_backend(trains=True)
def test_a_model_file_finds_its_neighbours_and_says_what_fails(script, tmp_path, monkeypatch):
    """A model file imports its neighbours as `python FILE.py` does; a mistake in it is one line."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "neighbour_of_mine.py").write_text(script.read_text())
    (tmp_path / "mine.py").write_text("from neighbour_of_mine import build\n")
    made = build.build_model(f"{tmp_path / 'mine.py'}:build", state=None, num_classes=3, image_size=None)
    assert made.count_params() > 0
    (tmp_path / "wrong.py").write_text("import keras\nfrom nowhere_at_all import net\n")
    with pytest.raises(
        ModelError, match=r"wrong.py, line 2: running it failed \(ModuleNotFoundError: .*nowhere_at_all"
    ):
        build.build_model(f"{tmp_path / 'wrong.py'}:build", state=None, num_classes=3, image_size=None)


def test_the_table_of_slots_is_kerass(script):
    """Our table of slots has Keras's order of arrays for every optimizer class and setting."""
    model = trained(script, "sgd", steps=0)
    weights = list(numpy(model.trainable_variables).values())
    known = 0
    for name in (*OPTIMIZERS, "ScheduleFreeAdamW"):
        assert slot_forms.variants(name), name
        for changes, rounds in slot_forms.variants(name):
            optimizer = getattr(keras.optimizers, name)(**changes)
            optimizer.build(model.trainable_variables)
            expected = slot_forms.slot_shapes(name, rounds, [weight.shape for weight in weights])
            assert [tuple(v.shape) for v in optimizer.variables[2:]] == [shape for _, shape in expected], (
                name,
                changes,
            )
            assert set(slots.slot_lists(optimizer)) == {kind for kinds in rounds for kind in kinds}, (name, changes)
            known += 1
    assert known > 40


@pytest.mark.one_backend(trains=True)
def test_shards_are_read_like_one_file(script, tmp_path):
    """Shards equal the single file; a missing or foreign shard is named."""
    model = trained(script, keras.optimizers.Adam(1e-2))
    model.save_weights(tmp_path / "one.weights.h5")
    (tmp_path / "many").mkdir()
    model.save_weights(tmp_path / "many" / "m.weights.json", max_shard_size=4e-6)
    one, many = (dict(read_checkpoint(tmp_path / name).arrays) for name in ("one.weights.h5", "many/m.weights.json"))
    assert_same_bytes(one, many)
    shards = sorted((tmp_path / "many").glob("*.h5"))
    assert len(shards) > 1
    assert_same_bytes(one, dict(read_checkpoint(tmp_path / "many").arrays))  # the only checkpoint of the folder
    shards[-1].unlink()
    with pytest.raises(CheckpointError, match=rf"the shard {shards[-1].name} is missing"):
        read_checkpoint(tmp_path / "many" / "m.weights.json")
    shutil.copy(shards[0], shards[-1])
    with pytest.raises(CheckpointError, match="is in two shards"):
        read_checkpoint(tmp_path / "many" / "m.weights.json")


# --- Keras's backup folder --------------------------------------------------------------------------------------------


@pytest.fixture
def backup(script, tmp_path):
    """Writes the files of `BackupAndRestore(double_checkpoint=True)` after two epochs."""
    model = trained(script, keras.optimizers.Adam(3e-3))
    callback = keras.callbacks.BackupAndRestore(tmp_path / "backup", double_checkpoint=True)
    callback.set_model(model)
    callback.on_epoch_end(0)
    model.train_on_batch(np.full((6, SIZE, SIZE, 3), 99.0, "float32"), np.arange(6) % 3)
    callback.on_epoch_end(1)
    return tmp_path / "backup"


@pytest.mark.one_backend(trains=True)
def test_a_backup_folder_is_an_interrupted_training_whose_rate_comes_down(backup, script, tmp_path, pictures, quiet):
    """A backup folder is recognised by content, extended at its rate and brought down; a line names what it lacks."""
    arguments = {"data": [str(pictures / "old")], "add": [str(pictures / "new")], "model": f"{script}:build"}
    config = from_arguments(str(backup), {**arguments, "optimizer": "adam", "out": str(tmp_path / "run")})
    plan = make_plan(config, quiet)
    assert (plan.rate.schedule, plan.rate.peak) == ("cooldown", pytest.approx(3e-3))
    assert "interrupted after 2 epochs; how many it had left is not recorded there" in str(plan)
    assert "backup, step 4" in plan.parent
    result = run_training(str(backup), **arguments, optimizer="adam", epochs=1, batch_size=5, out=str(tmp_path / "run"))
    record = runs.open_run(result.run).record.as_dict()
    assert record["parent"]["format"] == "backup"
    assert int(result_arrays(Path(result.run))["optimizer/0"]) == 4 + record["amount"]["steps"]


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize("damage", ["weights", "metadata", "no metadata"])
def test_a_torn_newest_pair_falls_back_to_the_one_before_by_name(backup, script, damage):
    """A torn newest pair falls back to the pair before it, and a line names it.

    Tried: truncated weights and an empty JSON, as a kill leaves them.
    """
    if damage == "weights":
        file = backup / "latest.weights.h5"
        file.write_bytes(file.read_bytes()[:5000])
    elif damage == "metadata":
        (backup / "training_metadata.json").write_text("")
    else:
        (backup / "training_metadata.json").unlink()
    parent, live = parent_of(backup, script, optimizer="adam")
    assert (parent.state.step, live.iterations, parent.state.records["epoch"]) == (3, 3, 1)
    wrong = "latest.weights.h5" if damage == "weights" else "training_metadata.json"
    assert any(
        "is damaged or incomplete, the pair before it is used" in note and wrong in note for note in parent.notes
    )
    (backup / "latest.weights.h5.bkp").unlink()
    if damage == "no metadata":
        (backup / "training_metadata.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"double_checkpoint=True"):
        read_checkpoint(backup)


# --- another optimizer ------------------------------------------------------------------------------------------------


@pytest.mark.one_backend(trains=True)
def test_another_class_takes_over_what_means_the_same(tmp_path, pictures, quiet):
    """Another optimizer class takes over the slots that mean the same.

    Adam to AdamW keeps both moments, to RMSprop the squares; SGD's momentum has another meaning than Adam's.
    """
    run_training(out=str(tmp_path / "adam"), data=[str(pictures / "old")], optimizer="adam", **TINY)
    before = result_arrays(tmp_path / "adam")
    config = {"add": [str(pictures / "new")], "epochs": 1, "out": str(tmp_path / "other")}
    plan = make_plan(from_arguments(str(tmp_path / "adam"), {**config, "optimizer": "adamw"}), quiet)
    assert "optimizer Adam -> AdamW: momentums, velocities carried over; iterations kept" in plan.notes
    run = run_training(str(tmp_path / "adam"), **{**config, "optimizer": "adamw", "out": str(tmp_path / "adamw")}).run
    record = runs.open_run(run).record.as_dict()
    assert record["optimizer"]["class_name"] == "AdamW"
    assert int(result_arrays(Path(run))["optimizer/0"]) == int(before["optimizer/0"]) + record["amount"]["steps"]
    with pytest.raises(UsageError, match=r"0.001, is Adam's and does not apply to SGD: give --lr"):
        make_plan(from_arguments(str(tmp_path / "adam"), {**config, "optimizer": "sgd"}), quiet)
    other = {**config, "optimizer": "sgd", "lr": 0.01, "out": str(tmp_path / "sgd")}
    assert "no slot has a counterpart" in str(make_plan(from_arguments(str(tmp_path / "adam"), other), quiet))


@pytest.mark.parametrize(
    ("old", "new", "kept", "fresh"),
    [
        ("Adam", "AdamW", ["_momentums", "_velocities"], []),
        ("Adam", "RMSprop", ["_velocities"], []),
        ("RMSprop", "Adam", ["_velocities"], ["_momentums"]),
        ("Lion", "Adam", [], ["_momentums", "_velocities"]),  # full moments over squares of zero: 30 times the rate
        ("SGD", "Adam", [], ["_momentums", "_velocities"]),
        ("SGD", "SGD", ["momentums"], []),
    ],
)
def test_slots_are_carried_by_their_meaning(script, old, new, kept, fresh):
    """Slots are carried over by meaning, bit for bit; others are named as fresh; iterations stay."""
    settings = {"SGD": {"momentum": 0.9}}
    model = trained(script, getattr(keras.optimizers, old)(1e-2, **settings.get(old, {})))
    other = getattr(keras.optimizers, new)(1e-3, **settings.get(new, {}))
    other.build(model.trainable_variables)
    assert slots.carry(model.optimizer, other) == (kept, fresh)
    assert int(other.iterations) == 3
    before, after = slots.slot_lists(model.optimizer), slots.slot_lists(other)
    for attribute in kept:
        assert_same_bytes(numpy(before[attribute]), numpy(after[attribute]))
    for attribute in fresh:
        assert not any(array.any() for array in numpy(after[attribute]).values())


# --- another precision ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", few_under_jax(["keras", "weights.h5", "h5"], ["weights.h5"]))
@pytest.mark.parametrize(("before", "after"), [("float32", "mixed_float16"), ("mixed_float16", "float32")])
def test_a_checkpoint_restores_into_another_precision_and_back(script, tmp_path, layout, before, after):
    """A checkpoint restores into another precision and back.

    The float32 variables of the layers are the same. The loss scale starts fresh or is not needed.
    """
    model = trained(script, keras.optimizers.Adam(1e-2), policy=before)
    path = tmp_path / f"m.{layout}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("absl.logging.warning", lambda *_, **__: None)
        model.save_weights(path) if layout == "weights.h5" else model.save(path)
    if layout == "weights.h5":
        keras.config.set_dtype_policy(after)
        try:
            parent, live = parent_of(path, script, optimizer="adam")
        finally:
            keras.config.set_dtype_policy("float32")
    else:
        parent, live = parent_of(path, precision=after)
    assert parent.state.optimizer.loss_scale == (before == "mixed_float16")
    assert precision.needs_loss_scale(live.model) == (after == "mixed_float16")
    assert ("the loss scale starts fresh" in live.summary) == (after == "mixed_float16")
    assert_same_bytes(numpy(model.variables), numpy(live.model.variables))
    one, other = slots.slot_lists(model.optimizer), slots.slot_lists(live.optimizer)
    for attribute in one:
        assert_same_bytes(numpy(one[attribute]), numpy(other[attribute]))
    assert live.iterations == int(model.optimizer.iterations)


def test_mixed_float16_restores_with_its_loss_scale(script, tmp_path):
    """A mixed_float16 checkpoint restores with its loss scale bit for bit.

    A plain Keras file names Adam; its arrays show loss scaling.
    """
    model = trained(script, keras.optimizers.Adam(1e-2), policy="mixed_float16")
    model.optimizer.dynamic_scale.assign(4096.0)
    model.save(tmp_path / "m.keras")
    parent, live = parent_of(tmp_path / "m.keras")
    assert parent.state.optimizer.class_name == "Adam"
    assert_same_bytes(numpy(model.optimizer.variables), numpy(live.optimizer.variables))
    assert "fresh" not in live.summary


def test_a_run_in_mixed_float16_is_a_parent_like_any_other(tmp_path, pictures):
    """A mixed_float16 run is extended, and its `model.keras` loads in plain Keras with its optimizer."""
    run_training(out=str(tmp_path / "a"), data=[str(pictures / "old")], precision="mixed_float16", **TINY)
    keras.config.set_dtype_policy("float32")
    record = runs.open_run(tmp_path / "a").record.as_dict()
    assert record["optimizer"]["class_name"] == "AdamW"
    assert record["optimizer"]["loss_scale"]
    plain = keras.models.load_model(tmp_path / "a" / "model.keras")
    assert int(plain.optimizer.iterations) == record["result"]["step"]
    try:
        run_training(str(tmp_path / "a"), add=[str(pictures / "new")], epochs=1, out=str(tmp_path / "b"))
        run_training(
            str(tmp_path / "a"), add=[str(pictures / "new")], epochs=1, out=str(tmp_path / "c"), precision="float32"
        )
    finally:
        keras.config.set_dtype_policy("float32")
    assert runs.open_run(tmp_path / "b").record.as_dict()["optimizer"]["loss_scale"]
    assert not runs.open_run(tmp_path / "c").record.as_dict()["optimizer"]["loss_scale"]


# --- matching ---------------------------------------------------------------------------------------------------------


def test_names_that_shifted_still_match(script, tmp_path):
    """Names with a shifted number match: the fifth model of a process restores into the first of another."""
    for _ in range(4):
        trained(script, "sgd", steps=0)
    model = trained(script, keras.optimizers.Adam(1e-2))
    assert any(layer.name[-1].isdigit() for layer in model.layers)
    model.save(tmp_path / "m.keras")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("absl.logging.warning", lambda *_, **__: None)
        model.save(tmp_path / "m.h5")
    keras.utils.clear_session(free_memory=False)
    for name in ("m.keras", "m.h5"):
        _, live = parent_of(tmp_path / name, script)
        assert_same_bytes(numpy(model.variables), numpy(live.model.variables))
        assert_same_bytes(numpy(model.optimizer.variables), numpy(live.optimizer.variables))


def test_what_the_structure_leaves_over_meets_by_shape_with_a_message(tmp_path):
    """Variables that the structure does not match are paired by shape if only one pairing is possible.

    A line says so. Two of the same shape are not paired.
    """

    def flat(units):
        return keras.Sequential([keras.Input((4,)), *(keras.layers.Dense(n) for n in units)])

    def wrapped(units):
        return keras.Sequential([keras.Input((4,)), keras.Sequential([keras.layers.Dense(n) for n in units])])

    model = flat((5, 6))
    model.save_weights(tmp_path / "m.weights.h5")
    other = wrapped((5, 6))
    restoration = restore.restore(other, read_checkpoint(tmp_path / "m.weights.h5"), optimizer=None)
    assert "4 matched only by shape" in restoration.summary
    assert_same_bytes(numpy(model.variables), numpy(other.variables))
    flat((4, 4)).save_weights(tmp_path / "n.weights.h5")
    with pytest.raises(RestoreError, match="nothing was restored"):
        restore.restore(wrapped((4, 4)), read_checkpoint(tmp_path / "n.weights.h5"), optimizer=None)


def test_partial_names_what_starts_fresh(script, tmp_path):
    """`--partial` restores what fits and lists the rest."""
    model = trained(script, keras.optimizers.Adam(1e-2))
    model.save(tmp_path / "m.keras")
    (tmp_path / "wider.py").write_text(MODEL.replace("Dense(num_classes", "Dense(num_classes + 1"))
    options = {"model": f"{tmp_path / 'wider.py'}:build"}
    with pytest.raises(RestoreError, match=r"shape .* in the model and .* in the checkpoint.*--partial"):
        parent_of(tmp_path / "m.keras", **options)
    _, live = parent_of(tmp_path / "m.keras", **options, partial=True)
    assert "--partial: fresh" in live.summary
    assert "kernel" in live.summary


# --- code in a checkpoint ---------------------------------------------------------------------------------------------


@pytest.mark.one_backend(trains=True)
def test_a_lambda_runs_only_with_trust(tmp_path, pictures):
    """Without `--trust` no code of the file runs; continuing a run with a Lambda needs `--trust` again."""
    ran = tmp_path / "ran"
    source = f"lambda x: (__import__('pathlib').Path({str(ran)!r}).touch(), x * 2.0)[1]"
    layers = keras.layers
    double = layers.Lambda(eval(source), output_shape=(12, 12, 3))
    model = keras.Sequential(
        [
            keras.Input((12, 12, 3)),
            layers.Rescaling(1 / 255),
            double,
            layers.Flatten(),
            layers.Dense(3, activation="softmax"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy")
    model.train_on_batch(np.zeros((3, 12, 12, 3), "float32"), np.arange(3))
    model.save(tmp_path / "m.keras")
    ran.unlink()
    arguments = {"data": [str(pictures / "old")], "epochs": 1, "batch_size": 5, "out": str(tmp_path / "run")}
    arguments["classes"] = ",".join(CLASSES)  # after one step, another order may fit by chance
    with pytest.raises(ModelError, match=r"runs only with --trust"):
        run_training(str(tmp_path / "m.keras"), **arguments)
    assert not ran.exists()
    result = run_training(str(tmp_path / "m.keras"), **arguments, trust=True)
    assert ran.exists()
    architecture = json.loads(Path(result.run, "architecture.json").read_text())
    with pytest.raises(ModelError, match="--trust"):
        build.from_architecture(architecture)
