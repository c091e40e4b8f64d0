"""Tests changed freezing between writing and reading: weights and slots go to their variables.

If a reader cannot tell, it refuses.
"""

import itertools
import warnings
from dataclasses import replace
from functools import partial

import keras
import numpy as np
import pytest

import kresume
from kresume.checkpoints import snapshot
from kresume.checkpoints.read import read_checkpoint
from kresume.errors import CheckpointError, RestoreError, UsageError
from kresume.models import own_counts, restore, structure
from kresume.models.saved_optimizer import name_optimizer
from tests.helpers.backends import few_under_jax
from tests.helpers.runs import TINY, kill_at_every_snapshot, run_training

LAYERS = 4
NOW = [(0, 1, 2, 3), (0,), (1, 3), (2, 3), ()]
"""Indices of the trainable layers when a checkpoint is read; combined with those when it was written."""
SUBSETS = [subset for size in range(LAYERS + 1) for subset in itertools.combinations(range(LAYERS), size)]


def build(trained, *, named=False):
    """Builds four layers of one shape in two nested halves; freezes those whose index is not in `trained`."""
    names = ("a", "b", "c", "d") if named else (None,) * LAYERS
    layers = [keras.layers.Dense(3, name=name) for name in names]
    model = keras.Sequential(
        [keras.Input((3,)), *layers[:2], keras.layers.Dropout(0.5), keras.Sequential([keras.Input((3,)), *layers[2:]])]
    )
    freeze(model, trained)
    return model


def dense_layers(model):
    return [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.Dense)]


def in_layers(model):
    """Lists the four layers by their location, independent of kresume's order."""
    return [model.layers[0], model.layers[1], *model.layers[3].layers]


def freeze(model, trained):
    for index, layer in enumerate(in_layers(model)):
        layer.trainable = index in trained


def mark(model, optimizer=None):
    """Fills every weight and slot with a number that identifies it.

    It is 10 times the layer's index, plus kernel or bias, plus the slot's kind.
    """
    for index, layer in enumerate(in_layers(model)):
        for role, weight in enumerate((layer.kernel, layer.bias)):
            weight.assign(np.full(weight.shape, 10 * index + role + 1, "float32"))
    if optimizer is not None:
        for (index, role, kind), slot in slots_of(model, optimizer).items():
            slot.assign(np.full(slot.shape, 100 * (10 * index + role + 1) + kind, "float32"))
        optimizer.iterations.assign(7)


def slots_of(model, optimizer):
    """Maps (layer, role, kind) to the slot, read from Adam's own lists."""
    trained = {id(weight): index for index, weight in enumerate(optimizer._trainable_variables)}
    found = {}
    for index, layer in enumerate(in_layers(model)):
        for role, weight in enumerate((layer.kernel, layer.bias)):
            if id(weight) in trained:
                for kind, listed in enumerate((optimizer._momentums, optimizer._velocities)):
                    found[index, role, kind] = listed[trained[id(weight)]]
    return found


def value(variable):
    return np.asarray(keras.ops.convert_to_numpy(variable))


def assert_marked(model, optimizer=None, *, fresh=()):
    for index, layer in enumerate(in_layers(model)):
        for role, weight in enumerate((layer.kernel, layer.bias)):
            assert (value(weight) == 10 * index + role + 1).all(), (index, role)
    if optimizer is not None:
        assert int(optimizer.iterations) == 7
        for (index, role, kind), slot in slots_of(model, optimizer).items():
            expected = 0 if index in fresh else 100 * (10 * index + role + 1) + kind
            assert (value(slot) == expected).all(), (index, role, kind)


def adam_on(model):
    optimizer = keras.optimizers.Adam(1e-2)
    optimizer.build(model.trainable_variables)
    return optimizer


def wipe(model):
    for variable in model.weights:
        variable.assign(np.zeros(variable.shape, "float32"))


class Zoo:
    """Keeps one marked model with its optimizer for each subset of trained layers, made once and reused."""

    def __init__(self):
        self.writers = {subset: self.make(subset) for subset in SUBSETS}
        self.readers = {subset: self.make(subset) for subset in SUBSETS}
        for model, optimizer in self.writers.values():
            mark(model, optimizer)

    def make(self, subset):
        model = build(subset)
        model.compile(keras.optimizers.Adam(1e-2), "mse")
        model.optimizer.build(model.trainable_variables)
        return model, model.optimizer


@pytest.fixture(scope="module")
def zoo():
    return Zoo()


def write_snapshot(model, path, **records):
    from kresume.backend import live_state

    records = {"phase": "epoch", "epoch": 1, "batch": 0, structure.RECORD: structure.describe(model), **records}
    records["optimizer"] = keras.saving.serialize_keras_object(model.optimizer)
    snapshot.write_snapshot(path, 7, live_state.read_state(model), records)
    return path


def write_tf_keras(model, path, *, kind):
    """Writes the same marks with Keras 2, with its Adam on the layers that train here."""
    import tensorflow as tf
    import tf_keras

    layers = [tf_keras.layers.Dense(3) for _ in range(LAYERS)]
    inside = tf_keras.Sequential([tf_keras.Input((3,)), *layers[2:]])
    other = tf_keras.Sequential([tf_keras.Input((3,)), *layers[:2], tf_keras.layers.Dropout(0.5), inside])
    for layer, mine in zip(layers, in_layers(model), strict=True):
        layer.set_weights([value(mine.kernel), value(mine.bias)])
        layer.trainable = mine.trainable
    other.compile(tf_keras.optimizers.Adam(1e-2), "mse")
    other.optimizer.build(other.trainable_variables)
    other.optimizer.iterations.assign(7)
    moments = slots_of(model, model.optimizer)
    keys = [(index, role) for index, role, number in moments if number == 0]
    for place, (index, role) in enumerate(keys):
        for number, listed in enumerate((other.optimizer._momentums, other.optimizer._velocities)):
            listed[place].assign(value(moments[index, role, number]))
    if kind == "checkpoint":
        tf.train.Checkpoint(model=other, optimizer=other.optimizer).save(str(path / "ckpt"))
        return path
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # this .h5 is legacy
        other.save(path / f"model.{kind}")
    return path / f"model.{kind}"


def write_export(model, path):
    model.export(path / "export", verbose=False)
    return path / "export"


def write_legacy(model, path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("absl.logging.warning", lambda *_, **__: None)
        model.save(path / "model.h5")
    return path / "model.h5"


def write_backup_folder(model, path):
    model.save_weights(path / "latest.weights.h5")
    (path / "training_metadata.json").write_text('{"epoch": 1, "batch": 0}')
    return path


def write_shards(model, path):
    model.save_weights(path / "model.weights.json", max_shard_size=0.001)
    return path / "model.weights.json"


def write_tensorflow(model, path):
    import tensorflow as tf

    tf.train.Checkpoint(model=model, optimizer=model.optimizer).save(str(path / "ckpt"))
    return path


def write_orbax(model, path):
    callback = keras.callbacks.OrbaxCheckpoint(str(path), save_freq=1)
    callback.set_model(model)
    callback.on_train_begin()
    callback._save_checkpoint(step=7)
    callback.on_train_end()
    return path


def write_keras(model, path):
    model.save(path / "model.keras")
    return path / "model.keras"


def write_weights(model, path):
    model.save_weights(path / "model.weights.h5")
    return path / "model.weights.h5"


def torch_parts(model, *, named):
    """Returns the same marks as a PyTorch network of four Linear layers, and its Adam on those that train."""
    import torch

    weights, state, params, names = {}, {}, [], []
    moments = slots_of(model, model.optimizer)
    for index, layer in enumerate(in_layers(model)):
        for role, (name, weight) in enumerate((("weight", layer.kernel), ("bias", layer.bias))):
            weights[f"layers.{index}.{name}"] = torch.tensor(value(weight).T.copy())
            if (index, role, 0) in moments:
                first, second = (torch.tensor(value(moments[index, role, kind]).T.copy()) for kind in (0, 1))
                state[len(params)] = {"step": torch.tensor(7.0), "exp_avg": first, "exp_avg_sq": second}
                params.append(len(params))
                names.append(f"layers.{index}.{name}")
    group = {"lr": 0.01, "betas": (0.9, 0.999), "eps": 1e-7, "amsgrad": False, "weight_decay": 0, "params": params}
    group |= {"decoupled_weight_decay": False, **({"param_names": names} if named else {})}
    return weights, {"state": state, "param_groups": [group]}


def write_torch(model, path, *, named=True):
    import torch

    weights, optimizer = torch_parts(model, named=named)
    torch.save({"model_state_dict": weights, "optimizer_state_dict": optimizer}, path / "model.pth")
    return path / "model.pth"


def write_torch_without_names(model, path):
    return write_torch(model, path, named=False)


WRITERS = {
    "snapshot": write_snapshot,
    "keras": write_keras,
    "weights-h5": write_weights,
    "shards": write_shards,
    "backup": write_backup_folder,
    "legacy-h5": write_legacy,
    "tf-checkpoint": write_tensorflow,
    "orbax": write_orbax,
    "tf_keras-h5": partial(write_tf_keras, kind="h5"),
    "tf_keras-keras": partial(write_tf_keras, kind="keras"),
    "tf_keras-checkpoint": partial(write_tf_keras, kind="checkpoint"),
    "saved-model": write_export,
    "torch": write_torch,
    "torch-nameless": write_torch_without_names,
}
NAMELESS = {"weights-h5", "shards", "backup", "torch-nameless"}
"""Formats that name neither the weights of an optimizer's slots nor an architecture that shows them."""


@pytest.mark.parametrize("kind", few_under_jax(WRITERS, ["snapshot", "weights-h5"]))
def test_every_weight_in_its_layer_and_every_slot_at_its_weight(zoo, tmp_path, kind):
    """For each choice of trained layers, all weights are right, and slots are right or refused."""
    for prefix, package in (("orbax", "orbax.checkpoint"), ("torch", "torch"), ("tf_keras", "tf_keras")):
        if kind.startswith(prefix):
            pytest.importorskip(package)
    for then in SUBSETS if kind == "snapshot" else [(), (0, 2), (0, 1, 2, 3)]:
        writer, _ = zoo.writers[then]
        folder = tmp_path / "".join(map(str, then or "-"))
        folder.mkdir()
        state = read_checkpoint(WRITERS[kind](writer, folder))
        for now in {then, *NOW}:
            model, optimizer = zoo.readers[now]
            wipe(model)
            restore.restore(model, state, optimizer=None)
            assert_marked(model)
            if not then or not now or kind == "saved-model":  # which holds no optimizer
                continue
            refused = accepts(model, optimizer, state)
            known = kind not in NAMELESS or len(then) == LAYERS
            assert not refused if set(now) <= set(then) and known else refused, (then, now, refused)
            if refused and known:  # the remedy that the error names
                assert "--partial" in refused
                wipe_slots(optimizer)
                restore.restore(model, state, optimizer=optimizer, partial=True)
                assert_marked(model, optimizer, fresh=set(now) - set(then))
            if now == then and kind != "torch-nameless":
                restore.restore(model, state, optimizer=optimizer, same_weights=True)
                assert_marked(model, optimizer)


def wipe_slots(optimizer):
    for slot in (*optimizer._momentums, *optimizer._velocities):
        slot.assign(np.zeros(slot.shape, "float32"))


def accepts(model, optimizer, state):
    """Returns why an optimizer is refused; empty if it is restored correctly."""
    try:
        restore.restore(model, state, optimizer=optimizer)
    except RestoreError as error:
        return str(error)
    assert_marked(model, optimizer)
    return ""


# --- snapshots and backups --------------------------------------------------------------------------------------------


def test_a_snapshot_without_addresses_is_right_or_refused(zoo, tmp_path):
    """A snapshot of an earlier version, without variable addresses, is restored correctly or refused.

    Variables are matched by names if the run has them, else by shapes if only one choice fits.
    """
    for then in SUBSETS[::2]:
        writer, _ = zoo.writers[then]
        folder = tmp_path / "".join(map(str, then or "-"))
        write_snapshot(writer, folder)
        state = read_checkpoint(folder)
        records = {name: value for name, value in state.records.items() if name != structure.RECORD}
        paths = {group: [v.path for v in getattr(writer, f"{group}_variables")] for group in structure.GROUPS}
        for now in {then, *NOW} - {()}:
            model, optimizer = zoo.readers[now]
            wipe(model)
            named = replace(state, records={**records, "paths": paths})
            restore.restore(model, named, optimizer=None)
            assert_marked(model)
            if then:
                assert bool(accepts(model, optimizer, named)) != (set(now) <= set(then))
            wipe(model)
            refused = accepts(model, None, replace(state, records=records))
            assert not refused or len(then) not in {0, LAYERS}, (then, now)


def test_names_of_layers_win_where_layers_were_moved(tmp_path):
    """Layers with the user's own names keep their weights when the code lists them in another order."""

    def named(names):
        model = keras.Sequential([keras.Input((3,)), *(keras.layers.Dense(3, name=name) for name in names)])
        model.compile(keras.optimizers.SGD(1e-2), "mse")
        return model

    writer, reader = named("abc"), named("cab")
    for index, layer in enumerate(writer.layers):
        layer.kernel.assign(np.full((3, 3), index, "float32"))
    restore.restore(reader, read_checkpoint(write_snapshot(writer, tmp_path / "s")), optimizer=None)
    assert [value(reader.get_layer(name).kernel)[0, 0] for name in "abc"] == [0, 1, 2]
    renamed = named("xyz")
    restore.restore(renamed, read_checkpoint(tmp_path / "s"), optimizer=None)
    assert [value(layer.kernel)[0, 0] for layer in renamed.layers] == [0, 1, 2]
    with pytest.raises(RestoreError, match="nothing was restored"):
        restore.restore(named("xab"), read_checkpoint(tmp_path / "s"), optimizer=None)


STAGES = [
    ("sgd", (0,), (1,)),
    ("adam", (0,), (1,)),
    ("adam", (0, 1), (1,)),
    ("adam", (3,), (0, 1, 2, 3)),
]


@pytest.mark.parametrize(("kind", "then", "now"), STAGES)
def test_a_second_stage_with_other_layers_frozen_goes_on_in_the_same_folder(tmp_path, capfd, kind, then, now):
    """A second stage with other layers frozen starts with the same weights and kept slots, bit for bit.

    A line names the slots that start fresh or are left out.
    """
    x, y = np.random.default_rng(0).normal(size=(8, 3)).astype("float32"), np.zeros((8, 3), "float32")
    make = {"sgd": lambda: keras.optimizers.SGD(0.1), "adam": lambda: keras.optimizers.Adam(0.1)}[kind]

    class Look(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if self.seen is None:
                self.seen = read(self.model), slots_as_arrays(self.model, kind)

        seen = None

    def read(model):
        return [(value(layer.kernel).copy(), value(layer.bias).copy()) for layer in in_layers(model)]

    def stage(trained, epochs):
        model, look = build(trained), Look()
        model.compile(make(), "mse")
        backup = kresume.BackupAndRestore(tmp_path / "backup", delete_checkpoint=False)
        model.fit(x, y, batch_size=4, epochs=epochs, verbose=0, callbacks=[look, backup])
        return model, look

    first, _ = stage(then, 1)
    second, look = stage(now, 2)
    weights, slots = look.seen
    for mine, theirs in zip(weights, read(first), strict=True):
        assert all(one.tobytes() == other.tobytes() for one, other in zip(mine, theirs, strict=True))
    before = slots_as_arrays(first, kind)
    assert {key for key in slots if key[0] in now} == set(slots)
    for key, array in slots.items():
        assert array.tobytes() == (before[key].tobytes() if key in before else bytes(array.nbytes)), key
    assert int(second.optimizer.iterations) == 4
    said = capfd.readouterr().err
    assert ("start fresh" in said) == (kind == "adam" and not set(now) <= set(then))
    assert ("left out" in said) == (kind == "adam" and not set(then) <= set(now))


def slots_as_arrays(model, kind):
    return {} if kind == "sgd" else {key: value(slot).copy() for key, slot in slots_of(model, model.optimizer).items()}


# --- an optimizer in its own file -------------------------------------------------------------------------------------


@pytest.mark.parametrize("inside", [False, True], ids=["bare", "under a key"])
def test_an_optimizer_in_its_own_file(zoo, tmp_path, inside):
    """`--optimizer-from` restores what a single file would: every weight, slot, the step and the rate."""
    torch = pytest.importorskip("torch")
    writer, _ = zoo.writers[0, 1, 2, 3]
    model, optimizer = zoo.readers[0, 1, 2, 3]
    weights, moments = torch_parts(writer, named=False)
    torch.save(weights, tmp_path / "model.pth")
    torch.save({"optimizer": moments} if inside else moments, tmp_path / "optimizer.pth")
    state = read_checkpoint(tmp_path / "model.pth", tmp_path / "optimizer.pth")
    assert (state.step, state.rate.value, state.optimizer.class_name) == (7, 0.01, "Adam")
    wipe(model)
    restore.restore(model, state, optimizer=optimizer)
    assert_marked(model, optimizer)
    assert read_checkpoint(tmp_path / "model.pth").optimizer is None


@pytest.mark.one_backend(trains=True)
def test_what_is_no_optimizer_is_refused(zoo, tmp_path):
    """`--optimizer-from` refuses a missing file, a weights file, and a checkpoint that is not PyTorch's.

    Each error says what was expected.
    """
    torch = pytest.importorskip("torch")
    writer, _ = zoo.writers[0, 1, 2, 3]
    weights, _ = torch_parts(writer, named=False)
    torch.save(weights, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match="the file does not exist"):
        read_checkpoint(tmp_path / "model.pth", tmp_path / "optimizer.pth")
    with pytest.raises(CheckpointError, match=r"no optimizer's state dict \(it holds layers.0.bias"):
        read_checkpoint(tmp_path / "model.pth", tmp_path / "model.pth")
    with pytest.raises(UsageError, match=r"is only for PyTorch weights, but .* is a \.keras file"):
        read_checkpoint(write_keras(writer, tmp_path), tmp_path / "model.pth")


def test_a_head_that_trained_alone_keeps_its_moments(tmp_path):
    """A PyTorch optimizer on the head alone keeps its moments if only one choice fits its shapes.

    It names none of its parameters.
    """
    torch = pytest.importorskip("torch")
    weights = {
        "a.weight": torch.ones(4, 3),
        "a.bias": torch.ones(4),
        "head.weight": torch.ones(2, 4),
        "head.bias": torch.ones(2),
    }
    moment = {"step": torch.tensor(7.0), "exp_avg": torch.full((2, 4), 5.0), "exp_avg_sq": torch.full((2, 4), 6.0)}
    bias = {"step": torch.tensor(7.0), "exp_avg": torch.full((2,), 7.0), "exp_avg_sq": torch.full((2,), 8.0)}
    group = {"lr": 0.01, "betas": (0.9, 0.999), "eps": 1e-7, "amsgrad": False, "weight_decay": 0, "params": [0, 1]}
    optimizer = {"state": {0: moment, 1: bias}, "param_groups": [{**group, "decoupled_weight_decay": False}]}
    torch.save({"model_state_dict": weights, "optimizer_state_dict": optimizer}, tmp_path / "model.pth")
    state = read_checkpoint(tmp_path / "model.pth")
    layers = [keras.layers.Dense(4, trainable=False), keras.layers.Dense(2)]
    model = keras.Sequential([keras.Input((3,)), *layers])
    adam = adam_on(model)
    restore.restore(model, state, optimizer=adam)
    assert [value(slot).flat[0] for slot in (*adam._momentums, *adam._velocities)] == [5, 7, 6, 8]
    layers[0].trainable = True
    adam = adam_on(model)
    with pytest.raises(RestoreError, match=r"the file holds no slots for 4 of 8, .*--partial starts these fresh"):
        restore.restore(model, state, optimizer=adam)
    restored = restore.restore(model, state, optimizer=adam, partial=True)
    assert "the slots of 2 weights" in restored.summary
    assert own_counts.counts_of(adam) == {0: 7, 1: 7}


# --- Keras's own backups, averages, and the plan --------------------------------------------------------------------


@pytest.mark.parametrize(("then", "now"), [((0,), (1,)), ((0, 1, 2, 3), (1,)), ((0,), (0, 1, 2, 3))])
def test_a_backup_of_kerass_callback_never_gives_a_slot_to_another_weight(zoo, tmp_path, capfd, then, now):
    """A backup of Keras's callback never restores a slot to another weight.

    Weights are always right; slots are right, or fresh with a line. Keras itself takes slots by their order alone.
    """
    writer, _ = zoo.writers[then]
    write_backup_folder(writer, tmp_path)
    model, look = build(now), {}
    model.compile(keras.optimizers.Adam(1e-2), "mse")

    class Look(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            look.update(slots_as_arrays(self.model, "adam"))
            assert_marked(self.model)

    backup = kresume.BackupAndRestore(tmp_path, delete_checkpoint=False)
    model.fit(np.zeros((2, 3)), np.zeros((2, 3)), batch_size=2, epochs=2, verbose=0, callbacks=[Look(), backup])
    certain = len(then) == LAYERS
    for (index, role, kind), slot in look.items():
        assert (slot == (100 * (10 * index + role + 1) + kind if certain else 0)).all()
    assert ("start fresh and count their own" in capfd.readouterr().err) != certain
    assert int(model.optimizer.iterations) == 8


def test_averages_that_predict_do_not_depend_on_what_is_frozen_now(tmp_path):
    """`eval` and `export` use the averages of the weights that trained, even if the built model is frozen."""
    from kresume.models.load import _restore

    model = build((0, 1))
    model.compile(keras.optimizers.Adam(1e-2, use_ema=True), "mse")
    model.optimizer.build(model.trainable_variables)
    mark(model)
    for average in model.optimizer._model_variables_moving_average:
        average.assign(np.full(average.shape, 7.0, "float32"))
    state = read_checkpoint(write_keras(model, tmp_path))
    for now in ((0, 1), (), (2, 3), (0, 1, 2, 3)):
        reader = build(now)
        assert _restore(reader, state, None, restore.restore)
        values = [value(layer.bias)[0] for layer in in_layers(reader)]
        assert values == [7.0, 7.0, 22.0, 32.0], now


@pytest.mark.one_backend(trains=True)
def test_a_plan_says_what_trains():
    """A plan names the number of frozen layers and those that train.

    It prints nothing if all train. If none trains, it is an error.
    """
    from kresume.training.plan.notes import frozen_layers

    assert frozen_layers(build((0, 1, 2, 3))) == []
    assert frozen_layers(build((1,), named=True)) == [
        "3 of 4 layers with weights are frozen: only b trains (12 of 48 parameters); to train more, give --freeze none, "
        "or --unfreeze-at EPOCH"
    ]
    with pytest.raises(UsageError, match="every layer of the model is frozen"):
        frozen_layers(build(()))


@pytest.mark.one_backend(trains=True)
def test_an_optimizer_without_slots_is_named_as_the_reason(zoo, tmp_path):
    """A checkpoint compiled anew and saved before a step is refused for its missing slots.

    The model is right, and the error names a fresh optimizer as remedy.
    """
    writer = build((0, 1, 2, 3))
    writer.compile(keras.optimizers.Adam(1e-2), "mse")
    state = read_checkpoint(write_keras(writer, tmp_path))
    model, optimizer = zoo.readers[0, 1, 2, 3]
    with pytest.raises(RestoreError, match=r"the file holds no slots.*--optimizer adam:reset") as caught:
        restore.restore(model, state, optimizer=optimizer)
    assert "--model" not in str(caught.value)


def test_an_unnamed_optimizer_is_found_whatever_is_frozen_now(zoo, tmp_path):
    """An unnamed optimizer is found for any freezing, if it has slots for every weight.

    If layers were frozen, the error says what to do.
    """
    model, optimizer = zoo.readers[0,]
    state = read_checkpoint(write_weights(zoo.writers[0, 1, 2, 3][0], tmp_path))
    assert name_optimizer(state, model, "Adam", None)[0].class_name == "Adam"
    wipe(model)
    restore.restore(model, state, optimizer=optimizer)
    assert_marked(model, optimizer)
    state = read_checkpoint(write_weights(zoo.writers[0, 1, 2][0], tmp_path))
    with pytest.raises(CheckpointError, match=r"If layers were frozen .* --optimizer adam:reset"):
        name_optimizer(state, model, "Adam", None)


def _weight_by_weight(frozen, shape=(5, 4, 3)):
    """Builds two layers; kernels and biases whose names are in `frozen` do not train, which no file records."""
    model = keras.Sequential([keras.Input((shape[0],)), *(keras.layers.Dense(size) for size in shape[1:])])
    for index, role in frozen:
        getattr(model.layers[index], role).trainable = False
    return model


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize("kind", ["m.keras", "m.weights.h5"])
@pytest.mark.parametrize("frozen", [[(0, "kernel")], [(1, "bias")], [(0, "kernel"), (1, "kernel")]])
def test_slots_of_single_weights_that_trained_are_found_by_their_shapes(tmp_path, frozen, kind):
    """Where only one choice fits they are restored, with the frozen weights' slots fresh under --partial."""
    model = _weight_by_weight(frozen)
    model.compile(keras.optimizers.Adam(0.01), "mse")
    model.train_on_batch(np.ones((2, 5), "float32"), np.ones((2, 3), "float32"))
    kept = [weight.trainable for weight in model.weights]
    (model.save if kind == "m.keras" else model.save_weights)(tmp_path / kind)
    live = _weight_by_weight(())
    optimizer = keras.optimizers.Adam(0.01)
    optimizer.build(live.trainable_variables)
    state = read_checkpoint(tmp_path / kind)
    saved, _ = name_optimizer(state, live, "Adam", None) if kind == "m.keras" else (state.optimizer, "")
    state = replace(state, optimizer=replace(saved, class_name="Adam"))
    with pytest.raises(RestoreError, match=f"holds no slots for {2 * len(frozen)} of 8"):
        restore.restore(live, state, optimizer=optimizer)
    restore.restore(live, state, optimizer=optimizer, partial=True)
    written = iter(model.optimizer._velocities)
    for weight, trained, slot in zip(live.weights, kept, optimizer._velocities, strict=True):
        one = np.array(keras.ops.convert_to_numpy(slot))
        other = keras.ops.convert_to_numpy(next(written)) if trained else np.zeros_like(one)
        np.testing.assert_array_equal(one, other, err_msg=weight.path)


@pytest.mark.one_backend(trains=True)
def test_slots_of_weights_of_one_shape_are_not_guessed(tmp_path):
    """Of two equal layers: the message says what would show it, and nothing is restored."""
    model = _weight_by_weight([(0, "kernel"), (0, "bias")], shape=(4, 4, 4))
    model.compile(keras.optimizers.Adam(0.01), "mse")
    model.train_on_batch(np.ones((2, 4), "float32"), np.ones((2, 4), "float32"))
    model.save(tmp_path / "m.keras")
    live = _weight_by_weight((), shape=(4, 4, 4))
    optimizer = keras.optimizers.Adam(0.01)
    optimizer.build(live.trainable_variables)
    before = [np.array(keras.ops.convert_to_numpy(each)) for each in (*live.variables, *optimizer.variables)]
    with pytest.raises(
        RestoreError, match=r"slots for a part of the weights, .* single weights in the function of --model"
    ):
        restore.restore(live, read_checkpoint(tmp_path / "m.keras"), optimizer=optimizer)
    for one, other in zip(before, (*live.variables, *optimizer.variables), strict=True):
        np.testing.assert_array_equal(one, keras.ops.convert_to_numpy(other))


FREEZING = """
import keras

def build(num_classes=3, trained=("conv", "head")):
    model = keras.Sequential([
        keras.Input((10, 10, 3)), keras.layers.Rescaling(1 / 255), keras.layers.Conv2D(4, 3, strides=2, name="conv"),
        keras.layers.Flatten(), keras.layers.Dense(num_classes, activation="softmax", name="head"),
    ])
    for layer in model.layers:
        layer.trainable = layer.name in trained
    return model
"""


def test_a_run_with_slots_that_began_late_continues_exactly(tmp_path, pictures):
    """A run whose slots began late, with their own counts, continues exactly.

    The head trains first, then every layer by `--partial`.
    """
    (tmp_path / "model.py").write_text(FREEZING)
    namespace = {}
    exec(FREEZING, namespace)
    model = namespace["build"](trained=("head",))
    model.compile(keras.optimizers.Adam(1e-2), "sparse_categorical_crossentropy")
    images = np.random.default_rng(0).uniform(0, 255, (6, 10, 10, 3)).astype("float32")
    for _ in range(5):
        model.train_on_batch(images, np.arange(6) % 3)
    model.save(tmp_path / "head.keras")
    arguments = {"model": f"{tmp_path / 'model.py'}:build", "data": [str(pictures / "old")], "pixels": "0-255"}
    options = {**arguments, "lr": 1e-3, "lr_schedule": "constant", "warmup_steps": 0, **TINY, "epochs": 1}
    with pytest.raises(RestoreError, match=r"no slots for 4 of 8, the first is .*conv.*--partial"):
        run_training(str(tmp_path / "head.keras"), out=str(tmp_path / "refused"), **options)
    done = kill_at_every_snapshot(tmp_path, [1], checkpoint=str(tmp_path / "head.keras"), partial=True, **options)
    assert done == ["step-00000001"]
    first, second = (
        snapshot.read_snapshot(snapshot.snapshot_path(tmp_path / "whole" / "snapshots", step)) for step in (0, 1)
    )
    assert first.records[structure.RECORD][structure.COUNTS] == [[0, 5], [1, 5]]
    moved = np.abs(second.arrays["trainable/0"] - first.arrays["trainable/0"])
    assert 0.9e-3 < moved.max() < 1.1e-3  # Adam's first step equals the rate
