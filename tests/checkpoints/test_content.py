"""Tests that content decides the format, not the name: any ending, alone, in a folder, as `--model`."""

import json
import shlex
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest

from kresume.checkpoints import content
from kresume.checkpoints.read import read_checkpoint
from kresume.errors import CheckpointError, ModelError
from kresume.models import build
from tests.helpers.paths import GOLDENS

KERAS_3, KERAS_2, TORCH = GOLDENS / "keras-3.15.1", GOLDENS / "tf_keras-2.21.0", GOLDENS / "torch-2.13.0"
FILES = {
    "keras": KERAS_3 / "keras-cnn-adam" / "model.keras",
    "keras of Keras 2": KERAS_2 / "keras-sequential-adam" / "model.keras",
    "legacy-h5": KERAS_3 / "legacy-h5-sequential-adam" / "model.h5",
    "legacy-h5 of Keras 2": KERAS_2 / "h5-cnn-adam" / "model.h5",
    "weights-h5": KERAS_3 / "weights-h5-sequential-ema" / "model.weights.h5",
    "torch": TORCH / "plain-adam.pth",
    "torch as safetensors": TORCH / "plain.safetensors",
    "torch of before 1.6": None,
}
"""Files by the name of their format."""
ENDINGS = ["", ".keras", ".h5", ".hdf5", ".weights.h5", ".weights.json", ".json", ".pth", ".pt", ".safetensors"]
ENDINGS += [".bin", ".ckpt", ".index", ".zip", ".bak", ".data-00000-of-00001"]


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """Returns each file under its own ending, and its checkpoint."""
    found = {}
    for kind, path in FILES.items():
        if kind.startswith("torch"):
            torch = pytest.importorskip("torch")
            if path is None:
                old = tmp_path_factory.mktemp("torch") / "old.pth"
                whole = torch.load(FILES["torch"], weights_only=True)
                torch.save(whole, old, _use_new_zipfile_serialization=False)
                found[kind] = (old, read_checkpoint(old))
                continue
        found[kind] = (path, read_checkpoint(path))
    return found


def same(one, other):
    """Asserts that two checkpoints are equal apart from their names."""
    assert (one.format, one.layout, one.step, one.rate) == (other.format, other.layout, other.step, other.rate)
    assert (one.optimizer, one.architecture, one.compiled) == (other.optimizer, other.architecture, other.compiled)
    assert one.arrays.keys() == other.arrays.keys()
    assert one.records == other.records
    assert all(
        np.asarray(one.arrays[name]).tobytes() == np.asarray(other.arrays[name]).tobytes() for name in one.arrays
    )


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("kind", FILES)
@pytest.mark.one_backend
def test_a_file_is_what_is_in_it(tmp_path, originals, kind, ending):
    """A file is read by its content: by its path, and as the only checkpoint of a folder."""
    path, expected = originals[kind]
    assert expected.format == kind.partition(" ")[0]
    renamed = tmp_path / f"best{ending}"
    shutil.copy(path, renamed)
    (tmp_path / "notes.txt").write_text("not this one")
    same(read_checkpoint(renamed), expected)
    same(read_checkpoint(tmp_path), expected)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.one_backend
def test_an_index_of_shards_is_known_by_its_map(tmp_path, ending):
    """An index of shards is recognised by its map, under any name beside its shards."""
    for file in (KERAS_3 / "weights-json-cnn-adam").glob("*.weights.*"):
        shutil.copy(file, tmp_path / file.name)
    expected = read_checkpoint(tmp_path / "model.weights.json")
    (tmp_path / "model.weights.json").rename(tmp_path / f"best{ending}")
    same(read_checkpoint(tmp_path / f"best{ending}"), expected)


@pytest.mark.parametrize("name", ["ckpt", "ckpt.index", "ckpt.data-00000-of-00001"])
@pytest.mark.one_backend
def test_any_file_of_a_tensorflow_checkpoint_stands_for_it(name):
    """The prefix, the index and the data of a TensorFlow checkpoint all name it."""
    assert read_checkpoint(KERAS_2 / "sequential-adam" / name).step == 3


@pytest.mark.parametrize("name", ["saved.keras", "saved.h5", "saved.pth"])
@pytest.mark.one_backend
def test_a_folder_may_be_called_like_a_file(tmp_path, name):
    """A SavedModel folder whose name looks like that of a file is read."""
    shutil.copytree(KERAS_2 / "saved-small-adam", tmp_path / name)
    assert read_checkpoint(tmp_path / name).format == "saved-model"


@pytest.mark.parametrize("ending", [".keras", ".h5", ".pth", ""])
@pytest.mark.parametrize("kind", ["keras", "legacy-h5", "weights-h5", "torch", "torch as safetensors"])
@pytest.mark.one_backend
def test_a_file_that_was_cut_short_says_so(tmp_path, originals, kind, ending):
    """A truncated file is an error of its real format's reader, whatever its ending."""
    path, _ = originals[kind]
    data = path.read_bytes()
    short = tmp_path / f"best{ending}"
    short.write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(CheckpointError, match=r"truncated|damaged") as caught:
        read_checkpoint(short)
    words = {"keras": ".keras archive", "legacy-h5": "HDF5", "weights-h5": "HDF5"}
    assert words.get(kind, "") in str(caught.value)


PACKED = {
    "a .keras file": ("runs/my model.keras", "runs/my model.keras"),
    "a SavedModel": ("sm/saved_model.pb", "sm"),
    "a SavedModel at the top": ("saved_model.pb", ""),
    "a .weights.h5": ("m.weights.h5", "m.weights.h5"),
    "a tf.train.Checkpoint": ("tr/ckpt-3.index", "tr/ckpt-3"),
    "a PyTorch state dict": ("best.pth", "best.pth"),
}


@pytest.mark.parametrize("what", PACKED)
@pytest.mark.one_backend
def test_a_packed_checkpoint_says_what_is_in_it_and_how_to_unpack_it(tmp_path, what):
    """A packed checkpoint is an error that names the content and a command that unpacks it."""
    member, given = PACKED[what]
    with zipfile.ZipFile(tmp_path / "packed.zip", "w") as archive:
        archive.writestr(member, b"here")
        archive.writestr("__MACOSX/._other.keras", b"")
    with pytest.raises(CheckpointError, match=f"zip archive that holds {what.removesuffix(' at the top')}: ") as caught:
        read_checkpoint(tmp_path / "packed.zip")
    command, _, inner = str(caught.value).partition("unpack it with ")[2].partition(", then give ")
    python, *arguments = shlex.split(command)
    assert python == "python"
    subprocess.run([sys.executable, *arguments], check=True)
    assert Path(shlex.split(inner)[0]) == tmp_path / "packed-unpacked" / given
    assert (tmp_path / "packed-unpacked" / member).read_bytes() == b"here"


@pytest.mark.one_backend
def test_an_archive_that_is_no_checkpoint_says_so(tmp_path):
    """An archive without a checkpoint is refused, and nothing is unpacked.

    Tried: nothing known in it, a member outside its folder, another kind of archive.
    """
    for members, words in (
        (["notes.txt"], "none of its names looks like a checkpoint.* 'notes.txt'"),
        (["m.keras", "../../m.h5"], "'../../m.h5', which points outside the archive: refused"),
        (["C:/m.keras"], "points outside"),
        (["m\x1b[2J.keras"], r"none of its names looks like a checkpoint.*'m\\x1b\[2J.keras'"),
    ):
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            for member in members:
                archive.writestr(member, b"")
        with pytest.raises(CheckpointError, match=words):
            read_checkpoint(tmp_path / "a.zip")
    (tmp_path / "b.zip").write_bytes((tmp_path / "a.zip").read_bytes()[:-20])
    with pytest.raises(CheckpointError, match="zip archive that is truncated or damaged"):
        read_checkpoint(tmp_path / "b.zip")
    with tarfile.open(tmp_path / "c.tar.gz", "w:gz") as packed:
        packed.add(tmp_path / "a.zip", "a.zip")
    with pytest.raises(CheckpointError, match="tar -xf"):
        read_checkpoint(tmp_path / "c.tar.gz")


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize("ending", [".keras", ".h5", ".json", ".pth", ""])
def test_an_architecture_is_found_by_content_too(tmp_path, ending):
    """`--model FILE` finds an architecture under any name; without one, the error names the content."""
    for number, kind in enumerate(["keras", "legacy-h5 of Keras 2"]):
        shutil.copy(FILES[kind], tmp_path / f"model{number}{ending}")
        model = build.build_model(str(tmp_path / f"model{number}{ending}"), state=None, num_classes=3, image_size=None)
        assert isinstance(model, keras.Model)
    shutil.copy(FILES["weights-h5"], tmp_path / f"weights{ending}")
    with pytest.raises(ModelError, match="no architecture"):
        build.build_model(str(tmp_path / f"weights{ending}"), state=None, num_classes=3, image_size=None)


@pytest.mark.one_backend(trains=True)
def test_the_json_of_keras_2_beside_weights_is_its_architecture(tmp_path):
    """`model.json` of `to_json` is the architecture of weights in the same folder.

    This was the usual form in 2017.
    """
    with h5py.File(KERAS_2 / "h5-cnn-adam" / "model.h5") as file, h5py.File(tmp_path / "model.h5", "w") as weights:
        root = file["model_weights"]
        for name in root:
            root.copy(name, weights)
        for name in root.attrs:
            weights.attrs[name] = root.attrs[name]
        (tmp_path / "model.json").write_text(
            json.dumps({**json.loads(file.attrs["model_config"]), "keras_version": "2.1.6"})
        )
    state = read_checkpoint(tmp_path)
    model = build.build_model(None, state=state, num_classes=3, image_size=None)
    assert [layer.name for layer in model.layers if layer.weights] == [name for name, _ in state.records["layers"]]


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"\x08" + bytes(7) + b"{", b"{}", b"\x89HDF\r\n", bytes(64)])
@pytest.mark.one_backend
def test_what_is_none_of_these_is_none(tmp_path, data):
    """Files that only begin like a checkpoint are of no kind."""
    (tmp_path / "file").write_bytes(data)
    assert content.kind_of(tmp_path / "file") is None
    assert content.kind_of(tmp_path) is None
