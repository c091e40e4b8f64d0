"""Tests what weight decay leaves out: no file of Keras holds it, so it was lost in silence between a script and a run."""

import functools
import json

import keras
import numpy as np
import pytest

import kresume
from kresume import runs
from kresume.checkpoints.read import read_checkpoint
from kresume.errors import CheckpointError, ModelError, UsageError
from kresume.models import optimizers, restore, saved_optimizer, weight_decay
from kresume.options.resolve import from_arguments
from kresume.reporter import Reporter
from kresume.training.preview import make_plan
from kresume.values.state import UNDECAYED
from tests.helpers.backends import few_under_jax
from tests.helpers.runs import TINY, kill_at_every_snapshot, result_arrays, run_training

NAMES = ["bias", "gamma", "beta"]
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(12, 5)).astype("float32"), RNG.integers(0, 3, 12)


def network():
    keras.utils.set_random_seed(1)
    layers = [keras.Input((5,)), keras.layers.Dense(4, name="a"), keras.layers.BatchNormalization(name="b")]
    return keras.Sequential([*layers, keras.layers.Dense(3, name="c")], name="net")


def by_names(optimizer, model):
    optimizer.exclude_from_weight_decay(var_names=NAMES)


def by_layers(optimizer, model):
    optimizer.exclude_from_weight_decay(var_names=["^bias$", "kernel:0", "c/"])  # TensorFlow's and JAX's names differ


def by_variables(optimizer, model):
    optimizer.exclude_from_weight_decay(var_list=[model.get_layer("c").kernel, model.get_layer("a").bias])


def by_both(optimizer, model):
    optimizer.exclude_from_weight_decay(var_list=[model.get_layer("c").kernel], var_names=["gam+a"])


WAYS = {
    "names": by_names,
    "layers": by_layers,
    "variables": by_variables,
    "both": by_both,
    "nothing": lambda optimizer, model: None,
}


def weights_after(optimizer, model, steps=2):
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    for _ in range(steps):
        model.train_on_batch(X, Y)
    return [variable.numpy().tobytes() for variable in model.variables]


@functools.cache
def weights_with_decay_on_all(class_name):
    return weights_after(getattr(keras.optimizers, class_name)(0.01, weight_decay=0.3), network())


COPIES = [*((way, "AdamW") for way in WAYS), ("both", "SGD"), ("both", "Lion")]


@pytest.mark.parametrize(("way", "class_name"), few_under_jax(COPIES, [("layers", "AdamW"), ("both", "AdamW")]))
@pytest.mark.sample("both-AdamW", "both-SGD", "variables-AdamW")
def test_a_copy_of_an_optimizer_decays_what_keras_decays(way, class_name):
    """A copy on a model that is built, or rebuilt from its configuration, trains to the bits of Keras's own."""

    def made(model):
        optimizer = getattr(keras.optimizers, class_name)(0.01, weight_decay=0.3)
        WAYS[way](optimizer, model)
        return optimizer

    expected = weights_after(made(model := network()), model)
    saved = optimizers.describe(made(model := network()), model)
    saved = json.loads(json.dumps(saved.config))  # run.json
    for rebuilt in (False, True):
        copy = optimizers.make_optimizer(optimizers.SavedOptimizer(class_name, saved, 0), 0.01)
        model = network()
        if rebuilt:  # a Sequential that is rebuilt gives its variables other paths
            weights = model.get_weights()
            model = keras.Sequential.from_config(model.get_config())
            model.set_weights(weights)
        weight_decay.settle(copy, model)
        copy.build(model.trainable_variables)
        assert weights_after(copy, model) == expected
        assert optimizers.describe(copy).config.get(UNDECAYED) == saved.get(UNDECAYED)
    assert (UNDECAYED in saved) == (way != "nothing")
    assert (weights_with_decay_on_all(class_name) == expected) == (
        way == "nothing" or (way == "layers" and saved[UNDECAYED] == [])
    )


@pytest.mark.one_backend(trains=True)
def test_a_marked_optimizer_does_not_train_before_it_knows_its_model():
    """It would decay every weight."""
    optimizer = optimizers.make_optimizer(optimizers.SavedOptimizer("AdamW", {UNDECAYED: ["c/bias"]}, 0), 0.01)
    with pytest.raises(ModelError, match="does not know its model"):
        weights_after(optimizer, network())


@pytest.mark.one_backend(trains=True)
def test_loss_scaling_wraps_it():
    """Under mixed_float16 the inner optimizer is described and copied."""
    inner = keras.optimizers.AdamW(0.01)
    inner.exclude_from_weight_decay(var_names=NAMES)
    saved = optimizers.describe(keras.optimizers.LossScaleOptimizer(inner), network())
    assert (saved.loss_scale, saved.config[UNDECAYED]) == (True, ["a/bias", "b/gamma", "b/beta", "c/bias"])
    assert weight_decay.left_out(optimizers.make_optimizer(saved, 0.01)) == tuple(saved.config[UNDECAYED])


FUNCTION = """
import keras
def build(classes=3):
    layers = keras.layers
    inputs = keras.Input((10, 10, 3))
    x = layers.Conv2D(4, 3, name="conv")(layers.Rescaling(1 / 255)(inputs))
    x = layers.GlobalAveragePooling2D()(layers.BatchNormalization(name="bn")(x))
    model = keras.Model(inputs, layers.Dense(classes, "softmax", name="head")(x))
    optimizer = keras.optimizers.AdamW(1e-2, weight_decay=0.2)
    optimizer.exclude_from_weight_decay(var_list=[model.get_layer("head").kernel], var_names=["bias", "gamma", "beta"])
    model.compile(optimizer, "sparse_categorical_crossentropy")
    return model
"""
SEQUENTIAL = """
import keras
def build(classes=3):
    layers = keras.layers
    inner = keras.Sequential([keras.Input((10, 10, 3)), layers.Conv2D(4, 3), layers.BatchNormalization()], name="body")
    other = keras.Sequential([keras.Input((8, 8, 4)), layers.Conv2D(4, 3)], name="neck")
    net = [keras.Input((10, 10, 3)), layers.Rescaling(1 / 255), inner, other, layers.GlobalAveragePooling2D()]
    model = keras.Sequential([*net, layers.Dense(classes, "softmax", name="head")], name="net")
    optimizer = keras.optimizers.AdamW(1e-2, weight_decay=0.2)
    optimizer.exclude_from_weight_decay(var_list=[model.get_layer("head").kernel, other.layers[0].kernel])
    model.compile(optimizer, "sparse_categorical_crossentropy")
    return model
"""
OUT = ["conv/bias", "bn/gamma", "bn/beta", "head/kernel", "head/bias"]


def recorded(run):
    return runs.open_run(run).record.optimizer.config.get(UNDECAYED)


def planned(name, **more):
    return str(
        make_plan(from_arguments(name, {"data": ["old"], "add": ["new"], "trial": False, **more}), Reporter(quiet=True))
    )


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize(("function", "out"), [(FUNCTION, OUT), (SEQUENTIAL, ["neck/conv2d/kernel", "head/kernel"])])
@pytest.mark.sample("function0-out0")
def test_what_the_users_function_leaves_out_stays_out(workplace, function, out):
    """It holds in the run, in its children, a grown head, a new head, model.keras and exports."""
    (workplace / "net.py").write_text(function)
    run_training(model="net.py:build", data=["old"], out="a", **{**TINY, "epochs": 1})
    assert recorded("a") == out
    run_training("a", add=["new"], out="b", epochs=1)
    assert recorded("b") == out
    line = f"weight decay 0.2 leaves out {len(out)} of the model's"
    assert read_checkpoint("a/model.keras").optimizer.config[UNDECAYED] == out
    assert line in planned("a/model.keras")
    kresume.export("a", "made", format="keras")
    assert read_checkpoint("made/model.keras").optimizer.config[UNDECAYED] == out
    (workplace / "new" / "circle").rename(workplace / "new" / "blob")
    assert line in planned("a", grow=True)
    run_training("a", add=["new"], out="c", epochs=1, grow=True)
    assert recorded("c") == out
    assert line in planned("a", data=["new"], add=None, new_head=True)


@pytest.mark.one_backend(trains=True)
def test_the_option_says_what_is_left_out_from_now_on(workplace):
    """A child keeps what the option chose for its parent; none is kept, too; another optimizer or no decay drops it."""
    (workplace / "net.py").write_text(FUNCTION)
    run_training(model="net.py:build", data=["old"], out="a", **{**TINY, "epochs": 1})
    (workplace / "new" / "circle").rename(workplace / "new" / "blob")
    run_training("a", add=["val"], out="d", epochs=1, exclude_from_weight_decay=["bias,gamma", "beta"])
    assert "head/bias" in recorded("d")
    assert "head/kernel" not in recorded("d")
    run_training("d", add=["new"], out="e", epochs=1, grow=True)
    assert recorded("e") == recorded("d")
    run_training("d", add=["new"], out="f", epochs=1, grow=True, exclude_from_weight_decay=["none"])
    assert recorded("f") == read_checkpoint("f/model.keras").optimizer.config[UNDECAYED] == []
    for more in ({"optimizer": "sgd:reset", "lr": 0.1}, {"weight_decay": 0.0}):  # the run's record has no effect then
        assert "weight decay" not in planned("a", grow=True, **more)


@pytest.mark.one_backend(trains=True)
def test_a_killed_run_leaves_out_the_same(tmp_path, pictures):
    """Continued after each of its snapshots it ends with equal bits, and these are not those of decay on all weights."""
    (tmp_path / "net.py").write_text(SEQUENTIAL)
    options = {**TINY, "epochs": 1, "model": f"{tmp_path / 'net.py'}:build", "data": [str(pictures / "old")]}
    assert kill_at_every_snapshot(tmp_path, places=(0, 2), **options)
    run_training(out=str(tmp_path / "all"), exclude_from_weight_decay=["none"], **options)
    one, other = result_arrays(tmp_path / "whole"), result_arrays(tmp_path / "all")
    assert one.keys() == other.keys()
    assert any(one[name].tobytes() != other[name].tobytes() for name in one)


@pytest.mark.one_backend(trains=True)
def test_the_functions_class_brings_what_it_leaves_out(workplace):
    """A checkpoint of Adam that changes to the AdamW of the function leaves out what the function does."""
    (workplace / "net.py").write_text(FUNCTION)
    (workplace / "adam.py").write_text(FUNCTION.replace("AdamW(1e-2, weight_decay=0.2)", "Adam(1e-2)"))
    run_training(model="adam.py:build", data=["old"], out="a", **{**TINY, "epochs": 1})
    kresume.export("a", "made", format="weights-h5")
    found = planned("made/model.weights.h5", model="net.py:build", optimizer="adamw:reset")
    assert "leaves out 5 of the model's" in found


@pytest.mark.one_backend(trains=True)
def test_a_file_of_keras_cannot_say_it_and_the_option_can(workplace):
    """A note says so, only where there is a decay; the option ends it, and one without effect is refused."""
    model = network_of_pictures()
    for name, optimizer in (("adamw", keras.optimizers.AdamW(1e-3)), ("adam", keras.optimizers.Adam(1e-3))):
        model.compile(optimizer, "sparse_categorical_crossentropy")
        model.train_on_batch(np.zeros((2, 10, 10, 3), "float32"), np.zeros(2))
        model.save(f"{name}.keras")

    def of(name, **more):
        return planned(f"{name}.keras", pixels="0-255", **more)

    note = "weight decay 0.004 applies to every weight"
    assert note in of("adamw")
    assert note not in of("adam")
    assert note not in of("adamw", exclude_from_weight_decay=["none"])
    assert note not in of("adamw", weight_decay=0.1)
    assert "leaves out 1 of the model's 2 weights (dense/bias)" in of("adamw", exclude_from_weight_decay=["bias"])
    assert "leaves out 1 of the model's 2 weights (dense/bias)" in of(
        "adam", exclude_from_weight_decay=["bias"], weight_decay=0.1
    )
    for name, given, words in (
        ("adamw", ["biass"], "no weight's path holds this; there are "),
        ("adamw", ["bias", "("], "no regular expression"),
        ("adam", ["bias"], "has no weight decay here"),
    ):
        with pytest.raises(UsageError, match=words):
            of(name, exclude_from_weight_decay=given)


def network_of_pictures():
    inputs = keras.Input((10, 10, 3))
    return keras.Model(inputs, keras.layers.Dense(3, "softmax")(keras.layers.GlobalAveragePooling2D()(inputs)))


def linear():
    keras.utils.set_random_seed(2)
    layers = [keras.Input((5,)), keras.layers.Dense(4, "relu", name="a"), keras.layers.Dense(3, name="c")]
    return keras.Sequential(layers, name="net")


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("groups", ["one", "two"])
def test_groups_of_pytorchs_adamw_decay_as_pytorch_does(tmp_path, groups, older):
    """Its settings and its groups without decay are taken: the next steps give PyTorch's weights.

    Before 2.7 PyTorch wrote Adam and AdamW alike: with `--optimizer adamw`, betas, epsilon and decay were Keras's defaults.
    """
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    net = torch.nn.Sequential()
    net.add_module("a", torch.nn.Linear(5, 4))
    net.add_module("r", torch.nn.ReLU())
    net.add_module("c", torch.nn.Linear(4, 3))
    biases = [each for name, each in net.named_parameters() if "bias" in name]
    kernels = [each for name, each in net.named_parameters() if "bias" not in name]
    asked = [
        {"params": kernels, "weight_decay": 0.5},
        {"params": biases, "weight_decay": 0.0 if groups == "two" else 0.5},
    ]
    trainer = torch.optim.AdamW(
        asked if groups == "two" else net.parameters(), 0.05, (0.7, 0.9), 1e-9, weight_decay=0.5
    )

    def step():
        trainer.zero_grad()
        torch.nn.functional.cross_entropy(net(torch.tensor(X)), torch.tensor(Y)).backward()
        trainer.step()

    for _ in range(3):
        step()
    saved = trainer.state_dict()
    for group in saved["param_groups"]:
        assert group.pop("decoupled_weight_decay") if older else True
    torch.save({"model": net.state_dict(), "optimizer": saved}, tmp_path / "net.pth")
    state, model = read_checkpoint(tmp_path / "net.pth"), linear()
    named, _ = saved_optimizer.name_optimizer(state, model, "AdamW")
    optimizer = saved_optimizer.build_optimizer(model, state, named)
    found = restore.restore(model, state, optimizer=optimizer)
    assert found.undecayed == (("a/bias", "c/bias") if groups == "two" else ())
    assert (named.config["epsilon"], named.config["beta_1"], named.config["weight_decay"]) == (1e-9, 0.7, 0.5)
    weight_decay.mark(optimizer, found.undecayed)
    weight_decay.settle(optimizer, model)
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    for _ in range(5):
        step()
        model.train_on_batch(X, Y)
    for layer in ("a", "c"):
        theirs = net.get_submodule(layer)
        np.testing.assert_allclose(
            model.get_layer(layer).kernel.numpy(), theirs.weight.detach().numpy().T, rtol=2e-4, atol=1e-5
        )
        np.testing.assert_allclose(
            model.get_layer(layer).bias.numpy(), theirs.bias.detach().numpy(), rtol=2e-4, atol=1e-5
        )


@pytest.mark.one_backend(trains=True)
def test_pytorchs_adam_and_adamw_that_look_alike_are_no_other_class(tmp_path):
    """Adam's decay is in the gradient: it needs a word; another class is refused; three decays cannot be kept."""
    torch = pytest.importorskip("torch")
    net = torch.nn.Sequential()
    net.add_module("a", torch.nn.Linear(5, 4))
    net.add_module("c", torch.nn.Linear(4, 3))
    trainer = torch.optim.AdamW(net.parameters(), 0.05, weight_decay=0.5)
    net(torch.tensor(X)).sum().backward()
    trainer.step()
    saved = trainer.state_dict()
    saved["param_groups"][0].pop("decoupled_weight_decay")
    torch.save({"model": net.state_dict(), "optimizer": saved}, tmp_path / "net.pth")
    state = read_checkpoint(tmp_path / "net.pth")
    assert (saved_optimizer.coupled_decay(state, "Adam"), saved_optimizer.coupled_decay(state, "AdamW")) == (0.5, 0.0)
    named, _ = saved_optimizer.name_optimizer(state, linear(), "Adam")
    assert "weight_decay" not in named.config
    with pytest.raises(CheckpointError, match="holds the state of Adam or AdamW, not of Nadam"):
        saved_optimizer.name_optimizer(state, linear(), "Nadam")
    own = optimizers.describe(keras.optimizers.AdamW(0.1, weight_decay=0.7, clipnorm=2.0, beta_1=0.5))
    named, _ = saved_optimizer.name_optimizer(state, linear(), None, own)
    assert {name: named.config[name] for name in ("beta_1", "clipnorm", "weight_decay")} == {
        "beta_1": 0.9, "clipnorm": 2.0, "weight_decay": 0.5
    }  # fmt: skip
    first, second = net.a.parameters(), net.c.parameters()
    other = torch.optim.AdamW([{"params": first, "weight_decay": 0.1}, {"params": second, "weight_decay": 0.2}], 0.1)
    other.zero_grad()
    net.c(net.a(torch.tensor(X))).sum().backward()
    other.step()
    torch.save({"model": net.state_dict(), "optimizer": other.state_dict()}, tmp_path / "three.pth")
    assert "different weight decays (0.1, 0.2)" in read_checkpoint(tmp_path / "three.pth").records["cannot_keep"]
