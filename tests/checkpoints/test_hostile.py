"""Tests bad and hostile files: one clear error, nothing executed, bounded memory, nothing written."""

import json
import random
import tracemalloc
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest

from kresume.checkpoints.read import read_checkpoint
from kresume.errors import CheckpointError, ModelError, RestoreError
from kresume.models import build, restore
from tests.helpers.hostile_files import EXPECTED, archive
from tests.helpers.paths import GOLDENS

BOUND = 64 * 2**20


def listing(folder):
    return sorted((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in folder.parent.rglob("*"))


@pytest.mark.parametrize("make", EXPECTED, ids=[make.__name__ for make in EXPECTED])
@pytest.mark.one_backend
def test_a_hostile_file_is_refused_in_words(make, tmp_path):
    """A hostile file is a one-line CheckpointError that names it; no file is written; memory stays small."""
    folder = tmp_path / "inside"
    folder.mkdir()
    path = make(folder)
    before = listing(folder)
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=EXPECTED[make]) as caught:
            read_checkpoint(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)
    assert peak < BOUND
    assert listing(folder) == before


@pytest.mark.parametrize("name", ["weights-h5-mobilenet-adam/model.weights.h5", "legacy-h5-sequential-adam/model.h5"])
@pytest.mark.one_backend
def test_any_truncation_and_any_flipped_byte_of_structure_is_an_error_or_harmless(name, tmp_path):
    """A truncated or flipped HDF5 file is a CheckpointError or differs in numbers only; it never crashes.

    HDF5 has no checksum.
    """
    good = next(GOLDENS.glob(f"keras-*/{name}")).read_bytes()
    path = tmp_path / Path(name).name
    rng = random.Random(5)
    refused = 0
    for size in sorted(rng.sample(range(len(good)), 40)):
        path.write_bytes(good[:size])
        with pytest.raises(CheckpointError):
            read_checkpoint(path)
    for place in [*range(0, 96, 3), *rng.sample(range(len(good)), 150)]:
        data = bytearray(good)
        data[place] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        try:
            read_checkpoint(path)
        except CheckpointError:
            refused += 1
    assert refused > 10


@pytest.mark.one_backend
def test_any_flipped_bit_of_an_archive_is_an_error(tmp_path):
    """A flipped bit in an archive is an error: the archive's checksums cover every array."""
    good = next(GOLDENS.glob("keras-*/keras-cnn-adam/model.keras")).read_bytes()
    with zipfile.ZipFile(next(GOLDENS.glob("keras-*/keras-cnn-adam/model.keras"))) as file:
        info = file.getinfo("model.weights.h5")
    rng = random.Random(6)
    path = tmp_path / "m.keras"
    for _ in range(60):
        data = bytearray(good)
        data[info.header_offset + 100 + rng.randrange(info.compress_size - 100)] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match="truncated or damaged"):
            read_checkpoint(path)


def test_an_architecture_of_a_later_keras_says_so(tmp_path):
    """A class that only a later Keras has is an error with both versions."""
    config = {"module": "keras.layers", "class_name": "DreamLayer", "config": {}, "registered_name": None}
    outer = {"module": "keras", "class_name": "Sequential", "config": {"layers": [config]}, "registered_name": None}
    path = archive(
        tmp_path / "m.keras",
        {"config.json": json.dumps(outer), "metadata.json": json.dumps({"keras_version": "4.2.0", "date_saved": ""})},
    )
    state = read_checkpoint(path)
    with pytest.raises(
        ModelError, match=rf"written by keras 4.2.0 \(installed: keras {keras.__version__}\).*DreamLayer"
    ):
        build.build_model(None, state=state, num_classes=3, image_size=None)


def test_another_models_weights_change_nothing(tmp_path):
    """Weights of another architecture are an error with a table, and the model stays unchanged."""
    one = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dense(2)])
    other = keras.Sequential([keras.Input((4,)), keras.layers.Dense(5), keras.layers.Dense(2)])
    one.save_weights(tmp_path / "m.weights.h5")
    before = [np.asarray(keras.ops.convert_to_numpy(v)).tobytes() for v in other.variables]
    with pytest.raises(
        RestoreError, match=r"has the shape \(4, 5\) in the model and \(4, 3\) in the checkpoint"
    ) as caught:
        restore.restore(other, read_checkpoint(tmp_path / "m.weights.h5"), optimizer=None)
    assert len(caught.value.rows) == 4
    assert before == [np.asarray(keras.ops.convert_to_numpy(v)).tobytes() for v in other.variables]


def test_a_class_that_the_file_names_is_never_imported(tmp_path):
    """A config that names a module of the machine, as exploits do, imports and builds nothing."""
    gadget = {"module": "subprocess", "class_name": "Popen", "config": {"args": "touch evil"}, "registered_name": None}
    outer = {"module": "keras", "class_name": "Sequential", "config": {"layers": [gadget]}, "registered_name": None}
    path = archive(tmp_path / "m.keras", {"config.json": json.dumps(outer)})
    with pytest.raises(ModelError, match="cannot be built"):
        build.build_model(None, state=read_checkpoint(path), num_classes=3, image_size=None)
    assert not Path("evil").exists()
