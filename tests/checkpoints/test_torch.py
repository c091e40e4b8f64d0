"""Tests PyTorch state dicts: read without running code, transposed, matched, verified, continued."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest

import kresume
from kresume.checkpoints.read import read_checkpoint
from kresume.checkpoints.skeleton import skeleton
from kresume.errors import CheckpointError, ModelError, RestoreError, UsageError
from kresume.models import optimizers, restore, torch_map, torch_rewritten
from kresume.models.torch_layout import Conversion, convert
from kresume.values.state import TrainState
from tests.helpers.backends import few_under_jax
from tests.helpers.flaky_bucket import FlakyBucket
from tests.helpers.golden_models import MODELS
from tests.helpers.paths import GOLDENS, WRITERS
from tests.helpers.runs import assert_same_bytes, run_training

GOLDEN = GOLDENS / "torch-2.13.0"
EXPECTED = json.loads((GOLDEN / "expected.json").read_text())
sys.path.insert(0, str(WRITERS))
from inputs import IMAGES, LABELS  # noqa: E402


def needs_torch(name):
    if not name.endswith(".safetensors"):
        pytest.importorskip("torch")


def restored(name, **options):
    """Restores the golden into its Keras twin.

    Returns:
        `(model, optimizer or None, state)`.
    """
    state = read_checkpoint(GOLDEN / name)
    model = MODELS[EXPECTED[name]["model"]]()
    optimizer = None
    if state.optimizer is not None:
        optimizer = optimizers.make_optimizer(state.optimizer, state.rate.value)
        optimizer.build(model.trainable_variables)
    restoration = restore.restore(model, state, optimizer=optimizer, **options)
    assert "PyTorch's layers matched: " in restoration.summary
    return model, optimizer, state


@pytest.mark.parametrize("name", few_under_jax(sorted(EXPECTED), ["plain.safetensors"]))
def test_a_state_dict_predicts_as_pytorch_does(name):
    """A state dict predicts as in PyTorch, in a model with other names and another order of shortcuts.

    This holds for any form of the file, under the running backend.
    """
    needs_torch(name)
    model, _, _ = restored(name)
    np.testing.assert_allclose(model.predict(IMAGES, verbose=0), EXPECTED[name]["predictions"], atol=2e-6)


WITH_OPTIMIZER = sorted(name for name, case in EXPECTED.items() if case["optimizer"])


@pytest.mark.parametrize("name", few_under_jax(WITH_OPTIMIZER, ["plain-amsgrad.pth", "plain-nesterov.pth"]))
def test_the_next_steps_are_pytorchs(name):
    """Rate, moments and count continue: the next losses are those that PyTorch recorded."""
    needs_torch(name)
    model, optimizer, state = restored(name)
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    losses = [float(model.train_on_batch(IMAGES, LABELS)) for _ in EXPECTED[name]["next_losses"]]
    np.testing.assert_allclose(losses, EXPECTED[name]["next_losses"], rtol=2e-5)
    assert state.step == (None if EXPECTED[name]["optimizer"] in {"sgd", "nesterov"} else 3)
    assert state.records["epoch"] in {3, None}


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize("name", WITH_OPTIMIZER)
def test_every_moment_arrives_to_the_last_bit(name):
    """The optimizer's slots hold PyTorch's numbers bit for bit, transposed.

    SGD's are multiplied by the negative rate, as Keras keeps them.
    """
    needs_torch(name)
    _, optimizer, state = restored(name)
    scale = np.float32(-state.rate.value) if state.optimizer.class_name == "SGD" else np.float32(1)
    theirs = [array * scale for label, array in state.arrays.items() if label.startswith("optimizer/")]
    ours = [
        np.asarray(keras.ops.convert_to_numpy(variable))
        for variable in optimizer.variables
        if variable.path.rpartition("/")[2] not in {"iteration", "learning_rate"}
    ]
    assert sum(map(np.size, theirs)) > 1000
    assert_same_bytes(
        {"moments": np.sort(np.concatenate([np.ravel(array) for array in theirs]))},
        {"moments": np.sort(np.concatenate([np.ravel(array) for array in ours]))},
    )


@pytest.mark.one_backend
def test_layouts_turn_as_the_formats_define():
    """Each layout is transposed as the formats define, shown on numbers that identify their index."""
    weight = np.arange(2 * 3 * 5 * 7).reshape(2, 3, 5, 7)
    assert convert(weight, Conversion("w", "conv"), (5, 7, 3, 2))[4, 6, 1, 0] == weight[0, 1, 4, 6]
    deep = np.arange(6 * 5 * 7).reshape(6, 1, 5, 7)
    assert convert(deep, Conversion("w", "depthwise"), (5, 7, 3, 2))[4, 6, 2, 1] == deep[2 * 2 + 1, 0, 4, 6]
    dense = np.arange(4 * 30).reshape(4, 30)  # of 2 rows, 3 columns and 5 channels, channels first
    flat = convert(dense, Conversion("w", "dense", flatten=(2, 3, 5)), (30, 4))
    assert flat[(1 * 3 + 2) * 5 + 4, 3] == dense[3, (4 * 2 + 1) * 3 + 2]
    heads = convert(np.arange(3 * 4 * 4).reshape(12, 4), Conversion("w", "dense", part=1), (4, 2, 2))
    assert heads[3, 1, 0] == (4 + 2) * 4 + 3
    assert convert(weight, Conversion("w", "conv"), (7, 5, 3, 2)) is None
    assert convert(dense, Conversion("w", "dense", flatten=(2, 3, 4)), (30, 4)) is None


def state_of(arrays):
    return TrainState("file.pth", "torch", "torch", arrays, records={"scale": 1.0})


def two_alike(names=("left", "right")):
    """Builds two branches of equal shapes, as in an Inception block: neither order nor shape decides."""
    inputs = keras.Input((4, 4, 3))
    one, other = (keras.layers.Conv2D(3, 3, padding="same", use_bias=False, name=name)(inputs) for name in names)
    last = keras.layers.Conv2D(2, 1, use_bias=False)(keras.layers.Add()([one, other]))
    return keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(last))


@pytest.mark.one_backend(trains=True)
def test_what_neither_name_nor_order_decides_is_an_error_with_the_way_on(tmp_path):
    """If neither name nor order decides, the error writes a proposed map, whose correction decides."""
    rng = np.random.default_rng(0)
    kernels = {name: rng.normal(size=(3, 3, 3, 3)).astype("float32") for name in ("b", "a")}
    arrays = {
        "last.weight": rng.normal(size=(2, 3, 1, 1)).astype("float32"),
        **{f"branch_{name}.weight": kernel for name, kernel in kernels.items()},
    }
    model = two_alike(("conv2d_90", "conv2d_91"))
    before = [np.asarray(v).tobytes() for v in model.get_weights()]
    with pytest.raises(
        RestoreError,
        match=r"uncertain which array belongs to which layer for 2 layers.*branch_b and branch_a fit.*--map-out FILE",
    ):
        torch_map.to_model(model, None, state_of(arrays), map_out=str(tmp_path / "map.yaml"))
    assert before == [np.asarray(v).tobytes() for v in model.get_weights()]
    text = (tmp_path / "map.yaml").read_text()
    with pytest.raises(RestoreError):
        torch_map.to_model(model, None, state_of(arrays), map_out="flaky://b/map.yaml")
    assert FlakyBucket().cat_file("flaky://b/map.yaml").decode() == text
    assert "conv2d_1/kernel: {from: branch_b.weight, as: conv}  # uncertain: branch_b or branch_a" in text
    (tmp_path / "map.yaml").write_text(
        text.replace("conv2d_1/kernel: {from: branch_b.weight", "conv2d_1/kernel: {from: branch_a.weight")
    )
    mapped, how = torch_map.to_model(model, None, state_of(arrays), map_file=str(tmp_path / "map.yaml"))
    restore.restore(model, mapped, optimizer=None)
    assert how == "PyTorch's layers matched: 3 by map"
    np.testing.assert_array_equal(model.get_weights()[1], kernels["a"].transpose(2, 3, 1, 0))
    named = two_alike(("branch.a", "branch.b"))
    mapped, how = torch_map.to_model(named, None, state_of(arrays))
    restore.restore(named, mapped, optimizer=None)
    assert "2 by name" in how
    np.testing.assert_array_equal(named.get_layer("branch.a").get_weights()[0], kernels["a"].transpose(2, 3, 1, 0))


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("conv2d/kernle: {from: features.0.weight}", r"the model has no conv2d/kernle: did you mean conv2d/kernel\?"),
        ("conv2d/kernel: {from: features.1.weight}", r"has no features\.1\.weight: did you mean features\.\d"),
        ("conv2d/kernel: {from: features.0.weight, flaten: [1, 1, 8]}", r"conv2d/kernel: flaten: is no field"),
        (
            "conv2d/bias: features.0.bias\nconv2d/bias: features.0.bias",
            r"conv2d/bias stands twice, in the lines 1 and 2",
        ),
        ("conv2d/kernel: {from: features.0.weight, as: dense}", "does not become that as dense"),
        ("conv2d/kernel: {as: conv}", "give from: NAME"),
        ("- a", "expected entries"),
    ],
)
def test_a_map_that_cannot_be_meant_is_refused(tmp_path, text, words):
    """A map that cannot be used is refused with the nearest name, or with both shapes."""
    (tmp_path / "map.yaml").write_text(text)
    with pytest.raises(UsageError, match=words):
        torch_map.to_model(
            MODELS["plain"](), None, read_checkpoint(GOLDEN / "plain.safetensors"), map_file=str(tmp_path / "map.yaml")
        )


@pytest.mark.one_backend(trains=True)
def test_another_model_is_an_error_that_lists_what_is_missing_and_what_is_left():
    """Another model is an error that lists missing and remaining arrays; nothing is assigned."""
    state = read_checkpoint(GOLDEN / "mobile.safetensors")
    model = MODELS["plain"]()
    mapped, _ = torch_map.to_model(model, None, state)
    with pytest.raises(RestoreError, match=r"does not fit the model.*--partial") as caught:
        restore.restore(model, mapped, optimizer=None)
    assert {row[3] for row in caught.value.rows} >= {restore.MISSING, restore.UNUSED}


class Planted:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.write_text, (self.path, "executed")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.one_backend
def test_code_in_a_pickle_is_never_run(tmp_path, zipped):
    """A planted call or a pickled model is one error with a remedy, and no code runs."""
    torch = pytest.importorskip("torch")
    trace = tmp_path / "trace"
    options = {"_use_new_zipfile_serialization": zipped}
    torch.save({"model_state_dict": {"a": torch.ones(2)}, "x": Planted(trace)}, tmp_path / "planted.pth", **options)
    torch.save(torch.nn.Linear(2, 2), tmp_path / "whole.pth", **options)
    for name in ("planted.pth", "whole.pth"):
        with pytest.raises(CheckpointError, match=r"which kresume never runs.*model\.state_dict\(\)"):
            read_checkpoint(tmp_path / name)
    assert not trace.exists()


@pytest.mark.parametrize("damage", ["cut", "flip", "text", "empty"])
@pytest.mark.parametrize("name", ["plain-adam.pth", "plain-nesterov.pth", "plain.safetensors"])
@pytest.mark.one_backend
def test_a_damaged_file_is_refused(tmp_path, name, damage):
    """A damaged file is one clear error.

    Tried: truncated, a flipped bit where the format has a checksum, another file.
    """
    needs_torch(name)
    data = bytearray((GOLDEN / name).read_bytes())
    if damage == "cut":
        data = data[: len(data) // 2]
    elif damage == "flip":
        # Formats without checksums (the older pickle, safetensors) are flipped in their structure.
        data[len(data) // 2 if name == "plain-adam.pth" else 3] ^= 4
    else:
        data = bytearray(b"hello" if damage == "text" else b"")
    broken = tmp_path / name
    broken.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"broken|damaged|holds more than tensors"):
        read_checkpoint(broken)


@pytest.mark.one_backend
def test_a_file_that_claims_more_than_it_holds_is_refused(tmp_path):
    """A file that claims more than it holds is refused before memory is allocated.

    Tried: a tensor of a billion numbers over one stored number, and a member that inflates.
    """
    torch = pytest.importorskip("torch")
    torch.save({"model_state_dict": {"a": torch.ones(1).expand(10**9)}}, tmp_path / "wide.pth")
    with pytest.raises(CheckpointError, match=r"a claims 1,000,000,000 numbers"):
        read_checkpoint(tmp_path / "wide.pth")
    import zipfile

    with (
        zipfile.ZipFile(GOLDEN / "plain-adam.pth") as whole,
        zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for name in whole.namelist():
            bomb.writestr(name, whole.read(name))
        bomb.writestr("plain-adam/data/999", bytes(50_000_000))
    with pytest.raises(CheckpointError, match=r"claims 50,\d+,\d+ bytes"):
        read_checkpoint(tmp_path / "bomb.pth")


@pytest.mark.one_backend
def test_what_keras_has_no_equal_for_is_said(tmp_path):
    """PyTorch settings without a Keras equal are named; weight decay in the gradient needs a choice.

    Tried: groups at different rates, dampening, another class.
    """
    torch = pytest.importorskip("torch")
    from kresume.options.resolve import from_arguments
    from kresume.training.plan.parent import Parent, choose_optimizer

    def asked(make, **arguments):
        layers = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
        optimizer = make(layers)
        layers(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        torch.save(
            {"model_state_dict": layers.state_dict(), "optimizer_state_dict": optimizer.state_dict()},
            tmp_path / "a.pth",
        )
        parent = Parent(read_checkpoint(tmp_path / "a.pth"), None, None)
        return choose_optimizer(from_arguments(str(tmp_path / "a.pth"), arguments), parent, None)

    sgd, adam = torch.optim.SGD, torch.optim.Adam
    groups = [lambda m: sgd([{"params": m[0].parameters()}, {"params": m[1].parameters(), "lr": 1e-3}], lr=1e-2)]
    with pytest.raises(CheckpointError, match=r"different rates \(0\.001, 0\.01\).*adamw:reset"):
        asked(groups[0])
    with pytest.raises(CheckpointError, match=r"no equivalent of its dampening of 0\.5"):
        asked(lambda m: sgd(m.parameters(), lr=0.1, momentum=0.9, dampening=0.5))
    with pytest.raises(CheckpointError, match="neither SGD nor Adam nor AdamW"):
        asked(lambda m: torch.optim.RMSprop(m.parameters()))
    with pytest.raises(CheckpointError, match=r"trains 2 of the model's 4 parameters"):
        asked(lambda m: adam(m[1].parameters()))
    with pytest.raises(
        UsageError, match=r"decay of 0\.0001 inside the gradient.*--weight-decay 0\.001 .*--weight-decay 0"
    ):
        asked(lambda m: sgd(m.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4))
    saved, keep, _ = asked(lambda m: sgd(m.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4), weight_decay=0.0)
    assert (saved.class_name, saved.config["momentum"], keep) == ("SGD", 0.9, True)
    assert asked(groups[0], optimizer="sgd:reset")[1] is False


TWIN = """
import keras
from keras import layers

def {name}(num_classes):
    inputs = keras.Input((12, 12, 3))
    x = layers.Rescaling({scale})(inputs)
    x = layers.Conv2D(8, 3, padding="same", activation="relu")(x)
    x = layers.MaxPooling2D()(x)
    x = layers.Conv2D(8, 3, padding="same", activation="relu")(x)
    x = layers.MaxPooling2D()(x)
    x = layers.Dense(16, activation="relu")(layers.Flatten()(x))
    return keras.Model(inputs, layers.Dense(num_classes)(x))
"""


def in_pytorch(pictures, rate):
    """Returns the plain network in PyTorch, its optimizer, and a function that makes a step on all the old pictures."""
    torch = pytest.importorskip("torch")
    from torch_models import MODELS as NETWORKS

    from kresume.images.conventions import to_model_function
    from kresume.images.sources import list_images
    from kresume.reporter import Reporter

    listing = list_images([str(pictures / "old")], Reporter(quiet=True))
    from PIL import Image

    paths = sorted(Path(file.path) for file in listing.files)
    pixels = np.stack([np.asarray(Image.open(path).resize((12, 12), Image.Resampling.BOX)) for path in paths])
    labels = torch.tensor([sorted(listing.classes).index(path.parent.name) for path in paths])
    images = torch.tensor(np.asarray(to_model_function("torch")(pixels)).transpose(0, 3, 1, 2).copy())
    torch.manual_seed(0)
    model = NETWORKS["plain"]()
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)

    def step():
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return model, optimizer, step


@pytest.fixture(scope="module")
def seed_checkpoint(tmp_path_factory, pictures):
    """Trains the plain network in PyTorch on the old pictures and saves it as the seed project does."""
    torch = pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("seed")
    model, optimizer, step = in_pytorch(pictures, 0.05)
    for _ in range(60):
        step()
    torch.save(
        {"epoch": 60, "model_state_dict": model.state_dict(), "optimizer_state_dict": optimizer.state_dict()},
        folder / "model.pth",
    )
    (folder / "twin.py").write_text(TWIN.format(name="build", scale=1.0) + TWIN.format(name="other", scale=-1.0))
    return folder


@pytest.mark.one_backend(trains=True)
def test_a_pytorch_training_is_extended_with_more_images(seed_checkpoint, tmp_path, pictures):
    """A PyTorch training is extended: load the `.pth`, add images, adjust the rate, train.

    It is verified on the old images.
    """
    result = run_training(
        str(seed_checkpoint / "model.pth"),
        model=f"{seed_checkpoint / 'twin.py'}:build",
        data=[str(pictures / "old")],
        add=[str(pictures / "new")],
        pixels="torch",
        lr=1e-3,
        epochs=2,
        batch_size=6,
        map_out=str(tmp_path / "map.yaml"),
        out=str(tmp_path / "run"),
    )
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["card"]["pixels"] == "torch"
    assert "mapping verified:" in record["plan"]["pixels_reason"]
    assert (record["optimizer"]["class_name"], record["rate"]["peak"], record["rate"]["checkpoint"]) == (
        "SGD",
        1e-3,
        0.05,
    )
    assert record["parent"]["format"] == "torch"
    assert (
        "dense/kernel: {from: classifier.1.weight, as: dense, flatten: [3, 3, 8]}"
        in (tmp_path / "map.yaml").read_text()
    )
    assert result.after["all"]["accuracy"] > 0.6


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize("rate", [0.05, 1e-3])
def test_momentum_continues_as_in_pytorch_at_another_rate(seed_checkpoint, tmp_path, pictures, rate):
    """Its momentum was converted at the old rate, so that the first steps at a fiftieth of it were fifty times too long."""
    out = tmp_path / "run"
    run_training(
        str(seed_checkpoint / "model.pth"),
        model=f"{seed_checkpoint / 'twin.py'}:build",
        data=[str(pictures / "old")],
        pixels="torch",
        lr=rate,
        lr_schedule="constant",
        steps=3,
        batch_size=24,
        val_split=0.0,
        augment="none",
        out=str(out),
    )
    model, optimizer, step = in_pytorch(pictures, 0.05)
    saved = pytest.importorskip("torch").load(seed_checkpoint / "model.pth")
    model.load_state_dict(saved["model_state_dict"])
    optimizer.load_state_dict(saved["optimizer_state_dict"])
    begun = model.classifier[-1].bias.detach().numpy().copy()
    optimizer.param_groups[0]["lr"] = rate
    for _ in range(3):
        step()
    bias = model.classifier[-1].bias.detach().numpy()
    ours = keras.models.load_model(out / "model.keras").layers[-1].bias.numpy()
    # Pillow's box filter and the area of TensorFlow give slightly different pixels.
    np.testing.assert_allclose(ours - begun, bias - begun, rtol=0.1, atol=2e-6)


@pytest.mark.one_backend(trains=True)
def test_shapes_that_fit_another_function_are_refused(seed_checkpoint, tmp_path, pictures):
    """A network with the same shapes but another function is refused.

    A sign differs: every variable restores, but the accuracy shows it.
    """
    with pytest.raises(CheckpointError, match=r"guessing reaches 3\d\.\d %: the mapping is not verified"):
        run_training(
            str(seed_checkpoint / "model.pth"),
            model=f"{seed_checkpoint / 'twin.py'}:other",
            data=[str(pictures / "old")],
            pixels="torch",
            out=str(tmp_path / "run"),
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.one_backend(trains=True)
def test_a_skeleton_that_nobody_filled_in_is_refused(seed_checkpoint, tmp_path, pictures):
    """A skeleton that was not filled in is refused, and its marked lines are named.

    All its shapes fit, but it is another network.
    """
    checkpoint = seed_checkpoint / "model.pth"
    source = skeleton(read_checkpoint(checkpoint), str(tmp_path / "model.py"))
    (tmp_path / "model.py").write_text(source)
    arguments = {"model": f"{tmp_path / 'model.py'}:build", "data": [str(pictures / "old")], "optimizer": "adam:reset"}
    with pytest.raises(UsageError, match=r"model.py still says `fill in` in \d+ lines"):
        kresume.plan(str(checkpoint), quiet=True, **arguments)


@pytest.mark.one_backend(trains=True)
def test_without_a_model_the_error_names_the_skeleton(seed_checkpoint, tmp_path, pictures):
    """Without a model, the error names the command that writes a skeleton.

    A state dict holds no architecture.
    """
    with pytest.raises(ModelError, match=r"--model mymodel.py:build.*kresume inspect .*--write-model model\.py"):
        run_training(str(seed_checkpoint / "model.pth"), data=[str(pictures / "old")], out=str(tmp_path / "run"))


class Subclassed(keras.Model):
    """The plain network as a subclassed model, without a graph."""

    def __init__(self, turn=None):
        super().__init__()
        layers = keras.layers
        self.one = layers.Conv2D(8, 3, padding="same", activation="relu")
        self.other = layers.Conv2D(8, 3, padding="same", activation="relu")
        self.pool, self.turn, self.flat = layers.MaxPooling2D(), turn or layers.Identity(), layers.Flatten()
        self.hidden, self.head = layers.Dense(16, activation="relu"), layers.Dense(3)

    def call(self, x):
        return self.head(self.hidden(self.flat(self.turn(self.pool(self.other(self.pool(self.one(x))))))))


def plain_layers():
    layers = keras.layers
    convolutions = [layers.Conv2D(8, 3, padding="same", activation="relu") for _ in range(2)]
    body = [convolutions[0], layers.MaxPooling2D(), convolutions[1], layers.MaxPooling2D(), layers.Flatten()]
    return body, [layers.Dense(16, activation="relu"), layers.Dense(3)]


def sequential():
    body, head = plain_layers()
    return keras.Sequential([*body, *head])


def nested_with_a_sequential_head():
    body, head = plain_layers()
    inputs = keras.Input((12, 12, 3))
    backbone = keras.Sequential([keras.Input((12, 12, 3)), *body], name="backbone")
    return keras.Model(inputs, keras.Sequential(head)(keras.layers.Dropout(0.1)(backbone(inputs))))


class SubclassedWithPermute(Subclassed):
    """The same, with the channels put first before Flatten, for PyTorch's weights."""

    def __init__(self):
        super().__init__(keras.layers.Permute((3, 1, 2)))


def sequential_with_permute():
    body, head = plain_layers()
    return keras.Sequential([*body[:-1], keras.layers.Permute((3, 1, 2)), keras.layers.Dropout(0.1), body[-1], *head])


def functional_with_transpose():
    body, head = plain_layers()
    inputs = keras.Input((12, 12, 3))
    outputs = keras.ops.transpose(keras.Sequential(body[:-1])(inputs), (0, 3, 1, 2))
    return keras.Model(inputs, keras.Sequential(head)(body[-1](outputs)))


MADE = [
    Subclassed, sequential, nested_with_a_sequential_head, SubclassedWithPermute, sequential_with_permute,
    functional_with_transpose,
]  # fmt: skip


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize("make", MADE)
def test_what_flatten_reordered_is_found_however_the_model_is_made(make):
    """The columns after Flatten are reordered in any kind of model, unless the model itself puts the channels first.

    Tried: without a graph, and across nested models. No shape shows the other order.
    """
    model = make()
    model(keras.KerasTensor((1, 12, 12, 3)))
    mapped, _ = torch_map.to_model(model, None, read_checkpoint(GOLDEN / "plain.safetensors"))
    restore.restore(model, mapped, optimizer=None)
    np.testing.assert_allclose(
        model.predict(IMAGES, verbose=0), EXPECTED["plain.safetensors"]["predictions"], atol=2e-6
    )


@pytest.mark.one_backend(trains=True)
def test_rarer_layers_turn_rightly(tmp_path):
    """Less common layers are transposed correctly.

    Tried: groups, depth multipliers, a separable layer, batch normalization after Flatten, bfloat16 arrays.
    """
    torch = pytest.importorskip("torch")
    from torch import nn

    layers = keras.layers
    torch.manual_seed(0)
    theirs = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Conv2d(4, 8, 3, groups=4), nn.Conv2d(8, 6, 3, groups=2),
        nn.Conv2d(6, 6, 3, groups=6, bias=False), nn.Conv2d(6, 5, 1), nn.Flatten(), nn.BatchNorm1d(80), nn.Linear(80, 3),
    )  # fmt: skip
    images = torch.from_numpy(np.ascontiguousarray(IMAGES.transpose(0, 3, 1, 2)))
    theirs.train()
    theirs(images)  # running statistics that are not 0 and 1
    theirs.eval()
    ours = keras.Sequential(
        [
            keras.Input((12, 12, 3)), layers.Conv2D(4, 3), layers.DepthwiseConv2D(3, depth_multiplier=2),
            layers.Conv2D(6, 3, groups=2), layers.SeparableConv2D(5, 3), layers.Flatten(),
            layers.BatchNormalization(epsilon=1e-5), layers.Dense(3),
        ]
    )  # fmt: skip
    torch.save(theirs.state_dict(), tmp_path / "a.pth")
    mapped, how = torch_map.to_model(ours, None, read_checkpoint(tmp_path / "a.pth"))
    restore.restore(ours, mapped, optimizer=None)
    assert "epsilon" not in how
    expected = theirs(images).detach().numpy()
    np.testing.assert_allclose(keras.ops.convert_to_numpy(ours(IMAGES, training=False)), expected, atol=1e-5)
    theirs.bfloat16()
    torch.save(theirs.state_dict(), tmp_path / "half.pth")
    state = read_checkpoint(tmp_path / "half.pth")
    assert str(state.arrays["0.weight"].dtype) == "bfloat16"
    small = {
        name: torch.arange(6.0).reshape(2, 3).to(getattr(torch, name)) for name in ("float8_e4m3fn", "float8_e5m2")
    }
    torch.save(small, tmp_path / "small.pt")
    pytest.importorskip("safetensors.torch").save_file(small, tmp_path / "small.safetensors")
    for file in ("small.pt", "small.safetensors"):
        found = read_checkpoint(str(tmp_path / file)).arrays
        assert {name: str(array.dtype) for name, array in found.items()} == {name: name for name in small}
        assert all(np.array_equal(array.astype("float32"), np.arange(6).reshape(2, 3)) for array in found.values())
    mapped, _ = torch_map.to_model(ours, None, state)
    restore.restore(ours, mapped, optimizer=None)
    weight = theirs[0].weight.detach().float().numpy().transpose(2, 3, 1, 0)
    assert ours.get_weights()[0].tobytes() == np.ascontiguousarray(weight).tobytes()


@pytest.mark.one_backend(trains=True)
def test_averages_slopes_and_transposed_kernels_are_found(tmp_path):
    """Averages, PReLU slopes and transposed kernels are found.

    The averages are those of `swa_utils.AveragedModel`; PReLU is per channel or shared.
    """
    torch = pytest.importorskip("torch")
    from torch import nn
    from torch.optim.swa_utils import AveragedModel

    layers = keras.layers
    torch.manual_seed(0)
    theirs = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.PReLU(4), nn.ConvTranspose2d(4, 6, 3, stride=2), nn.PReLU(), nn.Flatten(), nn.Linear(2646, 3)
    )  # fmt: skip
    with torch.no_grad():
        theirs[1].weight.copy_(torch.linspace(-0.5, 0.5, 4))
    ours = keras.Sequential(
        [
            keras.Input((12, 12, 3)), layers.Conv2D(4, 3), layers.PReLU(shared_axes=[1, 2]),
            layers.Conv2DTranspose(6, 3, strides=2), layers.PReLU(shared_axes=[1, 2, 3]), layers.Flatten(), layers.Dense(3),
        ]
    )  # fmt: skip
    torch.save(AveragedModel(theirs).state_dict(), tmp_path / "ema.pth")
    mapped, _ = torch_map.to_model(ours, None, read_checkpoint(tmp_path / "ema.pth"))
    restore.restore(ours, mapped, optimizer=None)
    expected = theirs(torch.from_numpy(np.ascontiguousarray(IMAGES.transpose(0, 3, 1, 2)))).detach().numpy()
    np.testing.assert_allclose(keras.ops.convert_to_numpy(ours(IMAGES, training=False)), expected, atol=1e-5)


@pytest.mark.one_backend(trains=True)
def test_another_epsilon_is_told():
    """A different epsilon is reported, because no array shows it."""
    inputs = keras.Input((12, 12, 3))
    model = keras.Model(inputs, keras.layers.BatchNormalization()(inputs))
    arrays = {f"bn.{role}": np.ones(3, np.float32) for role in ("weight", "bias", "running_mean", "running_var")}
    _, how = torch_map.to_model(model, None, state_of(arrays))
    assert "BatchNormalization has epsilon=0.001 here, PyTorch's default is 1e-05" in how


@pytest.mark.one_backend
def test_groups_of_parameters_are_told_apart_where_shapes_allow(tmp_path):
    """Parameter groups are told apart by shapes if possible, else refused.

    The usual split, matrices with weight decay and vectors without, names no parameter.
    """
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Linear(5, 3))
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1]},
        {"params": [p for p in model.parameters() if p.ndim <= 1]},
    ]
    optimizer = torch.optim.Adam(groups)
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    torch.save(
        {"model_state_dict": model.state_dict(), "optimizer_state_dict": optimizer.state_dict()}, tmp_path / "a.pth"
    )
    state = read_checkpoint(tmp_path / "a.pth")
    assert state.records["cannot_keep"] == ""
    for name, parameter in model.named_parameters():
        moment = optimizer.state[parameter]["exp_avg"].numpy()
        assert state.arrays[f"optimizer/{name}/exp_avg"].tobytes() == moment.tobytes()


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize("precision", ["mixed_float16", "mixed_bfloat16"])
def test_a_pytorch_training_goes_on_in_another_precision(seed_checkpoint, tmp_path, pictures, precision):
    """Moments are restored under another precision, whatever wraps the optimizer."""
    run_training(
        str(seed_checkpoint / "model.pth"),
        model=f"{seed_checkpoint / 'twin.py'}:build",
        data=[str(pictures / "old")],
        pixels="torch",
        precision=precision,
        epochs=1,
        out=str(tmp_path / "run"),
    )
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["options"]["precision"] == precision
    assert record["before"]["all"]["accuracy"] > 0.5


@pytest.mark.one_backend(trains=True)
def test_a_map_is_for_pytorchs_files_only():
    """`--map` with a file that is not PyTorch's is an error, not ignored."""
    golden = GOLDENS / "tf_keras-2.21.0" / "sequential-adam"
    with pytest.raises(UsageError, match=r"--map and --map-out are only for PyTorch state dicts"):
        restore.restore(MODELS["sequential"](), read_checkpoint(golden), optimizer=None, map_file="map.yaml")


@pytest.mark.one_backend(trains=True)
def test_eval_scores_a_state_dict(seed_checkpoint, pictures):
    """`kresume eval model.pth --model ... --map ...` scores a state dict."""
    from kresume.evaluation.evaluate import evaluate

    found = evaluate(
        seed_checkpoint / "model.pth", pictures / "old", model=f"{seed_checkpoint / 'twin.py'}:build", pixels="torch"
    )
    assert found.scores["all"]["accuracy"] > 0.8


@pytest.mark.one_backend
def test_classes_that_a_script_kept_are_the_order_of_the_outputs(tmp_path, pictures):
    """A stored class_to_idx, as torchvision's, gives the class order, not the folders."""
    torch = pytest.importorskip("torch")
    from kresume.checkpoints.inspect import describe

    model = torch.nn.Linear(2, 3)
    names = {"stripes": 0, "circle": 2, "square": 1}
    torch.save({"model_state_dict": model.state_dict(), "class_to_idx": names}, tmp_path / "a.pth")
    state = read_checkpoint(tmp_path / "a.pth")
    assert describe(state).classes == ("stripes", "square", "circle")
    assert "--classes" not in " ".join(describe(state).missing)
    from kresume.options.resolve import from_arguments
    from kresume.reporter import Reporter
    from kresume.training.plan.images import decide_classes, list_sources
    from kresume.training.plan.parent import Parent

    config = from_arguments(str(tmp_path / "a.pth"), {"data": [str(pictures / "old")]})
    sources = list_sources(config, Reporter(quiet=True))
    found, reason = decide_classes(config, Parent(state, None, None), sources)
    assert (found, reason) == (("stripes", "square", "circle"), "the checkpoint's")


@pytest.mark.one_backend(trains=True)
def test_classes_that_a_script_kept_are_read_by_eval_and_predict_too(tmp_path):
    """`eval`, `predict` and `export` take the outputs as `train` does; a given order wins."""
    torch = pytest.importorskip("torch")
    from kresume.models.load import Subject, load

    (tmp_path / "twin.py").write_text(
        "import keras\n"
        "def build(num_classes=3):\n"
        "    layers = [keras.Input((8, 8, 3)), keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(num_classes)]\n"
        "    return keras.Sequential(layers)\n"
    )
    saved = {"model_state_dict": torch.nn.Linear(3, 3).state_dict(), "classes": ["stripes", "circle", "square"]}
    torch.save(saved, tmp_path / "a.pth")
    subject = Subject(str(tmp_path / "a.pth"), model=f"{tmp_path / 'twin.py'}:build", pixels="0-255")
    names = ("circle", "square", "stripes")
    assert load(subject, fallback_classes=names).card.classes == ("stripes", "circle", "square")
    assert load(subject).card.classes == ("stripes", "circle", "square")
    assert load(replace(subject, classes=names)).card.classes == names


@pytest.mark.parametrize(
    ("name", "extra"), [("torch-2.13.0/plain-adam.pth", "torch"), ("orbax-0.12.8-jax/nested-adam", "orbax")]
)
@pytest.mark.one_backend
def test_a_missing_extra_is_named_with_its_command(monkeypatch, name, extra):
    """A missing extra is an error with its pip command, only where it is needed."""
    import importlib.util

    from kresume.errors import MissingPackage

    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda package, *rest: None if package == extra else real(package, *rest)
    )
    with pytest.raises(MissingPackage, match=rf"pip install 'kresume\[{extra}\]'"):
        read_checkpoint(GOLDEN.parent / name)


@pytest.mark.parametrize(
    ("right", "words"), [(200, "mapping verified: 78.1 %"), (60, "WEAK mapping: better than guessing")]
)
@pytest.mark.one_backend
def test_a_mapping_that_is_hardly_right_is_called_weak(right, words):
    """A mapping with low accuracy is called weak.

    Of 256 images in ten classes, 78 % shows a working model; 23 % is better than chance, but no working model.
    """
    from kresume.training.plan.torch_mapping import verify_mapping

    labels = np.arange(256) % 10
    predicted = np.where(np.arange(256) < right, labels, (labels + 1) % 10)
    assert words in verify_mapping("a.pth", predicted, labels)
    with pytest.raises(CheckpointError, match="the mapping is not verified"):
        verify_mapping("a.pth", np.zeros(256, int), labels)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("7.bias", "7.weight_g", "7.weight_v"), r'of its module 7 .* weight_norm, .*remove_weight_norm\(module, "weight"\)'),
        (("3.weight_orig", "3.weight_u", "3.weight_v"), r'module 3 .* spectral_norm.*remove_spectral_norm\(module, "weight"\)'),
        (("a.fc.weight_orig", "a.fc.weight_mask"), r'module a.fc .* pruning.*prune.remove\(module, "weight"\)'),
        (
            ("7.parametrizations.weight.original0", "7.parametrizations.weight.original1"),
            r'module 7 .*weight_norm.*parametrize.remove_parametrizations\(module, "weight"\)',
        ),
        (
            ("parametrizations.weight.original", "parametrizations.weight.0._u", "parametrizations.weight.0._v"),
            r"module at the top .*spectral_norm.*remove_parametrizations",
        ),
        (("g.weight_ih_l0", "g.weight_hh_l0", "g.bias_hh_l0"), "module g is recurrent .* does not map recurrent layers"),
        (("cell.weight_ih", "cell.weight_hh"), "module cell is recurrent"),
        (("0.weight", "0.bias", "bn.weight_v"), "^$"),
    ],
)  # fmt: skip
@pytest.mark.one_backend
def test_weights_that_another_module_computes_are_told(names, words):
    """Weights that another module computes are reported with the call that restores them before saving.

    Recurrent layers are not mapped.
    """
    assert re.search(words, torch_rewritten.explain(names))


@pytest.mark.one_backend(trains=True)
def test_a_state_dict_under_weight_norm_names_the_call():
    """A state dict under weight norm is an error that names the call, not only a missing layer."""
    arrays = {"0.weight_g": np.ones((3, 1), "f"), "0.weight_v": np.ones((3, 5), "f"), "0.bias": np.ones(3, "f")}
    state = TrainState(source="m.pth", format="torch", layout="torch", arrays=arrays)
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(3)])
    with pytest.raises(RestoreError, match=r"nothing was restored: .*remove_weight_norm\(module"):
        restore.restore(model, state, optimizer=None)
