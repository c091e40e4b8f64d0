"""A TensorFlow checkpoint may hold a model beside its averages or its teacher, and several optimizers."""

import json

import keras
import numpy as np
import pytest

from kresume.checkpoints import graph_optimizer, inspect
from kresume.checkpoints.read import read_checkpoint
from kresume.errors import RestoreError
from kresume.models.load import Subject, load
from kresume.models.restore import restore
from kresume.values.state import GraphNode

FIRST, SECOND = 1.0, 2.0
"""Every weight of the model that was trained, and of the other one."""


def network(*, filled=None, written_by=keras):
    layers = [written_by.layers.Dense(4, activation="relu"), written_by.layers.Dense(3)]
    model = written_by.Sequential([written_by.Input((27,)), *layers])
    if filled is not None:
        model.set_weights([np.full_like(weight, filled) for weight in model.get_weights()])
    return model


def optimizer_of(model, *, steps, written_by=keras, legacy=False, variables=None):
    """Returns an Adam that stepped on a model, whose weights stay as they are."""
    optimizer = written_by.optimizers.legacy.Adam(1e-2) if legacy else written_by.optimizers.Adam(1e-2)
    variables = list(model.trainable_variables) if variables is None else variables
    before = [np.array(variable) for variable in variables]
    for _ in range(steps):
        optimizer.apply_gradients([(np.full(variable.shape, 0.5, "float32"), variable) for variable in variables])
    for variable, value in zip(variables, before, strict=True):
        variable.assign(value)
    return optimizer


def compiled():
    model = network()
    model.compile(keras.optimizers.Adam(1e-2), "mse")
    model.optimizer.build(model.trainable_variables)
    return model


def write(path, **parts):
    import tensorflow as tf

    tf.train.Checkpoint(**parts).write(str(path))
    return read_checkpoint(str(path))


def values(model):
    return {float(np.unique(weight)[0]) for weight in model.get_weights()}


WRITERS = ["keras-3", "keras-2", "legacy"]


def parts_of(writer):
    """Returns a trained model, the other one, and the optimizer that trained the first for 3 steps."""
    if writer == "keras-3":
        model, other = network(filled=FIRST), network(filled=SECOND)
        return model, other, optimizer_of(model, steps=3)
    tf_keras = pytest.importorskip("tf_keras")
    model, other = network(filled=FIRST, written_by=tf_keras), network(filled=SECOND, written_by=tf_keras)
    return model, other, optimizer_of(model, steps=3, written_by=tf_keras, legacy=writer == "legacy")


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize(
    "names", [("model", "ema"), ("online", "model"), ("student", "teacher"), ("zebra", "anything")], ids="-".join
)
@pytest.mark.parametrize("with_state", [True, False], ids=["optimizer", "weights"])
def test_the_model_that_the_optimizer_trains_is_restored(tmp_path, writer, names, with_state):
    model, other, optimizer = parts_of(writer)
    state = write(tmp_path / "both", **{names[1]: other, names[0]: model}, optimizer=optimizer)
    live = compiled()
    done = restore(live, state, optimizer=live.optimizer if with_state else None)
    assert values(live) == {FIRST}
    assert f"the file also holds the weights of {names[1]}" in done.summary
    assert f"{names[0]} is used, which the optimizer trains" in done.summary
    if with_state:
        assert int(live.optimizer.iterations) == 3
        assert all(np.any(np.array(slot)) for slot in live.optimizer._momentums)


GRAPHS = {
    "keras-3": [GraphNode({"_iterations": 2, "_trainable_variables": 5}), GraphNode({"0": 1})],
    "keras-2": [
        GraphNode({"_iterations": 2, "_variables": 5}),
        GraphNode({"0": 6}),
        GraphNode({}, "m", "Adam/m/dense/kernel"),
    ],
    "legacy": [
        GraphNode({"iter": 2, "learning_rate": 2}, slots={(1, "m"): 5}),
        GraphNode({}, "m", "dense/kernel/m"),
    ],
}
"""An optimizer, and the nodes from number 5 on."""


@pytest.mark.one_backend
@pytest.mark.parametrize("style", GRAPHS)
def test_the_weights_that_an_optimizer_trains_are_found(style):
    """Keras 3 lists them, the new optimizers of Keras 2 name their slots after them, the legacy ones link to them."""
    optimizer, *rest = GRAPHS[style]
    bystander = GraphNode({}, "b", "ema/kernel")
    root, weight, count = (
        GraphNode({"optimizer": 3}),
        GraphNode({}, "w", "dense/kernel"),
        GraphNode({}, "n", "iterations"),
    )
    nodes = [root, weight, count, optimizer, bystander, *rest]
    assert graph_optimizer.find_optimizers(nodes) == [3]
    assert graph_optimizer.style(nodes[3]) == style
    assert graph_optimizer.trained(nodes, 3) == {"w"}


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize("partial", [True, False])
def test_without_an_optimizer_a_usual_name_decides_or_nothing_is_restored(tmp_path, partial):
    model, other, _ = parts_of("keras-3")
    live = compiled()
    done = restore(live, write(tmp_path / "named", average=other, net=model), optimizer=None, partial=partial)
    assert values(live) == {FIRST}
    assert "net is used, by its name" in done.summary
    for names in (("a", "b"), ("model", "net")):
        state = write(tmp_path / names[0], **{names[0]: model, names[1]: other})
        with pytest.raises(RestoreError, match="holds several models that fit: ") as caught:
            restore(live, state, optimizer=None, partial=partial)
        assert all(name in str(caught.value) for name in names)
    assert values(live) == {FIRST}


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize("inside", [False, True], ids=["at the root", "inside another object"])
def test_the_way_to_the_other_model_works(tmp_path, inside):
    import tensorflow as tf

    model, other, optimizer = parts_of("keras-3")
    whole = {"model": model, "ema": other} if not inside else {"run": tf.train.Checkpoint(model=model, ema=other)}
    done = restore(network(), write(tmp_path / "both", **whole, optimizer=optimizer), optimizer=None)
    code = done.summary.partition("alone: ")[2].partition(" (")[0].removesuffix(")")
    space = {"tf": tf, "MODEL": network(), "PATH": str(tmp_path / "both")}
    exec(code.replace("'other'", repr(str(tmp_path / "other"))), space)
    live = network()
    restore(live, read_checkpoint(str(tmp_path / "other")), optimizer=None)
    assert values(live) == {SECOND}


@pytest.mark.one_backend(trains=True)
def test_a_larger_model_beside_the_live_one_is_not_taken(tmp_path):
    """The layers of the discriminator have the same places in its graph, and other shapes."""
    wide = keras.Sequential([keras.Input((7,)), *(keras.layers.Dense(size) for size in (6, 5, 4, 1))])
    state = write(tmp_path / "gan", discriminator=wide, generator=network(filled=FIRST))
    live = network()
    with pytest.raises(RestoreError, match="holds 8 arrays for which the model has no variable"):
        restore(live, state, optimizer=None)
    restore(live, state, optimizer=None, partial=True)
    assert values(live) == {FIRST}


@pytest.mark.one_backend(trains=True)
def test_of_several_optimizers_the_one_that_trains_the_model_is_continued(tmp_path):
    model, critic = network(filled=FIRST), keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    parts = {"optimizer": optimizer_of(critic, steps=5), "of_model": optimizer_of(model, steps=3)}
    state = write(tmp_path / "two", critic=critic, model=model, **parts)
    assert state.step == 3
    assert "the file holds 2 optimizers" in str(inspect.describe(state))
    live = compiled()
    restore(live, state, optimizer=live.optimizer, partial=True)
    assert values(live) == {FIRST}
    assert int(live.optimizer.iterations) == 3


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize("name", ["model", "classifier"])
def test_the_optimizer_of_a_larger_model_is_not_taken(tmp_path, name):
    """The step and the rate are those of the optimizer that trains the model, or nothing is restored."""
    model, larger = network(filled=FIRST), keras.Sequential([keras.Input((9,)), *map(keras.layers.Dense, (8, 7, 6, 5))])
    parts = {"z_optimizer": optimizer_of(larger, steps=5), "a_optimizer": optimizer_of(model, steps=3)}
    state = write(tmp_path / "two", generator=larger, **{name: model}, **parts)
    live = compiled()
    if name == "model":
        restore(live, state, optimizer=live.optimizer, partial=True)
        assert (state.step, int(live.optimizer.iterations), values(live)) == (3, 3, {FIRST})
        return
    with pytest.raises(
        RestoreError, match="a_optimizer trains this model, but step and rate were read from z_optimizer"
    ):
        restore(live, state, optimizer=live.optimizer, partial=True)


@pytest.mark.one_backend(trains=True)
def test_a_model_trained_by_two_optimizers_starts_a_fresh_one(tmp_path):
    model = network(filled=FIRST)
    body, head = model.trainable_variables[:2], model.trainable_variables[2:]
    state = write(
        tmp_path / "two",
        model=model,
        body_optimizer=optimizer_of(model, steps=3, variables=body),
        head_optimizer=optimizer_of(model, steps=5, variables=head),
    )
    live = compiled()
    with pytest.raises(RestoreError, match=r"2 optimizers that train .*\(body_optimizer, head_optimizer\)"):
        restore(live, state, optimizer=live.optimizer)
    restore(live, state, optimizer=None)
    assert values(live) == {FIRST}


@pytest.mark.one_backend(trains=True)
def test_eval_says_which_model_it_scores(tmp_path):
    model, other, optimizer = parts_of("keras-3")
    write(tmp_path / "both", model=model, ema=other, optimizer=optimizer)
    (tmp_path / "net.py").write_text(
        "import keras\n\ndef make():\n    layers = [keras.layers.Dense(4, activation='relu'), keras.layers.Dense(3)]\n"
        "    return keras.Sequential([keras.Input((27,)), *layers])\n"
    )
    subject = Subject(str(tmp_path / "both"), model=f"{tmp_path}/net.py:make", image_size=(3, 3))
    assert "model is used, which the optimizer trains" in "; ".join(load(subject, anonymous=True).notes)


class Twins(keras.Model):
    """Has two layers of one shape."""

    def __init__(self):
        super().__init__()
        self.one, self.two = keras.layers.Dense(4), keras.layers.Dense(4)

    def call(self, x):
        return self.two(self.one(x))


@pytest.mark.one_backend(trains=True)
def test_inspect_names_the_models(tmp_path):
    import tensorflow as tf

    model, other, optimizer = parts_of("keras-3")
    found = inspect.describe(write(tmp_path / "both", model=model, ema=other, optimizer=optimizer))
    assert "ema, model" in json.dumps(found.as_dict()["notes"])
    alone = inspect.describe(write(tmp_path / "one", model=model, optimizer=optimizer))
    assert alone.notes == ()
    twins = Twins()
    twins(np.zeros((1, 4), "float32"))
    twins.save_weights(str(tmp_path / "x.weights.h5"))
    tf.train.Checkpoint(twins).write(str(tmp_path / "root"))
    assert inspect.describe(read_checkpoint(str(tmp_path / "root"))).notes == ()
    twins.export(str(tmp_path / "export"), verbose=False)
    assert not [note for note in inspect.describe(read_checkpoint(str(tmp_path / "export"))).notes if "shapes" in note]


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize("file", ["m.keras", "m.weights.h5"])
def test_the_optimizer_of_an_inner_model_needs_no_variable(tmp_path, file):
    """A compiled model that became a layer keeps its optimizer in the file: it trains nothing, and its arrays are left out."""
    rng = np.random.default_rng(0)

    def build():
        inner = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4, activation="relu")])
        outer = keras.Sequential([keras.Input((6,)), inner, keras.layers.Dense(3)])
        outer.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        return inner, outer

    inner, outer = build()
    inner.compile("adam", "mse")
    inner.fit(rng.random((8, 6)), rng.random((8, 4)), verbose=0)
    outer.fit(rng.random((8, 6)), rng.integers(0, 3, 8), verbose=0)
    outer.save(tmp_path / file) if file == "m.keras" else outer.save_weights(tmp_path / file)
    state = read_checkpoint(str(tmp_path / file))
    assert any("/optimizer/vars/" in name for name in state.arrays)
    _, live = build()
    live.optimizer.build(live.trainable_variables)
    found = restore(live, state, optimizer=live.optimizer)
    assert "restored" in str(found)
    for now, before in zip(
        live.variables + live.optimizer.variables, outer.variables + outer.optimizer.variables, strict=True
    ):
        np.testing.assert_array_equal(np.array(now), np.array(before))
    state.arrays["layers/other/optimizer/vars/0"] = np.ones((3, 3), np.float32)  # no count: a layer of that name
    with pytest.raises(RestoreError, match="holds 1 arrays for which the model has no variable"):
        restore(live, state, optimizer=live.optimizer)


@pytest.mark.one_backend(trains=True)
def test_a_loss_scaled_optimizer_of_an_inner_model_needs_no_variable(tmp_path):
    """Under mixed_float16 it is stored twice."""
    inner = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4)])
    inner.compile(keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam()), "mse")
    inner.fit(np.ones((4, 6)), np.ones((4, 4)), verbose=0)
    outer = keras.Sequential([keras.Input((6,)), inner, keras.layers.Dense(3)])
    outer.save(tmp_path / "m.keras")
    state = read_checkpoint(str(tmp_path / "m.keras"))
    assert any("/inner_optimizer/vars/" in name for name in state.arrays)
    live = keras.models.clone_model(outer)
    restore(live, state, optimizer=None)
    for now, before in zip(live.variables, outer.variables, strict=True):
        np.testing.assert_array_equal(np.array(now), np.array(before))
