"""Tests adapters (LoRA) and weights that are frozen by themselves: restored, continued, left frozen."""

import json
from pathlib import Path

import keras
import numpy as np
import pytest

import kresume
from kresume.checkpoints.read import read_checkpoint
from kresume.models import adapters, build, optimizers, restore, slots
from kresume.models.architecture import serialize
from kresume.models.build import from_architecture
from kresume.models.freeze import set_frozen
from kresume.models.head import build_wider, find_head
from kresume.training.plan.notes import frozen_layers
from kresume.values.freezing import Freezing
from tests.helpers.backends import few_under_jax
from tests.helpers.runs import TINY, kill_at_every_snapshot, run_training

OWN = """
import keras

def network(kind):
    layers = keras.layers
    model = keras.Sequential([
        keras.Input((10, 10, 3)), layers.Rescaling(1 / 255), layers.Conv2D(4, 3, name="conv"), layers.GlobalAveragePooling2D(),
        layers.Dense(6, "relu", name="inner"), layers.Dense(3, "softmax", name="head"),
    ])
    if kind == "adapters":
        model.get_layer("conv").enable_lora(2)
        model.get_layer("inner").enable_lora(2, lora_alpha=7)
    else:
        model.get_layer("inner").kernel.trainable = False
    return model

def adapted():
    return network("adapters")

def in_part():
    return network("in part")
"""


def value(variable):
    return np.array(keras.ops.convert_to_numpy(variable.value))


def images(count=8):
    return np.random.default_rng(0).uniform(0, 255, (count, 8, 8, 3)).astype("float32")


def written(path):
    """Trains a model with adapters in layers of four classes and saves it with plain Keras."""
    keras.utils.set_random_seed(4)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Rescaling(1 / 255),
            layers.Conv2D(4, 3, name="conv"),
            layers.EinsumDense("abcd,de->abce", (None, None, 5), bias_axes="e", name="einsum"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(6, "relu", name="inner"),
            layers.Dense(3, "softmax", name="head"),
        ]
    )
    for name in ("conv", "einsum"):
        model.get_layer(name).enable_lora(2)
    model.get_layer("inner").enable_lora(2, lora_alpha=7)
    model.compile(keras.optimizers.Adam(1e-2), "sparse_categorical_crossentropy", run_eagerly=True)
    for _ in range(3):
        model.train_on_batch(images(), np.arange(8) % 3)
    model.save(path)
    return model


def restored(path):
    state = read_checkpoint(path)
    model = build.build_model(None, state=state, num_classes=3, image_size=None)
    optimizer = optimizers.make_optimizer(state.optimizer, 1e-2)
    optimizer.build(model.trainable_variables)
    return model, optimizer, restore.restore(model, state, optimizer=optimizer)


@pytest.mark.one_backend(trains=True)
def test_a_file_of_keras_is_restored_and_its_adapters_train(tmp_path):
    """It predicts as its writer; weights with an adapter keep their bits, and both factors move.

    Keras itself loads both factors as zeros, and no gradient reaches them.
    """
    writer = written(tmp_path / "m.keras")
    model, optimizer, said = restored(tmp_path / "m.keras")
    np.testing.assert_allclose(model.predict(images(), verbose=0), writer.predict(images(), verbose=0), atol=1e-6)
    assert "the LoRA of 3 layers is part of the weights" in said.summary
    assert model.get_layer("inner").lora_alpha == 7
    theirs = {
        id(slot.weight): value(slot.variable) for slot in slots.describe(writer.optimizer) if slot.kind == "_velocities"
    }
    for name in ("conv", "einsum", "inner", "head"):
        (bias, own) = (each.get_layer(name).bias for each in (model, writer))
        (slot,) = (
            each.variable for each in slots.describe(optimizer) if each.weight is bias and each.kind == "_velocities"
        )
        assert value(slot).tobytes() == theirs[id(own)].tobytes()
    for layer in adapters.adapted(model):
        assert [bool(value(factor).any()) for factor in adapters.factors(layer)] == [True, False]
        of = {id(factor) for factor in adapters.factors(layer)}
        assert not any(value(slot.variable).any() for slot in slots.describe(optimizer) if id(slot.weight) in of)
    bases = [value(adapters.base(layer)) for layer in adapters.adapted(model)]
    first = [value(factor) for layer in adapters.adapted(model) for factor in adapters.factors(layer)]
    model.compile(optimizer, "sparse_categorical_crossentropy", run_eagerly=True)
    for _ in range(2):
        model.train_on_batch(images(), np.arange(8) % 3)
    now = [value(factor) for layer in adapters.adapted(model) for factor in adapters.factors(layer)]
    assert all(one.tobytes() != other.tobytes() for one, other in zip(first, now, strict=True))
    for before, layer in zip(bases, adapters.adapted(model), strict=True):
        assert value(adapters.base(layer)).tobytes() == before.tobytes()


@pytest.mark.one_backend(trains=True)
def test_the_training_formats_hold_adapters_as_part_of_their_weights(tmp_path, pictures):
    """Plain Keras adds the product to the kernel when it saves; an export's check refused what it read back."""
    (tmp_path / "own.py").write_text(OWN)
    options = {**TINY, "model": f"{tmp_path / 'own.py'}:adapted", "epochs": 2, "lr": 0.1}
    run = Path(run_training(data=[str(pictures / "old")], out=str(tmp_path / "run"), **options).run)
    arrays = read_checkpoint(run).arrays
    first, second = arrays["trainable/4"], arrays["trainable/5"]
    assert first.any()
    assert second.any()
    kernel = frozen_kernel(arrays) + 7 / 2 * first @ second
    inputs = np.random.default_rng(0).uniform(0, 255, (8, 10, 10, 3)).astype("float32")
    answers = keras.saving.load_model(run / "model.keras").predict(inputs, verbose=0)
    for name in ("keras", "weights-h5", "tf-checkpoint"):
        kresume.export(run, tmp_path / name, format=name)
        facts = json.loads((tmp_path / name / "export.json").read_text())
        assert "the LoRA of 2 layers is part of the weights" in json.dumps(facts)
        back = read_checkpoint(tmp_path / name / facts.get("file", "")).arrays
        np.testing.assert_allclose(frozen_kernel(back), kernel, atol=1e-6)
    model = keras.saving.load_model(tmp_path / "keras" / "model.keras")
    np.testing.assert_allclose(model.predict(inputs, verbose=0), answers, atol=1e-6)
    np.testing.assert_allclose(value(model.get_layer("inner")._kernel), kernel, atol=1e-6)


def frozen_kernel(arrays):
    """Returns the kernel of the layer `inner`."""
    return next(array for array in arrays.values() if array.shape == (4, 6))


@pytest.mark.one_backend(trains=True)
def test_factors_that_keras_loaded_as_zeros_get_numbers(tmp_path):
    """A model that the user's code loaded with Keras trains on, too."""
    written(tmp_path / "m.keras")
    model = keras.saving.load_model(tmp_path / "m.keras")
    assert not any(value(factor).any() for layer in adapters.adapted(model) for factor in adapters.factors(layer))
    restore.restore(model, read_checkpoint(tmp_path / "m.keras"), optimizer=None)
    for layer in adapters.adapted(model):
        assert [bool(value(factor).any()) for factor in adapters.factors(layer)] == [True, False]


KINDS = ["adapted", "in_part"]


@pytest.mark.parametrize("kind", few_under_jax(KINDS, KINDS[:1]))
@pytest.mark.sample("adapted")
def test_a_run_continues_exactly_and_its_child_trains_the_same_weights(tmp_path, pictures, kind):
    """Killed, also with layers that train later, it ends with the same bits; no frozen weight changes."""
    (tmp_path / "own.py").write_text(OWN)
    options = {**TINY, "model": f"{tmp_path / 'own.py'}:{kind}", "freeze": ["inner"], "unfreeze_at": 1, "epochs": 2}
    kill_at_every_snapshot(tmp_path, places=(1, -2), data=[str(pictures / "old")], **options)
    first = dict(read_checkpoint(tmp_path / "whole" / "snapshots" / "step-00000000").arrays)
    child = run_training(
        str(tmp_path / "whole"), add=[str(pictures / "new")], epochs=1, out=str(tmp_path / "child")
    ).run
    for run in (tmp_path / "whole", child):
        assert frozen_bytes(first, kind) == frozen_bytes(dict(read_checkpoint(run).arrays), kind), run


def frozen_bytes(arrays, kind):
    """Returns the bytes of the kernels that never train, by their shapes."""
    shapes = {"adapted": [(3, 3, 3, 4), (4, 6)], "in_part": [(4, 6)]}[kind]
    return [next(array.tobytes() for array in arrays.values() if array.shape == shape) for shape in shapes]


@pytest.mark.one_backend(trains=True)
def test_weights_that_were_frozen_by_themselves_stay_frozen():
    """They do in a model that is built again, or with more outputs, and when their layer was frozen."""
    space = {}
    exec(OWN, space)
    for kind, frozen in (("adapters", {"conv/kernel", "inner/kernel"}), ("in part", {"inner/kernel"})):
        model = from_architecture(serialize(space["network"](kind)))
        for epochs in (0, 1):
            set_frozen(model, Freezing(first=("conv2d", "dense"), until=1), epochs)
        assert {each.path for each in model.non_trainable_variables} == frozen
        wider, _ = build_wider(model, find_head(model), 5, softmax=False, again=None)
        assert {each.path for each in wider.non_trainable_variables} == frozen
        assert ("train their adapters" if kind == "adapters" else "of inner only some weights train") in frozen_layers(
            model
        )[0]


@pytest.mark.one_backend(trains=True)
def test_whole_numbers_are_said_not_to_train():
    """A kernel of int8 stays what it is, and a note says so."""
    space = {}
    exec(OWN, space)
    model = space["network"]("in part")
    model.get_layer("inner").quantize("int8")
    (said,) = frozen_layers(model)
    assert said.startswith("the weights of inner are whole numbers (int8) and do not train")
