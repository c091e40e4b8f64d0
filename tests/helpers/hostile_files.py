"""Writes harmful or misleading files; each function returns the path that a user would name."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import h5py
import numpy as np

GIB = 2**30
CONFIG = json.dumps({"module": "keras", "class_name": "Sequential", "config": {"layers": []}, "registered_name": None})
METADATA = json.dumps({"keras_version": "3.15.1", "date_saved": "2026-01-01@00:00:00"})


def weights(path: Path, write=lambda file: None) -> Path:
    """Writes an HDF5 file in Keras's layout, with additions by `write`."""
    with h5py.File(path, "w") as file:
        file["layers/dense/vars/0"] = np.ones((4, 3), "float32")
        write(file)
    return path


def archive(path: Path, members: dict[str, bytes | str] | None = None, *, without: tuple[str, ...] = ()) -> Path:
    """Writes a `.keras` file, adding or replacing these members."""
    inside = weights(path.with_name("inside.h5"))
    good: dict[str, bytes | str] = {
        "config.json": CONFIG,
        "metadata.json": METADATA,
        "model.weights.h5": inside.read_bytes(),
    }
    inside.unlink()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in ({**good, **(members or {})}).items():
            if name not in without:
                file.writestr(name, content)
    return path


# --- archives ---------------------------------------------------------------------------------------------------------


def zip_bomb_of_json(folder: Path) -> Path:
    return archive(folder / "m.keras", {"config.json": b" " * (300 * 2**20)})


def zip_bomb_of_weights(folder: Path) -> Path:
    return archive(folder / "m.keras", {"model.weights.h5": bytes(200 * 2**20)})


def member_out_of_the_archive(folder: Path) -> Path:
    return archive(folder / "m.keras", {"../../evil.txt": "out"})


def absolute_member(folder: Path) -> Path:
    return archive(folder / "m.keras", {"/tmp/evil.txt": "out"})


def member_twice(folder: Path) -> Path:
    path = archive(folder / "m.keras")
    import warnings

    with warnings.catch_warnings(), zipfile.ZipFile(path, "a") as file:
        warnings.simplefilter("ignore")
        file.writestr("config.json", CONFIG.replace("Sequential", "Functional"))
    return path


def no_weights(folder: Path) -> Path:
    return archive(folder / "m.keras", without=("model.weights.h5",))


def config_is_no_json(folder: Path) -> Path:
    return archive(folder / "m.keras", {"config.json": "{'class_name': eval('1')}"})


def config_is_a_list(folder: Path) -> Path:
    return archive(folder / "m.keras", {"config.json": "[1, 2]"})


def config_is_deep(folder: Path) -> Path:
    return archive(folder / "m.keras", {"config.json": "[" * 200_000})


def weights_are_a_pickle(folder: Path) -> Path:
    return archive(folder / "m.keras", {"model.weights.h5": b"\x80\x04\x95\x10cposix\nsystem\n(S'touch evil'\ntR."})


def card_of_a_later_version(folder: Path) -> Path:
    return archive(folder / "m.keras", {"kresume.json": json.dumps({"format": 9, "labels": ["a", "b"]})})


# --- HDF5 -------------------------------------------------------------------------------------------------------------


def external_link(folder: Path) -> Path:
    weights(folder / "secret.h5")

    def write(file):
        file["layers/dense/vars/1"] = h5py.ExternalLink("secret.h5", "/layers/dense/vars/0")

    return weights(folder / "m.weights.h5", write)


def soft_link(folder: Path) -> Path:
    def write(file):
        file["layers/dense/vars/1"] = h5py.SoftLink("/layers/dense/vars/0")

    return weights(folder / "m.weights.h5", write)


def external_storage(folder: Path) -> Path:
    (folder / "secret.bin").write_bytes(bytes(12))

    def write(file):
        file.create_dataset("layers/dense/vars/1", (3,), "float32", external=[(str(folder / "secret.bin"), 0, 12)])

    return weights(folder / "m.weights.h5", write)


def virtual_dataset(folder: Path) -> Path:
    source = weights(folder / "secret.h5")

    def write(file):
        layout = h5py.VirtualLayout((4, 3), "float32")
        layout[:] = h5py.VirtualSource(str(source), "layers/dense/vars/0", shape=(4, 3))
        file.create_virtual_dataset("layers/dense/vars/1", layout)

    return weights(folder / "m.weights.h5", write)


def cycle_of_groups(folder: Path) -> Path:
    def write(file):
        file["layers/dense/layers"] = file["layers"]

    return weights(folder / "m.weights.h5", write)


def one_array_many_names(folder: Path) -> Path:
    def write(file):
        for index in range(1, 50):
            file[f"layers/dense/vars/{index}"] = file["layers/dense/vars/0"]

    return weights(folder / "m.weights.h5", write)


def absurd_shape_unwritten(folder: Path) -> Path:
    def write(file):
        file.create_dataset("layers/dense/vars/1", (2**20, 2**20), "float32", chunks=(1024, 1024))

    return weights(folder / "m.weights.h5", write)


def absurd_shape_contiguous(folder: Path) -> Path:
    def write(file):
        file.create_dataset("layers/dense/vars/1", (64 * GIB,), "float64")

    return weights(folder / "m.weights.h5", write)


def compressed_bomb(folder: Path) -> Path:
    def write(file):
        dataset = file.create_dataset(
            "layers/dense/vars/1", (4096 * 2**18,), "uint8", chunks=(2**26,), compression="gzip", compression_opts=9
        )
        dataset[: 2**26] = 0

    return weights(folder / "m.weights.h5", write)


def words_for_numbers(folder: Path) -> Path:
    def write(file):
        file["layers/dense/vars/1"] = np.array(["a", "b"], dtype=h5py.string_dtype())

    return weights(folder / "m.weights.h5", write)


def nested_too_deep(folder: Path) -> Path:
    def write(file):
        group = file
        for _ in range(300):
            group = group.create_group("a")
        group["vars/0"] = np.ones(3)

    return weights(folder / "m.weights.h5", write)


def weights_of_the_oldest_keras(folder: Path) -> Path:
    with h5py.File(folder / "m.h5", "w") as file:
        file.attrs["nb_layers"] = 1
        file.create_group("layer_0").attrs["nb_params"] = 1
        file["layer_0/param_0"] = np.ones((4, 3, 3, 3), "float32")
    return folder / "m.h5"


def no_file_of_keras(folder: Path) -> Path:
    with h5py.File(folder / "m.weights.h5", "w") as file:
        file["rows"] = np.ones(3)
    return folder / "m.weights.h5"


def empty_weights(folder: Path) -> Path:
    (folder / "m.weights.h5").write_bytes(b"")
    return folder / "m.weights.h5"


def empty_h5(folder: Path) -> Path:
    (folder / "m.h5").write_bytes(b"")
    return folder / "m.h5"


# --- layers by name ---------------------------------------------------------------------------------------------------


def _legacy(folder: Path, names: list[str], config: str | None = None, link: bool = False) -> Path:
    path = folder / "m.h5"
    with h5py.File(path, "w") as file:
        root = file.create_group("model_weights")
        root.attrs["layer_names"] = [b"dense"]
        root.attrs["keras_version"] = b"2.15.0"
        group = root.create_group("dense")
        group.attrs["weight_names"] = [name.encode() for name in names]
        group["dense/kernel:0"] = np.ones((4, 3), "float32")
        if config is not None:
            file.attrs["model_config"] = config
        if link:
            file["optimizer_weights"] = h5py.ExternalLink("secret.h5", "/")
    return path


def listed_and_not_there(folder: Path) -> Path:
    return _legacy(folder, ["dense/kernel:0", "dense/bias:0"])


def listed_outside(folder: Path) -> Path:
    return _legacy(folder, ["../../../../etc/passwd"])


def legacy_config_is_no_json(folder: Path) -> Path:
    return _legacy(folder, ["dense/kernel:0"], "{")


def legacy_config_of_numbers(folder: Path) -> Path:
    return _legacy(folder, ["dense/kernel:0"], json.dumps({"class_name": "Model", "config": {"layers": [1, 2]}}))


def legacy_config_that_is_deep(folder: Path) -> Path:
    deep = '{"class_name":"Sequential","config":[' * 400 + "]}" * 400
    return _legacy(folder, ["dense/kernel:0"], deep)


def legacy_link(folder: Path) -> Path:
    return _legacy(folder, ["dense/kernel:0"], link=True)


# --- shards and folders -----------------------------------------------------------------------------------------------


def _index(folder: Path, value: object) -> Path:
    (folder / "m.weights.json").write_text(value if isinstance(value, str) else json.dumps(value))
    return folder / "m.weights.json"


def shard_elsewhere(folder: Path) -> Path:
    weights(folder / "secret.h5")
    return _index(folder, {"weight_map": {"/layers/dense/vars": "../secret.h5"}})


def shard_missing(folder: Path) -> Path:
    return _index(folder, {"weight_map": {"/layers/dense/vars": "m_00000.weights.h5"}})


def shard_of_another(folder: Path) -> Path:
    weights(folder / "m_00000.weights.h5")
    return _index(folder, {"weight_map": {"/layers/conv2d/vars": "m_00000.weights.h5"}})


def index_is_no_json(folder: Path) -> Path:
    return _index(folder, "weight_map: {}")


def index_of_numbers(folder: Path) -> Path:
    return _index(folder, {"weight_map": {"/layers/dense/vars": 7}})


def backup_of_nonsense(folder: Path) -> Path:
    weights(folder / "latest.weights.h5")
    (folder / "training_metadata.json").write_text('{"epoch": "soon"}')
    return folder


EXPECTED = {
    zip_bomb_of_json: "config.json claims .* bytes: refused|config.json claims .* are stored: refused",
    zip_bomb_of_weights: "model.weights.h5 claims .* are stored: refused",
    member_out_of_the_archive: "points outside the archive",
    absolute_member: "points outside the archive",
    member_twice: "two members are named config.json",
    no_weights: "no member model.weights.h5",
    config_is_no_json: "config.json is not valid JSON",
    config_is_a_list: "not a JSON object",
    config_is_deep: "config.json is not valid JSON",
    weights_are_a_pickle: "not a complete HDF5 file",
    card_of_a_later_version: "later version of kresume",
    external_link: "is a link, which Keras never writes",
    soft_link: "is a link, which Keras never writes",
    external_storage: "stores its data in another file",
    virtual_dataset: "stores its data in another file",
    cycle_of_groups: "is a second name of one object",
    one_array_many_names: "is a second name of one object",
    absurd_shape_unwritten: "claims the shape .* bytes, but the file stores .*: refused",
    absurd_shape_contiguous: "claims the shape .* bytes, but the file stores .*: refused",
    compressed_bomb: "claims the shape .* bytes, but the file stores .*: refused",
    words_for_numbers: "expected numbers",
    nested_too_deep: "nested more than",
    weights_of_the_oldest_keras: "weights of Keras 0 or early Keras 1.*transpose",
    no_file_of_keras: "not one that Keras wrote",
    empty_weights: "not a complete HDF5 file",
    empty_h5: "not a complete HDF5 file",
    listed_and_not_there: "is listed but missing",
    listed_outside: "is listed but missing",
    legacy_config_is_no_json: "model_config is not valid JSON",
    legacy_config_of_numbers: "does not have the form of a Keras 2 model",
    legacy_config_that_is_deep: "does not have the form of a Keras 2 model",
    legacy_link: "is a link, which Keras never writes",
    shard_elsewhere: "is not a file in the same folder",
    shard_missing: "is missing",
    shard_of_another: "is missing from the shards",
    index_is_no_json: "is not valid JSON",
    index_of_numbers: "not an index of sharded weights",
    backup_of_nonsense: "does not record the epoch",
}
"""By file: a pattern of its error message."""
