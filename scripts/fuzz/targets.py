"""Lists what is fuzzed: each reader of foreign bytes, with good inputs and the call that reads one.

target = TARGETS["torch-zip"]
target.read(folder / target.inputs()[0].entry)
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kresume.errors import KresumeError

GOLDEN = Path(__file__).parents[2] / "tests" / "golden"


@dataclass(frozen=True)
class Input:
    """A good input.

    Attributes:
        files: content by relative name.
        entry: the name that is read; `.` is the folder itself.
        whole: the names that are not damaged.
    """

    files: dict[str, bytes]
    entry: str = "."
    whole: tuple[str, ...] = ()


@dataclass(frozen=True)
class Target:
    """A reader.

    Attributes:
        read: reads the input at a path.
        inputs: makes the good inputs.
        cost: milliseconds of a read, roughly: the test suite spends its time by it.
    """

    read: Callable[[Path], object]
    inputs: Callable[[], list[Input]]
    cost: float = 5


def _golden(*patterns: str, entry: str = ".") -> Callable[[], list[Input]]:
    """Returns a function that finds golden files or folders below `tests/golden`."""

    def find() -> list[Input]:
        found = []
        for pattern in patterns:
            for path in sorted(GOLDEN.glob(pattern)):
                if path.is_file():
                    found.append(Input({path.name: path.read_bytes()}, path.name))
                else:
                    found.append(Input(_files_of(path), entry))
        return found

    return find


def _files_of(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "expected.json")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def _prefixes() -> list[Input]:
    """Returns the golden `tf.train.Checkpoint`s, each as a folder."""
    folders = sorted({path.parent for path in GOLDEN.glob("tf_keras-*/*/*.index")})
    return [Input(_files_of(folder)) for folder in folders]


def checkpoint(path: Path) -> object:
    """Reads a checkpoint, and every byte of its arrays."""
    from kresume.checkpoints.read import read_checkpoint

    state = read_checkpoint(path)
    return [array.tobytes() for array in state.arrays.values()]


def described(path: Path) -> object:
    """Reads a checkpoint and lists its content, as `kresume inspect` does."""
    from kresume.checkpoints.inspect import describe
    from kresume.checkpoints.read import read_checkpoint

    return str(describe(read_checkpoint(path)))


def model(path: Path) -> object:
    """Builds the model of an architecture, and compiles it as the file says."""
    import keras

    from kresume.models.build import build_model

    keras.backend.clear_session()
    return build_model(str(path), state=None, num_classes=None, image_size=(16, 16)).count_params()


def served(path: Path) -> object:
    """Reads the signatures of a SavedModel, and what its graph and its Keras model show of them."""
    import keras

    from kresume.evaluation.keras_facts import read_facts
    from kresume.models.load import Subject
    from kresume.runtimes.signatures import read_signatures

    keras.backend.clear_session()
    return [read_facts(path, Subject(str(path)), each) for each in read_signatures(path).values()]


def run(path: Path) -> object:
    """Reads a run's record, its lines and its newest snapshot."""
    from kresume import runs
    from kresume.checkpoints.read import read_checkpoint

    found = runs.open_run(path)
    runs.read_metrics(found.metrics)
    found.events()
    return read_checkpoint(path)


def manifest(path: Path) -> object:
    """Reads a run's manifest and uses its columns."""
    from kresume.images.manifest import Manifest

    table = Manifest.read(path)
    return table.digest(), table.found(np.arange(len(table))), table.per_class(1)


def source(path: Path) -> object:
    """Lists a source of images and decodes them; an image that cannot be decoded is one that is set aside."""
    from kresume.images.decode import decode
    from kresume.images.prepare import content_of
    from kresume.images.sources import list_images
    from kresume.reporter import Reporter
    from kresume.values.decode_spec import DecodeSpec

    listing = list_images([path], Reporter(quiet=True))
    for found in listing.files[:3]:
        try:
            decode(content_of(found, None), DecodeSpec(8, 8, "stretch", "area"))
        except KresumeError:
            continue
    return listing


def picture(path: Path) -> object:
    """Decodes one image file, as the prepare pass does."""
    from kresume.images.decode import decode
    from kresume.images.headers import read_header
    from kresume.values.decode_spec import DecodeSpec

    data = path.read_bytes()
    return decode(data, DecodeSpec(8, 8, "stretch", "area"), read_header(data))


def _drawn(size: tuple[int, int] = (24, 20)) -> np.ndarray:
    rows, columns = np.mgrid[: size[0], : size[1]]
    return np.stack([rows * 9 % 256, columns * 11 % 256, (rows * columns) % 256], axis=-1).astype(np.uint8)


def encoded(kind: str, **options: object) -> bytes:
    """Returns a small image file."""
    import PIL.Image

    if kind == "HEIF":
        import pillow_heif

        pillow_heif.register_heif_opener()
    file = io.BytesIO()
    PIL.Image.fromarray(_drawn()).save(file, kind, **options)
    return file.getvalue()


def _pictures(kind: str, *variants: dict[str, object]) -> Callable[[], list[Input]]:
    return lambda: [Input({"picture": encoded(kind, **options)}, "picture") for options in variants or ({},)]


def _exif() -> bytes:
    import PIL.Image

    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    return exif.tobytes()


def _members() -> dict[str, bytes]:
    return {
        f"{label}/{index}.{kind.lower()}": encoded(kind) for label in "ab" for index, kind in enumerate(("PNG", "JPEG"))
    }


def _tar(members: dict[str, bytes], mode: str = "w", **options: object) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode, **options) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


def _tars() -> list[Input]:
    long = {"ä" * 120 + "/1.png": encoded("PNG")}  # a name that needs a header of its own
    kinds = {
        "x.tar": _tar(_members()),
        "x.tar.gz": _tar(_members(), "w:gz"),
        "p.tar": _tar(long | _members()),
    }
    return [Input({name: data}, name) for name, data in kinds.items()]


def _shards() -> list[Input]:
    pairs = {"001.png": encoded("PNG"), "001.cls": b"0", "002.jpg": encoded("JPEG"), "002.cls": b"1"}
    labels = {
        "003.png": encoded("PNG"),
        "003.json": b'{"label": "rose"}',
        "004.jpg": encoded("JPEG"),
        "004.json": b'{"label": 2}',
    }
    return [Input({"shard.tar": _tar(pairs)}, "shard.tar"), Input({"a.tar": _tar(labels), "b.tar": _tar(labels)})]


def _zips() -> list[Input]:
    found = []
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", method) as archive:
            for name, data in {**_members(), "a/note.cls": b"1"}.items():
                archive.writestr(zipfile.ZipInfo(name), data, method)
        found.append(Input({"x.zip": file.getvalue()}, "x.zip"))
    return found


def _records() -> list[Input]:
    import tensorflow as tf

    def feature(value: bytes | int) -> tf.train.Feature:
        if isinstance(value, bytes):
            return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
        return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))

    found = []
    with tempfile.TemporaryDirectory() as folder:
        for name, kind in (("a.tfrecord", None), ("b.tfrecord.gz", "GZIP")):
            file = os.path.join(folder, name)
            with tf.io.TFRecordWriter(file, kind) as writer:
                for label, picture_kind in enumerate(("PNG", "JPEG")):
                    values = {"image/encoded": encoded(picture_kind), "image/class/label": label}
                    features = tf.train.Features(feature={key: feature(value) for key, value in values.items()})
                    writer.write(tf.train.Example(features=features).SerializeToString())
            found.append(Input({name: Path(file).read_bytes()}, name))
    return found


def _lists(*kinds: str) -> Callable[[], list[Input]]:
    def make() -> list[Input]:
        pictures = _members()
        rows = [{"path": name, "label": name[0], "split": "train"} for name in pictures]
        texts = {
            "csv": "path,label,split\n" + "".join(f"{row['path']},{row['label']},train\n" for row in rows),
            "tsv": "path\tlabel\n" + "".join(f"{row['path']}\t{row['label']}\n" for row in rows),
            "jsonl": "".join(f"{json.dumps(row)}\n" for row in rows),
            "json": json.dumps(rows),
            "coco.json": json.dumps(
                {
                    "images": [{"id": number, "file_name": name} for number, name in enumerate(pictures)],
                    "annotations": [{"image_id": number, "category_id": 3} for number in range(len(rows))],
                    "categories": [{"id": 3, "name": "a"}],
                }
            ),
        }
        return [
            Input({f"list.{kind}": texts[kind].encode(), **pictures}, f"list.{kind}", whole=tuple(pictures))
            for kind in kinds
        ]

    return make


def _parquet_list() -> list[Input]:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    pictures = _members()
    file = io.BytesIO()
    parquet.write_table(pa.table({"path": list(pictures), "label": [name[0] for name in pictures]}), file)
    return [Input({"list.parquet": file.getvalue(), **pictures}, "list.parquet", whole=tuple(pictures))]


def _torch(**options: object) -> Callable[[], list[Input]]:
    def make() -> list[Input]:
        import torch

        model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 2))
        optimizer = torch.optim.Adam(model.parameters())
        model(torch.ones(5, 4)).sum().backward()
        optimizer.step()
        whole = {"model_state_dict": model.state_dict(), "optimizer_state_dict": optimizer.state_dict(), "epoch": 3}
        found = []
        for value in (whole, model.state_dict()):
            file = io.BytesIO()
            torch.save(value, file, **options)
            found.append(Input({"model.pth": file.getvalue()}, "model.pth"))
        return found

    return make


def _runs() -> list[Input]:
    return [Input(_files_of(folder)) for folder in sorted(GOLDEN.glob("runs/*/*/interrupted"))]


def _snapshots() -> list[Input]:
    folders = sorted(GOLDEN.glob("runs/*/*/interrupted/snapshots/step-00000007"))
    whole = [Input(_files_of(folder)) for folder in folders]
    return whole + [Input({f"step-00000007/{name}": data for name, data in each.files.items()}) for each in whole]


def _manifest_source() -> list[Input]:
    """Returns a manifest whose images exist, below the current folder."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    from kresume.images.manifest import schema

    pictures = _members()
    rows = [
        {
            "sha256": hashlib.sha256(data).hexdigest(), "path": name, "label": name[0], "source": "x", "origin": 0,
            "side": "train", "width": 20, "height": 24, "bytes": len(data), "mtime_ns": 0, "format": "PNG", "phash": 3,
            "offset": 0, "length": -1, "coding": "", "member": "", "extra": "", "thumb": b"", "seen": False,
        }
        for name, data in pictures.items()
    ]  # fmt: skip
    file = io.BytesIO()
    table = pa.Table.from_pylist(rows, schema()).replace_schema_metadata(
        {"kresume_manifest": '{"format": 1, "classes": ["a", "b"]}'}
    )
    parquet.write_table(table, file)
    return [Input({"images.parquet": file.getvalue(), **pictures}, "images.parquet", whole=tuple(pictures))]


def _served_models() -> list[Input]:
    """Returns SavedModels with a signature: one that rescales, one of strings, and the golden ones of Keras 2."""
    import tensorflow as tf
    from tensorflow.core.protobuf import saved_model_pb2

    def rescaling(values: tf.Tensor) -> dict[str, tf.Tensor]:
        level = tf.reduce_mean((values - [90.0, 80.0, 70.0]) / tf.sqrt([3600.0, 2500.0, 1600.0]), axis=(1, 2))
        return {"output_0": tf.nn.softmax(level)}

    def naming(files: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"labels": files, "scores": tf.ones([tf.size(files), 3]) / 3.0}

    specs = {
        rescaling: tf.TensorSpec([None, 12, 12, 3], tf.float32, name="keras_tensor"),
        naming: tf.TensorSpec([None], tf.string, name="files"),
    }
    found = []
    for function, spec in specs.items():
        with tempfile.TemporaryDirectory() as folder:
            tf.saved_model.save(tf.Module(), folder, signatures=tf.function(function, input_signature=[spec]))
            found.append(Input(_files_of(Path(folder)), "."))
    for each in _golden("tf_keras-*/saved-*")():
        message = saved_model_pb2.SavedModel.FromString(each.files["saved_model.pb"])
        graph = message.meta_graphs[0]
        if "serve" not in graph.meta_info_def.tags:
            graph.meta_info_def.tags.append("serve")
        definition = graph.signature_def["serving_default"]
        for tensors, name, shape in (
            (definition.inputs, "input_1", (-1, 12, 12, 3)),
            (definition.outputs, "dense", (-1, 3)),
        ):
            tensors[name].dtype = tf.float32.as_datatype_enum
            for size in shape:
                tensors[name].tensor_shape.dim.add(size=size)
        found.append(Input({**each.files, "saved_model.pb": message.SerializeToString()}, each.entry))
    return found


def _architectures() -> list[Input]:
    """Returns what the golden files of Keras 3 say of their models' layers, losses and optimizers."""
    found = []
    for file in sorted(GOLDEN.glob("keras-*/*/model.keras")):
        with zipfile.ZipFile(file) as archive:
            found.append(Input({"model.json": archive.read("config.json")}, "model.json"))
    return found


def _manifests() -> list[Input]:
    files = sorted(GOLDEN.glob("runs/*/*/interrupted/images.parquet"))
    return [Input({"images.parquet": file.read_bytes()}, "images.parquet") for file in files]


HDF5 = ("keras-*/*/*.weights.h5", "tf_keras-*/*/*.weights.h5")
TARGETS: dict[str, Target] = {
    "keras": Target(checkpoint, _golden("keras-*/*/model.keras", "tf_keras-*/*/model.keras"), 8),
    "architecture": Target(model, _architectures, 60),
    "weights-h5": Target(checkpoint, _golden(*HDF5), 6),
    "weights-json": Target(
        checkpoint, lambda: [Input(each.files, "model.weights.json") for each in _golden("keras-*/weights-json-*")()], 8
    ),
    "legacy-h5": Target(checkpoint, _golden("keras-*/legacy-h5-*/model.h5", "tf_keras-*/h5-*/model.h5"), 12),
    "backup": Target(checkpoint, _golden("keras-*/backup-*/backup"), 6),
    "saved-model": Target(checkpoint, _golden("tf_keras-*/saved-*"), 8),
    "served": Target(served, _served_models, 100),
    "tf-checkpoint": Target(checkpoint, _prefixes, 4),
    "orbax": Target(checkpoint, _golden("orbax-*/nested-state", "orbax-*/sequential-*"), 80),
    "torch-zip": Target(checkpoint, lambda: _golden("torch-*/*.pth", "torch-*/*.pt")() + _torch()(), 6),
    "torch-pickle": Target(checkpoint, _torch(_use_new_zipfile_serialization=False), 4),
    "safetensors": Target(checkpoint, _golden("torch-*/*.safetensors"), 2),
    "snapshot": Target(checkpoint, _snapshots, 2),
    "run": Target(run, _runs, 8),
    "manifest": Target(manifest, _manifests, 4),
    "manifest-source": Target(source, _manifest_source, 4),
    "tfrecord": Target(source, _records, 4),
    "tar": Target(source, _tars, 3),
    "webdataset": Target(source, _shards, 3),
    "zip": Target(source, _zips, 3),
    "csv": Target(source, _lists("csv", "tsv"), 3),
    "jsonl": Target(source, _lists("jsonl"), 3),
    "json": Target(source, _lists("json", "coco.json"), 3),
    "parquet": Target(source, _parquet_list, 4),
    "jpeg": Target(picture, _pictures("JPEG", {}, {"progressive": True}, {"exif": _exif()}), 1),
    "png": Target(picture, _pictures("PNG"), 1),
    "gif": Target(picture, _pictures("GIF"), 1),
    "bmp": Target(picture, _pictures("BMP"), 1),
    "webp": Target(picture, _pictures("WEBP", {}, {"lossless": True}), 1),
    "tiff": Target(picture, _pictures("TIFF", {}, {"compression": "tiff_lzw"}, {"compression": "tiff_deflate"}), 1),
    "heif": Target(picture, _pictures("HEIF"), 3),
    "avif": Target(picture, _pictures("AVIF"), 3),
}
"""Every reader by the name that the command line takes."""


@functools.cache
def inputs_of(name: str) -> list[Input]:
    """Returns the good inputs of a reader, made once."""
    return TARGETS[name].inputs()
