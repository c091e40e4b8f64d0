"""Tests `kresume inspect` on every golden: its output, its JSON, and skeletons of PyTorch networks."""

import json
import re
import runpy
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from kresume.checkpoints import snapshot
from kresume.checkpoints.inspect import describe
from kresume.checkpoints.layers import layer_table
from kresume.checkpoints.read import read_checkpoint
from kresume.checkpoints.skeleton import skeleton
from kresume.errors import UsageError
from kresume.values.state import TrainState
from tests.helpers.paths import GOLDENS, ROOT
from tests.helpers.runs import TINY, trained

TORCH = GOLDENS / "torch-2.13.0"
NEEDS = {"torch": "torch", "orbax": "orbax.checkpoint"}
EVERY = sorted(
    [file.parent / json.loads(file.read_text())["path"] for file in GOLDENS.glob("*/*/expected.json")]
    + [file.parent / name for file in GOLDENS.glob("*/expected.json") for name in json.loads(file.read_text())]
)


@pytest.mark.parametrize("path", EVERY, ids=[str(path.relative_to(GOLDENS)) for path in EVERY])
@pytest.mark.one_backend
def test_every_format_is_described_by_layer(path):
    """The layers with their shapes add up to the parameter count, without the optimizer's variables.

    The JSON has its documented form.
    """
    writer = path.relative_to(GOLDENS).parts[0].partition("-")[0]
    if writer in NEEDS and path.suffix != ".safetensors":
        pytest.importorskip(NEEDS[writer])
    found = describe(read_checkpoint(path))
    if not path.name.endswith("weights"):  # a list of arrays names no layers
        assert sum(row.parameters for row in found.layers) == found.parameters > 0
        assert len({row.name for row in found.layers}) == len(found.layers) >= 2
        assert not any(re.search(r"adam|momentum|velocit|optimizer|iteration", row.name) for row in found.layers)
    value = json.loads(json.dumps(found.as_dict()))
    assert ("peak of its schedule" in str(found)) == bool(value["rate"] and value["rate"]["schedule"])
    page = (ROOT / "docs" / "checkpoint-formats.md").read_text(encoding="utf-8").partition("inspect --json`")[2]
    rows = "".join(line.split("|")[1] for line in page.splitlines() if line.startswith("| `"))
    assert set(re.findall(r"`(\w+)`", rows)) == set(value)
    assert value["written"][:2] == "20"
    options = " ".join(found.missing)
    assert "--data" in options
    assert ("--model" in options) == (not found.architecture)


@pytest.mark.one_backend
def test_the_layers_of_a_large_graph_stand_in_their_order(tmp_path):
    """The layers of a large graph are in the table's order, although TensorFlow sorts keys as text."""
    tf = pytest.importorskip("tensorflow")
    root = tf.Module()
    root.parts = [tf.Variable(np.zeros((1, index + 1)), name=f"part{index}/kernel") for index in range(12)]
    tf.train.Checkpoint(net=root).write(str(tmp_path / "ckpt"))
    names = [row.name for row in layer_table(read_checkpoint(tmp_path / "ckpt"))]
    assert names == [f"part{index}" for index in range(12)]


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize("name", ["plain-adam.pth", "residual.pth", "mobile-adamw.pth", "plain.safetensors"])
def test_a_skeleton_runs_and_takes_every_array_by_name(tmp_path, name):
    """A skeleton runs and maps every array by its module's name; each open question is marked."""
    from kresume.models import restore, torch_map

    if not name.endswith(".safetensors"):
        pytest.importorskip("torch")
    state = read_checkpoint(TORCH / name)
    (tmp_path / "model.py").write_text(skeleton(state, "model.py"))
    model = runpy.run_path(str(tmp_path / "model.py"))["build"]((12, 12))
    mapped, how = torch_map.to_model(model, None, state)
    restore.restore(model, mapped, optimizer=None)
    assert re.match(r"PyTorch's layers matched: \d+ by name$", how)
    assert (tmp_path / "model.py").read_text().count("fill in") >= len(layer_table(state)) - 1


@pytest.mark.one_backend(trains=True)
def test_a_skeleton_of_a_transformer_says_what_it_could_not_write(tmp_path):
    """A transformer's skeleton names the loose parameter that it cannot write; all others map."""
    pytest.importorskip("torch")
    from kresume.models import restore, torch_map

    state = read_checkpoint(TORCH / "transformer-nesterov.pth")
    text = skeleton(state, "model.py")
    assert "# fill in: position (1, 9, 8) is a parameter outside of layers" in text
    (tmp_path / "model.py").write_text(text)
    model = runpy.run_path(str(tmp_path / "model.py"))["build"]((12, 12))
    mapped, _ = torch_map.to_model(model, None, state)
    rows = restore.restore(model, mapped, optimizer=None, partial=True).rows
    assert [row[0] for row in rows if row[3] != restore.RESTORED] == ["(position)"]


def test_a_name_in_a_state_dict_never_becomes_a_line_of_code(tmp_path):
    """Array names in a state dict appear only in comments and strings of the skeleton.

    The user runs the skeleton as code.
    """
    name = 'x\n    raise SystemExit("planted")\n    #'
    arrays = {f"{name}.weight": np.zeros((4, 3, 3, 3), "float32"), f"{name}.odd": np.zeros((2, 2, 2), "float32")}
    path = tmp_path / 'a"""\nraise SystemExit("planted")\n"""b.pth'
    state = TrainState(str(path), "torch", "torch", arrays)
    source = skeleton(state, str(tmp_path / "model.py"))
    code = [line.split("#")[0] for line in source.splitlines()]
    assert not [line for line in code if line.strip().startswith("raise")]
    space: dict = {}
    exec(compile(source, "model.py", "exec"), space)
    assert space["build"]().count_params() > 0


def dense(inputs, outputs):
    """Returns the arrays of a PyTorch layer."""
    return {"weight": np.zeros((outputs, inputs), "float32"), "bias": np.zeros(outputs, "float32")}


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize(
    ("layers", "shape", "words"),
    [
        (
            {"conv": {"weight": np.zeros((4, 1, 3, 3), "float32")}},
            (64, 64, 1),
            "grey: the first convolution has 1 input channel",
        ),
        (
            {"conv": {"weight": np.zeros((4, 3, 3, 3), "float32")}},
            (64, 64, 3),
            "RGB: the first convolution has 3 input channels",
        ),
        ({"fc": dense(784, 8), "out": dense(8, 3)}, (784,), None),
        ({"fc": dense(3072, 8), "out": dense(8, 3)}, (3072,), None),
    ],
)
def test_a_skeleton_takes_pictures_that_a_plan_feeds(layers, shape, words):
    """A skeleton for grey pictures or rows of numbers is planned by `plan`, and `inspect` names its input."""
    from kresume.models.inputs import layout_of

    arrays = {f"{name}.{role}": array for name, roles in layers.items() for role, array in roles.items()}
    state = TrainState("net.pth", "torch", "torch", arrays)
    assert words is None or describe(state).input.startswith(words)
    space: dict = {}
    exec(compile(skeleton(state, "model.py"), "model.py", "exec"), space)
    model = space["build"]()
    assert model.input_shape[1:] == shape
    assert layout_of(model, None, None, None)[0].channels == (1 if 1 in shape or shape == (784,) else 3)


@pytest.mark.one_backend
def test_a_skeleton_that_no_picture_fits_is_not_written():
    """Four channels, neither RGB nor grey, are refused before the user fills in a skeleton."""
    arrays = {"conv.weight": np.zeros((4, 4, 3, 3), "float32")}
    with pytest.raises(UsageError, match="has 4 input channels; kresume trains on RGB and grey"):
        skeleton(TrainState("net.pth", "torch", "torch", arrays), "model.py")


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ((28, 28, 1), "grey (height, width, 1), 28x28"),
        ((28, 28), "grey (height, width), 28x28"),
        ((3, 32, 48), "RGB (3, height, width), 32x48"),
        ((None, None, 3), "RGB (height, width, 3), any size"),
        ((784,), "grey, 784 values in one row, 28x28; kresume finds their order on old images, or give --axes"),
        ((1000,), "(1000): give --image-size HEIGHTxWIDTH"),
        ((32, 32, 4), "(32, 32, 4): not an RGB or grey image"),
    ],
)
@pytest.mark.parametrize("kind", ["functional", "sequential", "nested"])
def test_inspect_says_how_a_model_takes_pictures(tmp_path, inputs, words, kind):
    """`inspect` reads the layout from a graph, a Sequential, or a Sequential that begins with a model."""
    import keras

    given = keras.Input(inputs)
    functional = keras.Model(given, keras.layers.Dense(3)(given))
    model = functional if kind == "functional" else keras.Sequential([keras.Input(inputs), keras.layers.Dense(3)])
    model = model if kind != "nested" else keras.Sequential([functional, keras.layers.Dense(2)])
    model.save(tmp_path / "model.keras")
    found = describe(read_checkpoint(tmp_path / "model.keras"))
    assert found.input == words
    assert f"input       {words}" in str(found)


@pytest.mark.one_backend(trains=True)
def test_inspect_counts_several_inputs(tmp_path):
    """`inspect` counts several inputs, which no picture alone can feed."""
    import keras

    one, other = keras.Input((8, 8, 1)), keras.Input((4,))
    outputs = keras.layers.Concatenate()([keras.layers.Flatten()(one), other])
    keras.Model([one, other], outputs).save(tmp_path / "model.keras")
    assert describe(read_checkpoint(tmp_path / "model.keras")).input.startswith("2 inputs, (8, 8, 1), (4): ")


@pytest.mark.one_backend
def test_the_command_writes_the_skeleton_once(tmp_path, monkeypatch):
    """`--write-model` names the next command, overwrites nothing, and refuses other formats."""
    from kresume.cli import cli

    monkeypatch.chdir(tmp_path)
    command = ["inspect", str(TORCH / "plain.safetensors"), "--write-model", "model.py"]
    done = CliRunner().invoke(cli, command, catch_exceptions=False)
    assert (tmp_path / "model.py").read_text().startswith('"""A skeleton of the network in plain.safetensors')
    assert "kresume train --from" in done.stderr
    assert "features.0" in done.stdout
    again = CliRunner().invoke(cli, command)
    assert isinstance(again.exception, UsageError)
    assert "the file already exists" in str(again.exception)
    with pytest.raises(UsageError, match="holds its architecture"):
        skeleton(read_checkpoint(GOLDENS / "keras-3.15.1" / "keras-cnn-adam" / "model.keras"), "model.py")


@pytest.mark.one_backend(trains=True)
def test_a_run_is_shown_by_layer(tmp_path, pictures):
    """A run is shown by layer, in the model's order, without optimizer and metrics."""
    path = str(trained(tmp_path / "run", data=[str(pictures / "old")], **TINY))
    shown = describe(read_checkpoint(path))
    names = [row.name for row in shown.layers]
    assert names[0].startswith("conv2d")
    assert names[-1] == "head"
    roles = {role for row in shown.layers for role, _ in row.arrays}
    assert {"kernel", "bias", "gamma", "moving_mean"} <= roles
    assert not any("seed" in role or "momentum" in role for role in roles)
    assert shown.parameters == sum(row.parameters for row in shown.layers)
    bare = describe(read_checkpoint(str(snapshot.list_snapshots(Path(path) / "snapshots")[0][1])))
    assert [name for name, _, _ in bare.variables if name.startswith("optimizer/")][:3] == [
        f"optimizer/{number}" for number in range(3)
    ]
