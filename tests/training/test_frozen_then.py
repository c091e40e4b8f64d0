"""Tests checkpoints without an architecture whose layers were frozen: `--freeze` says which need no slots."""

import keras
import numpy as np
import pytest

from kresume.checkpoints.read import read_checkpoint
from kresume.errors import CheckpointError
from kresume.models import slots
from kresume.options.table import TrainConfig
from kresume.training.plan.parent import Parent, restore_parent
from tests.helpers.steps import step_at_random

MODEL = """
import keras

def build(num_classes=3):
    layers = keras.layers
    return keras.Sequential([
        keras.Input((4, 4, 3)), layers.GlobalAveragePooling2D(), layers.Dense(5, name="stem"),
        layers.Dense(4, name="body"), layers.Dense(num_classes, activation="softmax", name="head"),
    ])
"""
BY_NAME = {"checkpoint", "model.pth"}
"""Formats that name the weight of each slot; in the others the number of slots tells that they do not fit."""
FILES = ["m.weights.h5", *sorted(BY_NAME)]


def read(variable):
    return np.asarray(keras.ops.convert_to_numpy(variable))


def slots_of(optimizer):
    """Returns the slots by kind and layer's weight."""
    found = slots.describe(optimizer)
    names = {id(slot): "/".join(str(slot.weight.path).split("/")[-2:]) for slot in found if slot.weight is not None}
    return {(slot.kind, names[id(slot)]): read(slot.variable) for slot in found if id(slot) in names}


def write_torch(model, path):
    """Writes the model and its optimizer as a PyTorch training with a frozen layer does."""
    torch = pytest.importorskip("torch")
    held, weights, state = slots_of(model.optimizer), {}, {}
    for layer in model.layers[1:]:
        for role, name in (("weight", "kernel"), ("bias", "bias")):
            weights[f"{layer.name}.{role}"] = torch.tensor(read(getattr(layer, name)).T.copy())
            if ("_momentums", f"{layer.name}/{name}") in held:
                average, square = (held[kind, f"{layer.name}/{name}"] for kind in ("_momentums", "_velocities"))
                moments = {"exp_avg": torch.tensor(average.T.copy()), "exp_avg_sq": torch.tensor(square.T.copy())}
                state[len(state)] = {"step": torch.tensor(float(model.optimizer.iterations)), **moments}
    group = {"lr": 0.01, "betas": (0.9, 0.999), "eps": 1e-7, "amsgrad": False, "weight_decay": 0}
    groups = [{**group, "decoupled_weight_decay": False, "params": list(state)}]
    torch.save({"model_state_dict": weights, "optimizer_state_dict": {"state": state, "param_groups": groups}}, path)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Trains a model whose `stem` is frozen, and writes it in every format without an architecture."""
    folder = tmp_path_factory.mktemp("frozen")
    (folder / "model.py").write_text(MODEL)
    namespace = {}
    exec(MODEL, namespace)
    model = namespace["build"]()
    model.get_layer("stem").trainable = False
    model.compile(keras.optimizers.Adam(1e-2), "sparse_categorical_crossentropy")
    step_at_random(model, 3)
    model.save_weights(folder / "m.weights.h5")
    write_torch(model, folder / "model.pth")
    if keras.backend.backend() == "tensorflow":
        import tensorflow

        tensorflow.train.Checkpoint(model=model, optimizer=model.optimizer).save(str(folder / "checkpoint" / "ck"))
    return folder, model


def restored(folder, file, **options):
    """Restores a checkpoint as `train` does."""
    if not (folder / file).exists():
        pytest.skip("TensorFlow alone writes this format")
    config = TrainConfig(from_=str(folder / file), model=f"{folder / 'model.py'}:build", optimizer="adam", **options)
    parent = Parent(read_checkpoint(folder / file), None, None)
    return restore_parent(config, parent, num_classes=3, image_size=None)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("pattern", ["stem", "st*"])
def test_slots_of_frozen_layers_are_not_needed(written, file, pattern):
    """Weights and the slots of the others are restored exactly; the frozen layer stays frozen."""
    folder, model = written
    live = restored(folder, file, freeze=(pattern,))
    assert "no slots in the file for layers that --freeze freezes: stem" in live.summary
    assert [layer.trainable for layer in live.model.layers[1:]] == [False, True, True]
    for mine, theirs in zip(live.model.weights, model.weights, strict=True):
        np.testing.assert_array_equal(read(mine), read(theirs))
    ours, before = slots_of(live.optimizer), slots_of(model.optimizer)
    assert ours.keys() == before.keys()
    assert len(ours) == 8
    for key, array in before.items():
        np.testing.assert_array_equal(ours[key], array)
    assert live.iterations == 3


@pytest.mark.parametrize("file", sorted(BY_NAME))
def test_slots_in_the_file_are_kept_for_a_layer_that_is_frozen_now(written, file):
    """A layer that trained then and is frozen now keeps its slots until the run holds them."""
    folder, model = written
    live = restored(folder, file, freeze=("stem", "body"), unfreeze_at=1)
    assert [layer.trainable for layer in live.model.layers[1:]] == [False, True, True]
    for key, array in slots_of(model.optimizer).items():
        np.testing.assert_array_equal(slots_of(live.optimizer)[key], array)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("freeze", [None, ("head",), ("none",)])
def test_missing_slots_of_whole_layers_name_the_option(written, file, freeze):
    """Without `--freeze`, or with another layer, the error says what to give; nothing is restored."""
    name = "stem leaves them frozen; --partial" if file in BY_NAME else "PATTERN or freeze them in the function"
    with pytest.raises(CheckpointError, match=f"--freeze {name}"):
        restored(written[0], file, freeze=freeze)


@pytest.mark.parametrize("file", sorted(BY_NAME))
def test_partial_starts_missing_slots_fresh_as_before(written, file):
    """`--partial` restores without `--freeze`, and every layer trains."""
    live = restored(written[0], file, partial=True)
    assert "the slots of 2 weights" in live.summary
    assert all(layer.trainable for layer in live.model.layers[1:])
