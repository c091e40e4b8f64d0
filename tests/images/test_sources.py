"""Tests every kind of source: the same pictures, read in place, with random access."""

import csv
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import kresume
from kresume.errors import ImagesError, UsageError
from kresume.evaluation.evaluate import evaluate
from kresume.exports.export import export
from kresume.images import collect, merging
from kresume.images.cache import Cache
from kresume.images.manifest import Manifest
from kresume.images.prepare import prepare
from kresume.images.reader import PictureReader
from kresume.images.sources import Found, Listing, list_images, records
from kresume.images.sources.records import FRAME, masked_crc, parse_features
from kresume.reporter import Reporter
from kresume.reports.data import scan
from kresume.storage import locations
from kresume.storage.stores import Bucket
from kresume.values.decode_spec import DecodeSpec
from tests.helpers import flaky_bucket
from tests.helpers.archives import write_tar
from tests.helpers.paths import ROOT
from tests.helpers.pictures import CLASSES, save_photo, write_pictures
from tests.helpers.runs import TINY, run_training

SPEC = DecodeSpec(12, 12)


def files_of(folder):
    """Yields (name inside the folder, label, bytes) for every picture."""
    paths = sorted(path for path in folder.rglob("*.png"))
    return [(path.relative_to(folder).as_posix(), path.parent.name, path.read_bytes()) for path in paths]


def write_records(path, items, compression="", **names):
    """Writes a TFRecord file with TensorFlow's own writer."""
    import tensorflow as tf

    def feature(value):
        if isinstance(value, int):
            return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))

    with tf.io.TFRecordWriter(str(path), compression) as writer:
        for _, label, data in items:
            features = {
                names.get("encoded", "image/encoded"): feature(data),
                "image/class/label": feature(CLASSES.index(label)),
                "image/height": feature(20),
            }
            if names.get("text", True):
                features["image/class/text"] = feature(label.encode())
            example = tf.train.Example(features=tf.train.Features(feature=features))
            writer.write(example.SerializeToString())


def make_csv(folder, path):
    with (folder / path).open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label", "camera"])
        rows.writerows([name, label, "x"] for name, label, _ in files_of(folder))
    return folder / path


def make_jsonl(folder, path):
    lines = [json.dumps({"path": name, "label": label}) for name, label, _ in files_of(folder)]
    (folder / path).write_text("\n".join(lines))
    return folder / path


def make_parquet(folder, path):
    import pyarrow as pa
    import pyarrow.parquet as parquet

    names, labels, _ = zip(*files_of(folder), strict=True)
    parquet.write_table(pa.table({"path": names, "label": labels, "taken": [1.5] * len(names)}), folder / path)
    return folder / path


def make_archive(folder, path):
    items = [(f"top/{name}", data) for name, _, data in files_of(folder)]
    items += [("top/circle/.DS_Store", b"x"), ("top/readme.txt", b"x"), ("__MACOSX/top/circle/._0.png", b"x")]
    if path.endswith(".zip"):
        with zipfile.ZipFile(folder / path, "w") as archive:
            for number, (name, data) in enumerate(items):
                archive.writestr(name, data, zipfile.ZIP_DEFLATED if number % 2 else zipfile.ZIP_STORED)
    else:
        write_tar(folder / path, items, "w:gz" if path.endswith("gz") else "w:xz" if path.endswith("xz") else "w")
    return folder / path


def make_webdataset(folder, path):
    items = []
    for number, (_, label, data) in enumerate(files_of(folder)):
        items.append((f"{number:06d}.png", data))
        if number % 2:
            items.append((f"{number:06d}.cls", label.encode()))
        else:
            items.append((f"{number:06d}.json", json.dumps({"label": label}).encode()))
    write_tar(folder / path, items)
    return folder / path


def make_records(folder, path):
    write_records(folder / path, files_of(folder), "GZIP" if path.endswith("gz") else "")
    return folder / path


def make_shards(folder, path):
    (folder / path).mkdir()
    items = files_of(folder)
    for number in range(3):
        write_records(folder / path / f"part-{number:05d}-of-00003", items[number::3])
    return folder / path


MAKERS = [
    (make_csv, "list.csv"),
    (make_jsonl, "list.jsonl"),
    (make_parquet, "list.parquet"),
    (make_archive, "all.tar"),
    (make_archive, "all.tar.gz"),
    (make_archive, "all.tar.xz"),
    (make_archive, "all.zip"),
    (make_webdataset, "shard-000.tar"),
    (make_records, "all.tfrecord"),
    (make_records, "all.tfrecord.gz"),
    (make_shards, "shards"),
]


@pytest.mark.one_backend
def test_listing_leaves_the_backend_open(tmp_path):
    """Listing TFRecords imported TensorFlow, and with it Keras: a JAX run was refused, once for each new file."""
    write_pictures(tmp_path / "old", 2, 0)
    made = [str(tmp_path / "old"), *(str(make(tmp_path, path)) for make, path in MAKERS)]
    code = f"""
import sys
from kresume.images.sources import list_images
from kresume.reporter import Reporter
for path in {made!r}:
    listed = len(list_images([path], Reporter(quiet=True)).files)
    print(listed, [each for each in ("keras", "tensorflow") if each in sys.modules])
"""
    environment = {name: value for name, value in os.environ.items() if name != "KERAS_BACKEND"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment, cwd=ROOT
    )
    assert done.stdout.splitlines() == ["6 []"] * len(made), done.stderr


def merged(prepared, **options):
    return merging.merge(
        None, prepared, None, None, **{"classes": CLASSES, "val_split": None, "generation": 0} | options
    )


@pytest.mark.parametrize(("make", "path"), MAKERS, ids=[path for _, path in MAKERS])
@pytest.mark.one_backend
def test_every_kind_gives_the_same_manifest_and_the_same_pixels(pictures, tmp_path, quiet, make, path):
    """Every kind of source has equal digests and gives any row in any order without the cache.

    Tried: folder, list, archive, shard and record.
    """
    folder = tmp_path / "old"
    write_pictures(folder, 8, 0)
    plain = merged(prepare(list_images([pictures / "old"], quiet).files, SPEC, None, quiet)).manifest
    listing = list_images([make(folder, path)], quiet)
    assert listing.classes == CLASSES
    cache = Cache.open(SPEC, tmp_path / "cache")
    prepared = prepare(listing.files, SPEC, cache, quiet)
    assert not prepared.quarantine
    table = merged(prepared).manifest
    assert table.digest() == plain.digest()
    rows = np.array([17, 3, 0, 23, 3])
    expected = PictureReader(plain, SPEC, None)(rows)
    assert PictureReader(table, SPEC, None)(rows).tobytes() == expected.tobytes()
    assert PictureReader(table, SPEC, cache)(rows).tobytes() == expected.tobytes()
    again = prepare(list_images([folder / path], quiet).files, SPEC, cache, quiet)
    assert (again.read, again.decoded) == (0, 0)


@pytest.mark.one_backend
def test_kinds_mix_and_one_picture_counts_once(pictures, tmp_path, quiet):
    """A folder and an archive of the same pictures are one set of images."""
    write_pictures(tmp_path / "old", 8, 0)
    archive = make_archive(tmp_path / "old", "all.tar")
    listing = list_images([pictures / "old", archive, pictures / "new"], quiet)
    result = merged(prepare(listing.files, SPEC, None, quiet))
    assert (len(result.manifest), result.facts.duplicates) == (42, 24)


@pytest.mark.one_backend
def test_a_manifest_is_a_source_that_spares_reading(pictures, tmp_path, quiet, monkeypatch):
    """A manifest is a source whose splits hold; an unchanged file is known without reading it."""
    first = merged(prepare(list_images([pictures / "old"], quiet).files, SPEC, None, quiet), val_split=0.3).manifest
    first.write(tmp_path / "m.parquet")
    listing = list_images([tmp_path / "m.parquet"], quiet)
    again = prepare(listing.files, SPEC, None, quiet, known=listing.known)
    assert again.read == 0
    assert merged(again, val_split=0.9).manifest.digest() == first.digest()


@pytest.mark.one_backend
def test_a_rebuilt_archive_is_not_read_by_its_old_manifest(tmp_path, quiet):
    """Members that have moved are set aside, not read under each other's labels. A copy of the archive is as good."""
    write_pictures(tmp_path / "in", 3, 0, ("a", "b"))
    for file in (tmp_path / "in").rglob("*.png"):
        Image.open(file).save(file.with_suffix(".bmp"))  # all have one size
        file.unlink()

    def pack(first, second):
        with tarfile.open(tmp_path / "all.tar", "w") as archive:
            for label in (first, second):
                archive.add(tmp_path / "in" / label, label)

    pack("a", "b")
    table = merged(prepare(list_images([tmp_path / "all.tar"], quiet).files, SPEC, None, quiet), classes=("a", "b"))
    table.manifest.write(tmp_path / "m.parquet")
    os.utime(tmp_path / "all.tar", ns=(1, 1))
    assert len(list_images([tmp_path / "m.parquet"], quiet).files) == 6
    pack("b", "a")
    with pytest.raises(ImagesError, match=r"all\.tar has changed since .*m\.parquet was made: scan it again"):
        list_images([tmp_path / "m.parquet"], quiet)


@pytest.mark.one_backend
@pytest.mark.parametrize(
    ("classes", "labels", "read"),
    [
        (("rose", "tulip"), ("0", "1"), ("rose", "tulip")),
        (("0", "1", "2"), ("0", "2"), ("0", "2")),
        (("1", "2", "3"), ("0", "1", "2"), ("1", "2", "3")),
        (("1", "2", "3"), ("1", "2"), None),
        (("0", "1", "10", "2"), ("0", "2"), None),
    ],
)
def test_numbers_are_outputs_all_or_none(classes, labels, read):
    """Numbers of outputs are never read half as numbers and half as names of classes; if both are possible, it is an error."""
    files = tuple(Found(f"/{label}.png", label, "in", 1, 1, numbered=True) for label in labels)
    listing = Listing(files, (), labels)
    if read is None:
        with pytest.raises(ImagesError, match="are numbers of outputs and names of classes"):
            collect.name_numbers(listing, classes)
        return
    assert tuple(found.label for found in collect.name_numbers(listing, classes)) == read
    notes = collect.Sources(add=listing).named(classes).add.notes
    said = [f"{number} is {name}" for number, name in zip(labels, read, strict=True) if number != name]
    assert (", ".join(said) in notes[0] and "begin at 0" in notes[0]) if said else not notes


def make_numbered(folder, kind):
    """Packs the pictures of two classes with the numbers 0 and 1 as labels; of two shards the second one has names."""

    def pairs(numbered):
        for number, (_, label, data) in enumerate(files_of(folder)):
            yield f"{number}.png", data
            yield f"{number}.cls", (str(CLASSES.index(label)) if numbered else label).encode()

    path = folder.with_name(f"numbers.{kind}")
    if kind == "shards":
        path.mkdir()
        write_tar(path / "1.tar", pairs(numbered=False))
    if kind == "tfrecord":
        write_records(path, files_of(folder), text=False)
    else:
        write_tar(path / "0.tar" if kind == "shards" else path, pairs(numbered=True))
    return path


@pytest.mark.parametrize("kind", ["tar", "shards", "tfrecord"])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.one_backend
def test_numbers_are_outputs_beside_a_source_with_names(tmp_path, quiet, kind, first):
    """Each source is read by its own kind, in either order, and a new model asks for the names."""
    write_pictures(tmp_path / "in", 2, 0, ("circle", "square"))
    write_pictures(tmp_path / "more", 2, 9, ("circle", "square"))
    numbers = make_numbered(tmp_path / "in", kind)
    given = [numbers, tmp_path / "more"] if first else [tmp_path / "more", numbers]
    sources = collect.list_sources(quiet, add=given)
    assert set(sources.classes) == {"0", "1", "circle", "square"}
    words = rf"numbers\.{kind} numbers its classes \(such as 0\), and .* names them \(such as circle\)"
    with pytest.raises(ImagesError, match=words):
        collect.check_one_kind(sources.add)
    named = sources.named(("circle", "square")).add
    collect.check_one_kind(named)
    assert named.classes == ("circle", "square")
    words = "its labels are read as numbers of the outputs, which begin at 0: 0 is circle, 1 is square"
    assert named.notes[-1] == f"{numbers}: {words}"
    assert len(named.files) == (12 if kind == "shards" else 8)
    assert sorted(found.label for found in named.files) == sorted(["circle", "square"] * (len(named.files) // 2))


@pytest.mark.one_backend
def test_a_manifest_of_an_earlier_version_is_read(pictures, tmp_path, quiet):
    """A manifest of an earlier version gets defaults for missing columns, with equal digest and pixels."""
    import pyarrow.parquet as parquet

    table = merged(prepare(list_images([pictures / "old"], quiet).files, SPEC, None, quiet)).manifest
    table.write(tmp_path / "m.parquet")
    old = parquet.read_table(tmp_path / "m.parquet")
    facts = json.loads(old.schema.metadata[b"kresume_manifest"])
    del facts["seal"]
    old = old.replace_schema_metadata({"kresume_manifest": json.dumps(facts)})
    parquet.write_table(
        old.drop_columns(["offset", "length", "coding", "member", "extra", "thumb", "seen"]), tmp_path / "old.parquet"
    )
    again = Manifest.read(tmp_path / "old.parquet")
    assert again.digest() == table.digest()
    rows = np.arange(5)
    assert PictureReader(again, SPEC, None)(rows).tobytes() == PictureReader(table, SPEC, None)(rows).tobytes()


@pytest.mark.one_backend
def test_a_label_that_is_no_class_of_its_manifest_is_damage(pictures, tmp_path, quiet):
    """As a whole number it would be the index of another class."""
    table = merged(prepare(list_images([pictures / "old"], quiet).files, SPEC, None, quiet)).manifest
    with pytest.raises(ImagesError, match="8 rows whose label is none of its classes"):
        Manifest.from_table(table.table, ("circle", "square"))


@pytest.mark.parametrize(
    "names", [("Training", "Testing"), ("train", "eval"), ("train", "dev"), ("train", "dev", "test")]
)
@pytest.mark.one_backend
def test_splits_have_several_names(tmp_path, quiet, names):
    """They are no classes; images to test on are left out."""
    for seed, name in enumerate(names):
        write_pictures(tmp_path / name, 2, 10 * seed, ("circle", "cross"))
    listing = list_images([tmp_path], quiet)
    assert listing.classes == ("circle", "cross")
    sides = {name: {"t": "train", "e": "val", "d": "val"}[name[0].lower()] for name in names if "est" not in name}
    found = {os.path.relpath(each.path, tmp_path).split(os.sep)[0]: each.split for each in listing.files}
    assert found == sides


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
@pytest.mark.one_backend
def test_splits_inside_each_class_hold(tmp_path, quiet, kind):
    """`CLASS/train` and `CLASS/val` are splits, a class without `val/` included; images to test on are left out.

    Two data sets side by side, each with splits and classes, are one level too high and not taken for this.
    """
    for label, names in {"circle": ("train", "Val", "test"), "cross": ("train",)}.items():
        for place, name in enumerate(names):
            write_pictures(tmp_path / "set" / label, 2, 10 * place, (name,))

    def listed():
        if kind == "folder":
            return list_images([tmp_path / "set"], quiet)
        made = shutil.make_archive(str(tmp_path / "made"), kind, tmp_path / "set")
        return list_images([made], quiet)

    listing = listed()
    assert listing.classes == ("circle", "cross")
    sides = {(each.label, Path(each.name).parent.name, each.split) for each in listing.files}
    assert sides == {("circle", "train", "train"), ("circle", "Val", "val"), ("cross", "train", "train")}
    assert "test" in listing.notes[0]
    shutil.rmtree(tmp_path / "set")
    for part, name in [("old", "train"), ("old", "val"), ("new", "train"), ("new", "val")]:
        write_pictures(tmp_path / "set" / part / name, 1, 0, ("circle", "cross"))
    assert {each.split for each in listed().files} == {None}


@pytest.mark.one_backend
@pytest.mark.parametrize("kind", ["folder", "list"])
def test_of_a_source_given_for_validation_the_images_for_training_are_left_out(tmp_path, quiet, kind):
    """A whole data set as `--val` took its training images for validation; with `--data` none was left to train on."""
    for seed, name in enumerate(("train", "val", "test")):
        write_pictures(tmp_path / "set" / name, 2, 10 * seed, ("circle", "cross"))
    given = tmp_path / "set"
    if kind == "list":
        rows = [f"{path},{path.parent.name},{path.parts[-3]}" for path in sorted(given.rglob("*.png"))]
        given = tmp_path / "set.csv"
        given.write_text("\n".join(["path,label,split", *rows]))
    sources = collect.list_sources(quiet, data=[str(given)], val=[str(given)])
    assert {found.split for found in sources.data.files} == {"train", "val"}
    assert {found.split for found in sources.val.files} == {"val"}
    assert len(sources.val.files) == 4
    assert any(
        "only its 4 validation images validate; the 4 for training are left out" in note for note in sources.val.notes
    )
    alone = collect.list_sources(quiet, val=[str(tmp_path / "set" / "train")]).val
    assert len(alone.files) == 4


def _beside(path):
    write_pictures(path, 2, 0, ("images",))
    (path / "labels.csv").write_text("path,label\nimages/0.png,cat\n")
    return path


def _flat(path):
    write_pictures(path, 2, 0, (".",))
    (path / "metadata.csv").write_text("path,label\n0.png,cat\n")
    return path


def _arrays(path):
    path.mkdir()
    np.savez(path / "a.npz", x=np.zeros((2, 4, 4, 3), np.uint8), y=np.zeros(2))
    return path / "a.npz"


def _of_hugging_face(path):
    import pyarrow as pa
    import pyarrow.parquet as parquet

    path.mkdir()
    rows = [{"image": {"bytes": b"1", "path": None}, "label": 0}]
    parquet.write_table(pa.Table.from_pylist(rows), path / "train.parquet")
    return path / "train.parquet"


def _listed(text):
    def make(path):
        path.mkdir()
        (path / "list.csv").write_text(text)
        return path / "list.csv"

    return make


@pytest.mark.one_backend
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            _beside,
            r"has the folder images/ alone, whose name is no class\. .*labels\.csv may be a list of their labels: give it",
        ),
        (_flat, r"no class folders\. .*metadata\.csv may be a list of their labels: give it instead"),
        (_arrays, r"holds 2 arrays of NumPy, and no image files: write each image as a file"),
        (_of_hugging_face, r"the column image holds the pictures themselves.*Write them as files"),
        (
            _listed("image_path,class_name\na.png,cat\n"),
            "'image_path' is read as path, the column 'class_name' is read as",
        ),
        (_listed("a/1.png,cat\na/2.png,dog\n"), "its first row must name the columns, path,label"),
    ],
    ids=[
        "list beside a folder",
        "list beside pictures",
        "npz",
        "pictures in parquet",
        "names",
        "no header",
    ],
)
def test_a_source_of_another_form_says_what_to_do(tmp_path, quiet, make, said):
    with pytest.raises(ImagesError, match=said):
        list_images([make(tmp_path / "source")], quiet)


@pytest.mark.one_backend
def test_numbers_of_outputs_become_names(tmp_path, quiet):
    """TFRecord labels without a text are indices into the model's classes, sorted as numbers."""
    write_pictures(tmp_path, 2, 0)
    write_records(tmp_path / "r.tfrecord", files_of(tmp_path), text=False)
    listing = list_images([tmp_path / "r.tfrecord"], quiet)
    assert listing.classes == ("0", "1", "2")
    assert {found.label for found in collect.name_numbers(listing, CLASSES)} == set(CLASSES)
    assert {found.label for found in collect.name_numbers(listing, ("0", "1", "2"))} == {"0", "1", "2"}


@pytest.mark.one_backend
def test_features_of_another_name_can_be_named(tmp_path, quiet):
    """--feature encoded=NAME names another feature; without it the error lists the features."""
    write_pictures(tmp_path, 1, 0)
    write_records(tmp_path / "r.tfrecord", files_of(tmp_path), encoded="picture")
    with pytest.raises(
        ImagesError, match="its features are image/class/label, image/class/text, image/height, picture"
    ):
        list_images([tmp_path / "r.tfrecord"], quiet)
    assert len(list_images([tmp_path / "r.tfrecord"], quiet, parse_features(("encoded=picture",))).files) == 3
    with pytest.raises(UsageError, match="encoded=NAME, label=NAME or text=NAME"):
        parse_features(("picture",))


@pytest.mark.one_backend(trains=True)
def test_features_of_another_name_are_scored_and_compared_on(tmp_path):
    """A run trained with `--feature` is evaluated and exported with it; named where there are none, they are an error."""
    write_pictures(tmp_path / "pictures", 4, 0)
    write_records(tmp_path / "r.tfrecord", files_of(tmp_path / "pictures"), encoded="picture")
    given = {"data": [str(tmp_path / "r.tfrecord")], "feature": ("encoded=picture",)}
    path = run_training(out=str(tmp_path / "run"), **given, **TINY).run
    assert evaluate(path, **given).scores["all"]["images"] == 12
    with pytest.raises(ImagesError, match=r"feature=\['encoded=NAME'\]"):
        evaluate(path, data=given["data"])
    assert export(path, tmp_path / "out", format="weights-h5", **given).parity.images == 12
    without = {**given, "data": [str(tmp_path / "pictures")]}
    for use in (
        lambda: evaluate(path, **without),
        lambda: export(path, tmp_path / "no", format="weights-h5", **without),
        lambda: kresume.predict(path, without["data"], feature=given["feature"]),
        lambda: kresume.plan(quiet=True, **without, **TINY),
        lambda: scan(without["data"], Reporter(quiet=True), features=parse_features(given["feature"])),
    ):
        with pytest.raises(UsageError, match=r"encoded=picture.* names a feature of TFRecord files, and none"):
            use()
    write_pictures(tmp_path / "more", 2, 50)  # an option that a child takes over is not asked for again
    assert kresume.plan(path, add=[str(tmp_path / "more")], quiet=True).images["new"] == 6


@pytest.mark.one_backend
def test_an_unchanged_record_file_is_read_once(tmp_path, quiet, monkeypatch):
    """An unchanged record file is listed once, by size and time.

    If it changed, or if the stored listing is damaged, it is read again.
    """
    write_pictures(tmp_path, 2, 0)
    path = make_records(tmp_path, "r.tfrecord")
    reads = []
    real = records._records
    monkeypatch.setattr(records, "_records", lambda *arguments: reads.append(1) or real(*arguments))
    first = list_images([path], quiet, memory=tmp_path / "memory")
    assert list_images([path], quiet, memory=tmp_path / "memory") == first
    assert len(reads) == 1
    for kept in (tmp_path / "memory").iterdir():
        kept.write_text("torn")
    assert list_images([path], quiet, memory=tmp_path / "memory") == first
    write_records(path, files_of(tmp_path)[:3])
    assert len(list_images([path], quiet, memory=tmp_path / "memory").files) == 3
    assert len(reads) == 3


@pytest.mark.one_backend
def test_the_masked_checksum_is_that_of_tensorflow(tmp_path):
    """Our masked checksum equals that of the first frame of a file by TensorFlow's writer."""
    import tensorflow as tf

    with tf.io.TFRecordWriter(str(tmp_path / "r")) as writer:
        writer.write(b"x" * 1000)
    length, checksum = FRAME.unpack((tmp_path / "r").read_bytes()[: FRAME.size])
    assert (length, checksum) == (1000, masked_crc(length.to_bytes(8, "little")))


@pytest.mark.parametrize("path", ["all.tar", "all.zip", "all.tfrecord", "all.tar.gz", "all.tar.xz", "all.tfrecord.gz"])
@pytest.mark.one_backend
def test_a_cut_archive_is_named(tmp_path, quiet, path):
    """A truncated archive is one error with its name; its remaining members are not used."""
    write_pictures(tmp_path, 6, 0)
    make = make_records if "record" in path else make_archive
    whole = make(tmp_path, path).read_bytes()
    (tmp_path / f"cut-{path}").write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(ImagesError, match=rf"cut-{path} .*(create or copy it again)"):
        list_images([tmp_path / f"cut-{path}"], quiet)


@pytest.mark.one_backend
def test_a_zip_bomb_stops_at_the_limit(tmp_path, quiet, monkeypatch):
    """A zip member that unpacks to more than the limit of a picture is quarantined without unpacking it."""
    monkeypatch.setattr(locations, "MAX_FILE_BYTES", 10_000)
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/bomb.png", b"\0" * 10_000_000)
    prepared = prepare(list_images([tmp_path / "bomb.zip"], quiet).files, SPEC, None, quiet)
    assert "more than" in prepared.quarantine[0].reason


@pytest.mark.one_backend
def test_a_film_in_a_class_folder_is_not_read(tmp_path, quiet, monkeypatch):
    """A film in a class folder is quarantined by its size, without reading it."""
    monkeypatch.setattr("kresume.images.prepare.MAX_FILE_BYTES", 1000)
    write_pictures(tmp_path, 1, 0, ("a",))
    (tmp_path / "a" / "film.mp4").write_bytes(b"\0" * 2000)
    prepared = prepare(list_images([tmp_path], quiet).files, SPEC, None, quiet)
    assert [os.path.basename(row.path) for row in prepared.quarantine] == ["film.mp4"] or len(prepared.quarantine) == 2
    assert any("limit for one image" in row.reason for row in prepared.quarantine)


@pytest.mark.one_backend
def test_names_in_any_script_and_folders_in_folders(tmp_path, quiet):
    """Class names of any script, spaces, upper-case endings, nested folders and link loops are listed."""
    write_pictures(tmp_path / "x", 2, 0, ("猫", "Große Äpfel"))
    inner = tmp_path / "x" / "猫" / "2024" / "März"
    inner.mkdir(parents=True)
    os.rename(tmp_path / "x" / "猫" / "0.png", inner / "ЙЦ.PNG")
    os.symlink(tmp_path / "x" / "猫", inner / "loop")
    listing = list_images([tmp_path / "x"], quiet)
    assert listing.classes == ("Große Äpfel", "猫")
    names = [os.path.basename(found.path) for found in listing.files if found.label == "猫"]
    assert "ЙЦ.PNG" in names
    assert len({os.path.realpath(found.path) for found in listing.files}) == 4


@pytest.mark.one_backend
@pytest.mark.parametrize("where", [".", "..", "../..", "../dog", "inner"])
def test_a_link_to_a_folder_above_is_left_out_and_told(tmp_path, quiet, where):
    """It would list every class under this one, or its own pictures once more. A link to a folder elsewhere is followed."""
    write_pictures(tmp_path / "x", 2, 0, ("cat", "dog"))
    inner = tmp_path / "x" / "cat" / "inner"
    inner.mkdir()
    os.rename(tmp_path / "x" / "cat" / "0.png", inner / "0.png")
    (tmp_path / "x" / "cat" / "link").symlink_to(where)
    listing = list_images([tmp_path / "x"], quiet)
    upwards = {".", "..", "../.."}
    assert any("1 link to folders above left out" in note for note in listing.notes) == (where in upwards)
    listed = sorted(os.path.relpath(found.path, tmp_path / "x") for found in listing.files)
    through = {"../dog": ["cat/link/1000.png", "cat/link/1001.png"], "inner": ["cat/link/0.png"]}
    assert listed == sorted(["cat/1.png", "cat/inner/0.png", "dog/1000.png", "dog/1001.png", *through.get(where, [])])


@pytest.mark.one_backend
def test_a_link_to_a_picture_that_is_gone_is_set_aside(tmp_path, quiet):
    """An unmounted drive, or a checkout of DVC without its files: nothing may vanish without a word."""
    write_pictures(tmp_path / "x", 2, 0, ("cat", "dog"))
    (tmp_path / "x" / "cat" / "2.png").symlink_to("/nowhere/2.png")
    (tmp_path / "x" / "cat" / "notes.txt").symlink_to("/nowhere/notes.txt")
    listing = list_images([tmp_path / "x"], quiet)
    assert len(listing.files) == 4
    (row,) = listing.quarantine
    assert (row.path, row.label) == (str(tmp_path / "x" / "cat" / "2.png"), "cat")
    assert "a link to a file that is not there" in row.reason
    without = list_images([tmp_path / "x"], quiet, with_classes=False)
    assert len(without.files) == 4
    assert any("1 link to files that are gone left out" in note for note in without.notes)
    for path in (tmp_path / "x").glob("*/*.png"):
        if not path.is_symlink():
            path.unlink()
    with pytest.raises(ImagesError, match=r"contain no images.*1 link to files that are not there"):
        list_images([tmp_path / "x"], quiet)


@pytest.mark.one_backend
@pytest.mark.parametrize("bucket", ["gs://bucket", "flaky://bucket"])
def test_a_bucket_is_listed_and_read_like_a_folder(pictures, tmp_path, quiet, monkeypatch, bucket):
    """A path with a scheme is read through epath or fsspec with the same images, pixels and digest."""
    from etils import epath

    if bucket.startswith("gs"):
        real = epath.Path
        monkeypatch.setattr(epath, "Path", lambda path: real(str(path).replace("gs://bucket", str(pictures), 1)))
    else:
        flaky_bucket.bucket.reset()
        for path in (pictures / "old").rglob("*.*"):
            Bucket(bucket).send(path.relative_to(pictures).as_posix(), path)
    listing = list_images([f"{bucket}/old"], quiet)
    assert listing.files[0].path.startswith(f"{bucket}/old/circle/")
    table = merged(prepare(listing.files, SPEC, None, quiet)).manifest
    plain = merged(prepare(list_images([pictures / "old"], quiet).files, SPEC, None, quiet)).manifest
    assert table.digest() == plain.digest()
    rows = np.arange(4)
    assert PictureReader(table, SPEC, None)(rows).tobytes() == PictureReader(plain, SPEC, None)(rows).tobytes()


@pytest.mark.one_backend(trains=True)
def test_a_run_trains_on_any_kind_and_remembers_it(tmp_path, quiet):
    """A run trains on any kind of source, keeps origins and splits, and finds a moved archive.

    It has an archive as --data, a list as --add and records as --val.
    """
    for name, first in (("old", 0), ("new", 100), ("val", 200)):
        write_pictures(tmp_path / name, 4, first)
    archive = make_archive(tmp_path / "old", "old.tar")
    run_training(
        out=str(tmp_path / "1"), data=[str(archive)], val=[str(make_records(tmp_path / "val", "v.rec"))], **TINY
    )
    first = Manifest.read(tmp_path / "1" / "images.parquet")
    assert (len(first.train_rows()) > 0, len(first.val_rows()) >= 12) == (True, True)
    (tmp_path / "moved").mkdir()
    os.rename(archive, tmp_path / "moved" / "old.tar")
    arguments = {"add": [str(make_csv(tmp_path / "new", "list.csv"))], "epochs": 1}
    with pytest.raises(ImagesError, match=r"are missing.*--remap OLD=NEW"):
        run_training(str(tmp_path / "1"), out=str(tmp_path / "2"), **arguments)
    run_training(
        str(tmp_path / "1"), out=str(tmp_path / "2"), remap=[f"{tmp_path / 'old'}={tmp_path / 'moved'}"], **arguments
    )
    table = Manifest.read(tmp_path / "2" / "images.parquet")
    assert np.bincount(table.origins).tolist() == [24, 12]
    assert set(table.table.column("member").to_pylist()) != {""}


@pytest.mark.one_backend
def test_a_record_whose_bytes_were_changed_is_set_aside(tmp_path, quiet):
    """A record whose checksum fails is named and quarantined, also when listed again; others are used."""
    write_pictures(tmp_path, 2, 0)
    path = tmp_path / "r.tfrecord"
    write_records(path, files_of(tmp_path))
    whole = list_images([path], quiet)
    data = bytearray(path.read_bytes())
    data[whole.files[3].offset + 20] ^= 1
    path.write_bytes(data)
    for memory in (None, tmp_path / "memory", tmp_path / "memory"):
        listing = list_images([path], quiet, None, memory)
        assert [found.name for found in listing.files] == [
            found.name for place, found in enumerate(whole.files) if place != 3
        ]
        assert [(row.path, "checksum" in row.reason) for row in listing.quarantine] == [(whole.files[3].name, True)]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.one_backend
def test_what_lies_beside_train_and_val_is_no_class(tmp_path, quiet, packed):
    """Folders beside train and val, such as an unlabelled `test` or annotations, are not classes.

    Many archives have this form. A class may still be named train.
    """
    for side, count in (("train", 3), ("val", 2)):
        write_pictures(tmp_path / "data" / side, count, 100 * count, ("a", "b"))
    write_pictures(tmp_path / "data", 2, 900, ("test",))
    write_pictures(tmp_path / "data", 2, 950, ("masks",))
    write_pictures(tmp_path / "vehicles", 2, 0, ("train", "car"))
    given = tmp_path / "data"
    if packed:
        given = tmp_path / "data.tar"
        with tarfile.open(given, "w") as archive:
            archive.add(tmp_path / "data", "data")
    listing = list_images([given], quiet)
    assert listing.classes == ("a", "b")
    assert sorted({(found.split, found.label) for found in listing.files}) == [
        (side, label) for side in ("train", "val") for label in ("a", "b")
    ]
    told = " ".join(listing.notes)
    assert "masks/ was left out" in told
    assert "they are for `kresume eval`" in told or "test images are for `kresume eval`" in told
    assert list_images([tmp_path / "vehicles"], quiet).classes == ("car", "train")


@pytest.mark.parametrize("form", ["splits", "classes", "flat", "zip", "list", "list of tests", "tests", "none"])
@pytest.mark.one_backend
def test_images_for_testing_are_listed_alone_on_request(tmp_path, quiet, form):
    """Training leaves images for testing out, an evaluation takes them alone; a source without any is taken whole."""
    data = tmp_path / "data"
    for split, count in (("train", 3), ("val", 2), ("test", 1)):
        if form in {"none", "tests"} and (split == "test") != (form == "tests"):
            continue
        write_pictures(data / split, count, 100 * count, ("a", "b"))
    if form == "classes":
        for path in sorted(data.rglob("*.png")):
            moved = data / path.parent.name / path.parent.parent.name / path.name
            moved.parent.mkdir(parents=True, exist_ok=True)
            path.rename(moved)
        for split in ("train", "val", "test"):
            shutil.rmtree(data / split)
    if form == "flat":
        for path in sorted((data / "test").rglob("*.png")):
            path.rename(data / "test" / f"{path.parent.name}-{path.name}")
        for name in ("a", "b"):
            (data / "test" / name).rmdir()
    given = data
    if form == "zip":
        given = Path(shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path, "data"))
    if form.startswith("list"):
        given = tmp_path / "list.csv"
        rows = [path.relative_to(tmp_path) for path in sorted(data.rglob("*.png"))]
        rows = [path for path in rows if form == "list" or path.parts[1] == "test"]
        given.write_text("path,label,split\n" + "".join(f"{path},{path.parts[2]},{path.parts[1]}\n" for path in rows))
    count, others = {"flat": (10, 0), "none": (10, 0), "tests": (2, 0), "list of tests": (2, 0)}.get(form, (2, 10))
    tested = list_images([given], quiet, tests=True)
    assert len(tested.files) == count
    assert tested.classes == ("a", "b")
    assert any(
        f"its {count} test images are scored, the {others} others are not" in note for note in tested.notes
    ) == bool(others)
    assert ("images directly in test/ were left out" in " ".join(tested.notes)) == (form == "flat")
    if form == "list of tests":
        with pytest.raises(ImagesError, match="test images"):
            list_images([given], quiet)
    else:  # a folder around one folder is entered, whatever its name
        assert len(list_images([given], quiet).files) == (2 if form == "tests" else 10)


@pytest.mark.one_backend
def test_a_stray_picture_in_train_makes_no_classes_of_the_splits(tmp_path, quiet):
    """Folders train, val and test with class folders inside are splits, whatever stray files they hold."""
    for side in ("train", "val"):
        write_pictures(tmp_path / "data" / side, 2, 5, ("a", "b"))
    shutil.copy(next((tmp_path / "data" / "val" / "a").iterdir()), tmp_path / "data" / "train" / "preview.png")
    listing = list_images([tmp_path / "data"], quiet)
    assert listing.classes == ("a", "b")
    assert any("images directly in train/ were left out" in note for note in listing.notes)


@pytest.mark.one_backend
def test_the_spelling_of_the_model_holds(tmp_path, quiet):
    """A run's class names stay as written, although labels are now composed, stripped and rounded."""
    import unicodedata

    composed = "z\u00e8"
    write_pictures(tmp_path, 2, 0, (composed, "3", "b"))
    listing = list_images([tmp_path], quiet)
    old = (unicodedata.normalize("NFD", composed), "3.0", " b ")
    assert {found.label for found in collect.name_numbers(listing, old)} == set(old)
    assert collect.name_numbers(listing, ("3", "b", composed)) == listing.files


@pytest.mark.one_backend
def test_labels_that_look_alike_are_one(tmp_path, quiet):
    """Labels that look alike are one class.

    Tried: decomposed names of macOS, blanks of a spreadsheet, fractions of a table with gaps.
    """
    import unicodedata

    names = [unicodedata.normalize(form, "z\u00e8") for form in ("NFC", "NFD")]
    for number, name in enumerate(names):
        write_pictures(tmp_path / str(number), 2, 10 * number, (name, "b"))
    assert list_images([tmp_path / "0", tmp_path / "1"], quiet).classes == ("b", names[0])
    picture = next((tmp_path / "0" / "b").iterdir())
    (tmp_path / "list.csv").write_text(f"path,label\n{picture}, 7 \n")
    (tmp_path / "list.jsonl").write_text(json.dumps({"path": str(picture), "label": 7.0}) + "\n")
    for name in ("list.csv", "list.jsonl"):
        assert list_images([tmp_path / name], quiet).classes == ("7",)


@pytest.mark.one_backend(trains=True)
def test_a_name_that_is_no_text_is_set_aside(tmp_path, quiet):
    """A file name that is not UTF-8 is quarantined by name: Linux's names are bytes, a table's are text."""
    write_pictures(tmp_path / "data", 2, 0, ("a", "b"))
    picture = next((tmp_path / "data" / "a").iterdir()).read_bytes()
    try:
        for name in (b"a/nai\xefve.png", b"b/\xff\xfe.png"):
            with open(os.path.join(os.fsencode(tmp_path / "data"), name), "wb") as file:
                file.write(picture)
    except OSError:
        pytest.skip("this file system takes no such names")
    listing = list_images([tmp_path / "data"], quiet)
    assert len(listing.files) == 4
    assert [os.path.basename(row.path) for row in listing.quarantine] == ["nai\\xefve.png", "\\xff\\xfe.png"]
    assert "rename it" in listing.quarantine[0].reason
    result = run_training(data=[str(tmp_path / "data")], out=str(tmp_path / "run"), **TINY)
    assert "nai\\xefve.png" in (Path(result.run) / "quarantine.csv").read_text()


@pytest.mark.parametrize("kind", ["xz", "gz", "bz2"])
@pytest.mark.one_backend
def test_a_packed_archive_that_is_damaged_later_is_a_broken_picture_not_a_crash(tmp_path, quiet, kind):
    """A packed archive that is damaged later gives a broken picture, not a crash, for any packer's error."""
    write_pictures(tmp_path / "data", 4, 0, ("a", "b"))
    path = tmp_path / f"data.tar.{kind}"
    with tarfile.open(path, f"w:{kind}") as archive:
        archive.add(tmp_path / "data", "data")
    prepared = prepare(list_images([path], quiet).files, DecodeSpec(12, 12), None, quiet)
    table = merging.merge(None, prepared, None, None, classes=("a", "b"), val_split=None, generation=0).manifest
    data = bytearray(path.read_bytes())
    data[len(data) // 3 :] = bytes(len(data) - len(data) // 3)
    path.write_bytes(data)
    _, broken = PictureReader(table, DecodeSpec(12, 12), None).attempt(np.arange(len(table)))
    assert any("can no longer be decompressed" in reason for reason in broken.values())


@pytest.mark.one_backend(trains=True)
def test_a_packed_archive_needs_the_cache_and_strict_needs_every_file(tmp_path, quiet):
    """--cache off with .tar.gz is refused before training; --strict-images makes a broken file an error."""
    write_pictures(tmp_path / "old", 4, 0)
    archive = make_archive(tmp_path / "old", "old.tar.gz")
    with pytest.raises(ImagesError, match="leave --cache off out"):
        run_training(out=str(tmp_path / "1"), data=[str(archive)], cache="off", **TINY)
    (tmp_path / "old" / "circle" / "broken.png").write_bytes(b"x")
    with pytest.raises(ImagesError, match=r"--strict-images: 1 file cannot be used, the first is .*broken.png"):
        run_training(out=str(tmp_path / "1"), data=[str(tmp_path / "old")], strict_images=True, **TINY)


@pytest.mark.parametrize("form", ["folder", "tar"])
@pytest.mark.parametrize(
    ("inside", "way"),
    [
        ({"val": CLASSES}, "holds val/ beside .* would be a class val. If it is none, move it .* with --val"),
        ({"Test": CLASSES[:1]}, "If it is none, move it out of there: test images are for `kresume eval`"),
        ({"new": CLASSES[:2]}, "would be a class new. If it is none, move it out of there, and give it as a source"),
        ({"new": CLASSES[:1]}, None),  # a class may hold one folder with the name of another
        ({"new": ("left", "right")}, None),
        ({"test": ("left", *CLASSES)}, None),
    ],
)
@pytest.mark.one_backend
def test_classes_that_are_there_twice_are_no_class(tmp_path, quiet, form, inside, way):
    """A split, or more images, among the class folders was a class of its own."""
    folder = tmp_path / "photos"
    write_pictures(folder, 1, 0)
    for name, classes in inside.items():
        write_pictures(folder / name, 1, 30, classes)
    path = folder if form == "folder" else Path(shutil.make_archive(str(folder), form, folder))
    if way is None:
        assert list_images([path], quiet).classes == tuple(sorted((*CLASSES, *inside)))
        return
    with pytest.raises(ImagesError, match=way):
        list_images([path], quiet)


@pytest.mark.parametrize(
    ("files", "refused"),
    [
        ({"images/train/{}.jpg": 1, "labels/train/{}.txt": 0}, True),
        ({"train/images/{}.jpg": 1, "train/labels/{}.txt": 0, "valid/images/{}9.jpg": 1}, True),
        ({"images/{}.jpg": 1, "annotations/{}.xml": 0}, True),
        ({"imgs/scene-{}.jpg": 1, "masks/scene-{}.jpg": 1}, True),
        ({"photo/{}.jpg": 1, "mask/{}.jpg": 1}, False),  # pictures of either class may be numbered alike
        ({"images/{}.jpg": 1, "labels/x{}.jpg": 1}, False),  # pictures of labels, on bottles say
        ({"images/{}.jpg": 1, "cat/{}.jpg": 1}, False),
    ],
)
@pytest.mark.one_backend
def test_pictures_beside_annotations_are_no_classes(tmp_path, quiet, files, refused):
    """Data sets for detection and segmentation were trained as a class `images`."""
    for pattern, is_picture in files.items():
        for number in range(3):
            path = tmp_path / pattern.format(number)
            path.parent.mkdir(parents=True, exist_ok=True)
            if is_picture:
                save_photo(path, number + 10 * len(pattern))
            else:
                path.write_text("0 0.5 0.5 0.1 0.1")
    if refused:
        with pytest.raises(ImagesError, match=r"for detection or segmentation, and no classes.*columns path and label"):
            list_images([tmp_path], quiet)
    else:
        assert len(list_images([tmp_path], quiet).files) == 6


@pytest.mark.one_backend
def test_one_level_too_high_is_doubted(tmp_path, quiet):
    """A folder one level too high is doubted: its class folders hold only the same subfolders.

    Years under two class folders are such a case.
    """
    for part in ("first", "second"):
        write_pictures(tmp_path / "set" / part, 1, 0)
    (note,) = list_images([str(tmp_path / "set")], quiet).notes
    assert "the classes are first, second, and each of them contains the folders circle, square, stripes" in note
    write_pictures(tmp_path / "set" / "first", 1, 9, ("only-here",))
    shutil.copy(next((tmp_path / "set").glob("*/*/*.png")), tmp_path / "set" / "first" / "loose.png")
    assert list_images([str(tmp_path / "set")], quiet).notes == ()
    with pytest.raises(ImagesError, match=r"is a class itself, give its parent folder, .*first"):
        list_images([str(tmp_path / "set" / "first" / "circle")], quiet)


LAYOUTS = {
    "classes": ("cat/1", "dog/1", "dog/deep/2"),
    "one top folder": ("set/cat/1", "set/dog/1"),
    "two top folders": ("set/more/cat/1", "set/more/dog/1"),
    "one class": ("set/cat/1", "set/cat/2"),
    "splits": ("train/cat/1", "train/dog/1", "val/cat/2", "test/dog/3"),
    "splits below a top folder": ("set/Training/cat/1", "set/Validation/cat/2"),
    "training alone": ("train/cat/1", "train/dog/1"),
    "splits inside each class": ("cat/train/1", "cat/val/2", "cat/test/3", "dog/train/1"),
    "classes named like splits": ("train/1", "car/1"),
    "a stray picture": ("1", "cat/1", "dog/1"),
    "a stray picture in a split": ("train/1", "train/cat/2", "val/cat/3"),
    "folders beside splits": ("train/cat/1", "val/cat/2", "masks/3", "test/4"),
    "one level too high": ("first/cat/1", "first/dog/2", "second/cat/3", "second/dog/4"),
    "unsure": ("cat/1", "unsure/2", "unsure/.kresume-unsure"),
    "a list beside one folder": ("images/1", "labels.csv"),
    "a list beside pictures": ("1", "2", "labels.csv"),
    "no folder": ("1", "2"),
    "unsure alone": ("unsure/2", "unsure/.kresume-unsure"),
    "nothing": (".hidden/1",),
    "unsure in a split": ("train/cat/1", "train/dog/2", "train/unsure/3", "train/unsure/.kresume-unsure", "val/cat/4"),
    "unsure in a class": ("cat/1", "dog/1", "cat/unsure/2", "cat/unsure/.kresume-unsure"),
    "other files": ("cat/1", "cat/notes.txt", "dog/1", "Thumbs.db", "__MACOSX/cat/1"),
}


def _lay_out(names, folder, picture):
    for name in names:
        path = folder / (name if "." in name.rpartition("/")[2] else f"{name}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture)


def _told(given, root, quiet, tests):
    """Returns the images and notes, or the error, of a source, without its name."""
    try:
        listing = list_images([given], quiet, tests=tests)
    except ImagesError as error:
        return str(error).partition(str(given))[2].partition(".")[0]
    files = sorted((found.name.removeprefix(f"{root}/"), found.label, found.split) for found in listing.files)
    return files, listing.classes, [note.partition(":")[2].partition("; if these")[0] for note in listing.notes]


@pytest.mark.one_backend
@pytest.mark.parametrize("tests", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_folder_and_an_archive_of_it_are_the_same_source(tmp_path, quiet, layout, tests):
    """Classes, splits, what is left out and what is refused do not depend on whether a folder is packed.

    An archive with pictures in `images/` beside a list was one class `images`; years of classes were not doubted.
    """
    write_pictures(tmp_path / "any", 1, 0, ("a",))
    folder = tmp_path / "set"
    _lay_out(LAYOUTS[layout], folder, next((tmp_path / "any").rglob("*.png")).read_bytes())
    expected = _told(folder, folder, quiet, tests)
    for kind in ("zip", "tar", "gztar"):
        packed = Path(shutil.make_archive(str(tmp_path / "packed"), kind, folder))
        found = _told(packed, f"{packed}", quiet, tests)
        if not isinstance(found, str):
            found = (sorted((name.removeprefix("./"), *rest) for name, *rest in found[0]), *found[1:])
        assert found == expected, kind


@pytest.mark.one_backend
def test_an_archive_is_read_as_it_would_be_unpacked(tmp_path, quiet):
    """The last of several members of one name counts; a hard link is a file, a symbolic link is left out and counted.

    Hard links were lost without a word, and a replaced picture trained in both versions.
    """
    write_pictures(tmp_path / "set", 3, 0, ("cat",))
    first, second, third = sorted((tmp_path / "set" / "cat").iterdir())
    (tmp_path / "set" / "dog").mkdir()
    os.link(first, tmp_path / "set" / "dog" / "same.png")
    (tmp_path / "set" / "dog" / "link.png").symlink_to(second)
    tar = tmp_path / "made.tar"
    with tarfile.open(tar, "w") as archive:
        archive.add(tmp_path / "set", "set")
        archive.add(third, f"set/cat/{second.name}")
    listing = list_images([tar], quiet)
    assert sorted((Path(found.member).name, found.label) for found in listing.files) == sorted(
        [(path.name, "cat") for path in (first, second, third)] + [("same.png", "dog")]
    )
    assert len([note for note in listing.notes if "1 member left out: links" in note]) == 1
    assert len([note for note in listing.notes if "later ones have the same names" in note]) == 1
    unpacked = tmp_path / "unpacked"
    with tarfile.open(tar) as archive:
        archive.extractall(unpacked, filter="tar")
    for found in listing.files:
        read = locations.read_range(found.path, found.offset, found.length, found.coding)
        assert read == (unpacked / found.member).read_bytes()
    with zipfile.ZipFile(tmp_path / "made.zip", "w") as archive:
        archive.write(first, "set/cat/1.png")
        archive.write(first, "set/dog/1.png")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.write(second, "set/cat/1.png")
    zipped = list_images([tmp_path / "made.zip"], quiet)
    (replaced,) = [found for found in zipped.files if found.label == "cat"]
    read = locations.read_range(replaced.path, replaced.offset, replaced.length, replaced.coding)
    assert read == second.read_bytes()


@pytest.mark.one_backend
def test_json_that_holds_no_label_is_no_label(tmp_path, quiet):
    """JSON about a picture beside it leaves the folders their classes; of `.cls` and `.json`, `.cls` is the label."""
    write_pictures(tmp_path / "set", 2, 0, ("cat", "dog"))
    for path in sorted((tmp_path / "set").rglob("*.png")):
        path.with_name(f"{path.name}.json").write_text(json.dumps({"title": path.name, "shapes": [{"label": "x"}]}))
    packed = shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path / "set")
    listing = list_images([packed], quiet)
    assert sorted((found.label, found.member.partition("/")[0]) for found in listing.files) == [
        ("cat", "cat"), ("cat", "cat"), ("dog", "dog"), ("dog", "dog")
    ]  # fmt: skip
    assert "files that are not images were left out: 4 .json" in listing.notes[0]
    picture = next((tmp_path / "set").rglob("*.png")).read_bytes()
    both = [("0.png", picture), ("0.json", b'{"label": "x"}'), ("0.cls", b"rose")]
    write_tar(tmp_path / "both.tar", both)
    assert list_images([tmp_path / "both.tar"], quiet).classes == ("rose",)
    write_tar(tmp_path / "some.tar", [*both, ("1.png", picture), ("1.json", b'{"title": "x"}')])
    with pytest.raises(ImagesError, match=r"1\.json has no label, and other members have one"):
        list_images([tmp_path / "some.tar"], quiet)


@pytest.mark.one_backend
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_labels_beside_pictures_and_folders_that_disagree_are_told(tmp_path, quiet, kind):
    """One JSON with a label made an archive of class folders a WebDataset of one picture; swapped labels were not told."""
    write_pictures(tmp_path / "set", 3, 0, ("a", "b"))
    picture = min((tmp_path / "set" / "a").iterdir())
    picture.with_suffix(".json").write_text('{"label": "b"}')
    with pytest.raises(ImagesError, match=r"1 picture has a label in a \.cls or \.json member, and 5 have none"):
        list_images([shutil.make_archive(str(tmp_path / "some"), kind, tmp_path / "set")], quiet)
    for path in sorted((tmp_path / "set").rglob("*.png")):
        path.with_suffix(".json").write_text(json.dumps({"label": {"a": "b", "b": "a"}[path.parent.name]}))
    listing = list_images([shutil.make_archive(str(tmp_path / "all"), kind, tmp_path / "set")], quiet)
    assert {(Path(found.member).parent.name, found.label) for found in listing.files} == {("a", "b"), ("b", "a")}
    assert "not of the folders; 6 pictures differ" in " ".join(listing.notes)


@pytest.mark.one_backend
@pytest.mark.parametrize(
    ("examples", "labels", "told"),
    [
        (
            [{"label": 4, "class_name": "rose"}, {"label": 2, "class_name": "lily"}],
            ["4", "2"],
            "not of the key 'class_name'",
        ),
        ([{"label": "4", "text": "a rose"}, {"label": "2", "text": "red"}], ["4", "2"], ""),
        ([{"label": 4, "category": 7}, {"label": 2, "category": 7}], ["4", "2"], "'label', not of the key 'category'"),
        ([{"label": "a", "class": "b"}, {"label": "c", "class": "c"}], ["a", "c"], "'label', not of the key 'class'"),
        ([{"label": "rose", "class": "rose"}, {"label": "tulip"}], ["rose", "tulip"], ""),
        ([{".cls": "4", "class_name": "rose"}, {".cls": "2", "class_name": "lily"}], ["4", "2"], ""),
        ([{".cls": "rose", "": None}, {".cls": "lily", "label": 2}], ["rose", "lily"], ""),
    ],
)
def test_labels_under_several_keys_are_those_of_the_first(tmp_path, quiet, examples, labels, told):
    """Labels that another key says otherwise are told. Names in place of numbers would differ from shard to shard."""
    write_pictures(tmp_path / "set", len(examples), 0, ("x",))
    items = []
    for number, (example, picture) in enumerate(zip(examples, sorted((tmp_path / "set" / "x").iterdir()), strict=True)):
        items.append((f"{number}.png", picture.read_bytes()))
        items += [(f"{number}.cls", example.pop(".cls").encode())] if ".cls" in example else []
        items.append((f"{number}.json", b"no JSON" if "" in example else json.dumps(example).encode()))
    write_tar(tmp_path / "set.tar", items)
    listing = list_images([tmp_path / "set.tar"], quiet)
    assert [found.label for found in sorted(listing.files, key=lambda found: found.member)] == labels
    assert told in " ".join(listing.notes)
    assert bool(told) == bool(listing.notes)


@pytest.mark.one_backend
@pytest.mark.parametrize("form", ["../set/{}", "../../set/{}", "top/../set/{}", "..\\set\\{}"])
def test_names_that_lead_out_of_an_archive_count_from_there(tmp_path, quiet, form):
    """`tar cPf x.tar ../set` was called empty: parts above the last `..` are dropped, as when it is unpacked."""
    write_pictures(tmp_path / "set", 2, 0, ("a", "b"))
    separator = form[-3]
    items = [(form.format(name.replace("/", separator)), data) for name, _, data in files_of(tmp_path / "set")]
    write_tar(tmp_path / "made.tar", items)
    with zipfile.ZipFile(tmp_path / "made.zip", "w") as archive:
        for name, data in items:
            archive.writestr(name, data)
    for name in ("made.tar", "made.zip"):
        listing = list_images([tmp_path / name], quiet)
        assert (len(listing.files), listing.classes) == (4, ("a", "b"))


@pytest.mark.one_backend
def test_one_place_in_an_archive_is_one_picture_however_it_is_spelled(tmp_path, quiet):
    """`./a/1.png` after `a/1.png` replaces it; names with backslashes are folders, as in an old zip for Windows."""
    write_pictures(tmp_path / "set", 3, 0, ("a",))
    old, other, new = (path.read_bytes() for path in sorted((tmp_path / "set" / "a").iterdir()))
    write_tar(tmp_path / "made.tar", [("a/1.png", old), ("b/2.png", other), ("./a/1.png", new)])
    with zipfile.ZipFile(tmp_path / "made.zip", "w") as archive:
        for name, data in (("a//1.png", old), ("b/2.png", other), ("a/1.png", new)):
            archive.writestr(name, data)
    with zipfile.ZipFile(tmp_path / "windows.zip", "w") as archive:
        for name, data in (("set\\", b""), ("set\\a\\", b""), ("set\\a\\1.png", new), ("set\\b\\2.png", other)):
            archive.writestr(name, data)
    for name in ("made.tar", "made.zip", "windows.zip"):
        listing = list_images([tmp_path / name], quiet)
        read = {
            found.label: locations.read_range(found.path, found.offset, found.length, found.coding)
            for found in listing.files
        }
        assert (len(listing.files), read) == (2, {"a": new, "b": other})


@pytest.mark.one_backend
def test_what_holds_no_pictures_in_an_archive_makes_no_classes(tmp_path, quiet):
    """Documents and annotations beside a data set do not change its classes; an absurdly deep name does not end the reading."""
    write_pictures(tmp_path / "any", 1, 0, ("a",))
    picture = next((tmp_path / "any").rglob("*.png")).read_bytes()
    names = ["set/train/cat/1.png", "set/train/dog/2.png", "set/val/cat/3.png"]
    deep = "/".join("x" * 1200) + "/4.png"
    write_tar(tmp_path / "a.tar", [*((name, picture) for name in names), ("docs/readme.txt", b"x"), (deep, picture)])
    listing = list_images([tmp_path / "a.tar"], quiet)
    assert sorted((found.member, found.label, found.split) for found in listing.files) == [
        (names[0], "cat", "train"), (names[1], "dog", "train"), (names[2], "cat", "val")
    ]  # fmt: skip
    assert "files that are not images were left out: 1 .txt" in " ".join(listing.notes)


@pytest.mark.one_backend
@pytest.mark.parametrize("names", [("train",), ("train", "test"), ("Train", "validation", "test")])
def test_splits_with_pictures_in_them_are_no_classes(tmp_path, quiet, names):
    """Hugging Face keeps the labels in a list beside the pictures of each split."""
    for name in names:
        (tmp_path / "in" / name).mkdir(parents=True)
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "in" / name / "1.png")
        (tmp_path / "in" / name / "metadata.csv").write_text("file_name,label\n1.png,cat\n")
    with pytest.raises(
        ImagesError, match=r"these are splits, and no classes\. .*metadata\.csv may be a list of their labels"
    ):
        list_images([tmp_path / "in"], quiet)
    assert len(list_images([tmp_path / "in"], quiet, with_classes=False).files) == len(names)


@pytest.mark.one_backend
def test_a_list_beside_class_folders_is_told(tmp_path, quiet):
    """Its labels may be others than the folders."""
    write_pictures(tmp_path / "in", 1, 0, ("alice", "bob"))
    (tmp_path / "in" / "metadata.csv").write_text("file_name,label\nalice/0.png,cat\n")
    listing = list_images([tmp_path / "in"], quiet)
    assert listing.classes == ("alice", "bob")
    assert any("metadata.csv beside the class folders is not read" in note for note in listing.notes)
