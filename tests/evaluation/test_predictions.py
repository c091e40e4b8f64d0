"""Tests `kresume predict`: every picture of every kind of source gets plain Keras's answer; sorting loses none."""

import csv
import hashlib
import io
import itertools
import json
import os
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import kresume
from kresume import cli
from kresume.errors import ImagesError, UsageError
from kresume.evaluation import predictions
from kresume.evaluation.opened import open_model
from kresume.evaluation.served import plain_reason
from kresume.images.decode import decode
from kresume.images.read_ahead import Read, read_ahead
from kresume.images.sorting import SortedFolder
from kresume.images.sources import list_images
from kresume.images.sources.found import Found
from kresume.images.sources.names import UNSURE
from kresume.models.load import Subject
from kresume.reporter import Reporter
from kresume.values.decode_spec import DecodeSpec
from tests.helpers.pictures import write_pictures
from tests.helpers.runs import run_training, trained

pytestmark = pytest.mark.optimized_graphs

OPTIONS = {"model": "convnet", "image_size": "10", "batch_size": 5, "epochs": 2, "val_split": 0.25}
QUIET = Reporter(quiet=True)


@pytest.fixture
def place(workplace):
    """Changes to a folder with a run of three classes and unlabelled pictures in `inbox/`."""
    trained("runs/1-shapes", data=["old"], **OPTIONS)
    Path("inbox/deep/er").mkdir(parents=True)
    for number, path in enumerate(sorted(Path("new").rglob("*.png"))):
        shutil.copy(path, Path("inbox") / ("deep/er" if number % 3 else "") / path.name)
    return workplace


@pytest.fixture
def opened(place, monkeypatch):
    """Opens the run once for all calls of a test."""
    model = open_model(Subject("runs/1-shapes"), batch_size=5, reporter=QUIET)
    monkeypatch.setattr(predictions, "open_model", lambda *_, **__: model)
    return model


def by_keras(paths, model="runs/1-shapes/model.keras"):
    """Returns plain Keras's predictions of the same decoded pixels."""
    import keras

    loaded = keras.models.load_model(model, compile=False)
    pixels = np.stack([decode(Path(path).read_bytes(), DecodeSpec(10, 10)) for path in paths])
    return loaded.predict(pixels.astype(np.float32), verbose=0)


def test_rows_are_those_of_plain_keras(place):
    """Labels and scores of every class equal `model.predict` on the same pixels; rows are in the order of the folder."""
    found = kresume.predict("runs/1-shapes", "inbox", top_k=9)
    paths = [row.path for row in found.rows]
    folders = ("inbox", "inbox/deep/er")
    assert paths == [str(path) for folder in folders for path in sorted(Path(folder).glob("*.png"))]
    expected = by_keras(paths)
    assert found.classes == ("circle", "square", "stripes")
    assert (found.images, found.failures, len(found.rows)) == (18, 0, 18)
    for row, scores in zip(found.rows, expected, strict=True):
        order = np.argsort(-scores)
        assert row.label == found.classes[order[0]]
        assert [label for label, _ in row.top] == [found.classes[index] for index in order]
        np.testing.assert_allclose([score for _, score in row.top], scores[order], rtol=1e-5, atol=1e-6)
        assert row.score == row.top[0][1]


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize("from_logits", [False, True])
def test_one_output_for_two_classes(place, from_logits):
    """The score is that of the class that is answered, also where the model gives a single number."""
    import keras

    layers = [
        keras.layers.Rescaling(1 / 255),
        keras.layers.Flatten(),
        keras.layers.Dense(1, None if from_logits else "sigmoid"),
    ]
    model = keras.Sequential([keras.Input((10, 10, 3)), *layers])
    model.compile("adam", keras.losses.BinaryCrossentropy(from_logits=from_logits))
    model.save("binary.keras")
    found = kresume.predict("binary.keras", "inbox", classes=("no", "yes"))
    values = by_keras([row.path for row in found.rows], "binary.keras")[:, 0]
    shares = 1 / (1 + np.exp(-values)) if from_logits else values
    assert [row.label for row in found.rows] == ["yes" if share > 0.5 else "no" for share in shares]
    np.testing.assert_allclose([row.score for row in found.rows], np.maximum(shares, 1 - shares), rtol=1e-5)
    with pytest.raises(UsageError, match="does not name them"):
        kresume.predict("binary.keras", "inbox")


@pytest.mark.one_backend(trains=True)
def test_a_saved_model_answers_through_its_signature(place):
    """An export of the run, given as bytes, and a model of Keras's `export`, given as numbers, give the same rows."""
    import keras

    expected = kresume.predict("runs/1-shapes", "inbox", top_k=3)
    kresume.export("runs/1-shapes", "serving/shapes")
    kresume.export("runs/1-shapes", "serving/flagging", on_bad_image="flag")
    keras.models.load_model("runs/1-shapes/model.keras", compile=False).export("plain", verbose=False)
    Path("inbox/no.png").write_text("no")
    with zipfile.ZipFile("inbox.zip", "w") as archive:
        for path in sorted(Path("inbox").rglob("*.png")):
            archive.write(path)
    for found in (
        kresume.predict("serving/shapes", "inbox", top_k=3),
        kresume.predict("serving/flagging", "inbox", top_k=3),
        kresume.predict("serving/shapes", "inbox.zip", top_k=3),
        kresume.predict("plain", "inbox", top_k=3, classes=expected.classes, pixels="0-255"),
    ):
        assert found.failures == 1
        assert next(row for row in found.rows if row.path.endswith("no.png")).label == ""
        rows = {Path(row.path).name: row for row in found.rows}
        for row in expected.rows:
            other = rows[Path(row.path).name]
            assert other.label == row.label
            np.testing.assert_allclose([each[1] for each in other.top], [each[1] for each in row.top], atol=1e-5)
    with pytest.raises(UsageError, match="does not record the names of its classes"):
        kresume.predict("plain", "inbox")


def pack(kind: str, paths: list[Path]) -> list[str]:
    """Puts pictures into a source of a kind, without labels; returns what to give."""
    if kind == "files":
        return [str(path) for path in paths]
    if kind == "class folders":
        return ["new"]
    if kind in {"csv", "jsonl", "parquet"}:
        rows = [{"path": str(path), "taken": "monday"} for path in paths]
        if kind == "parquet":
            pq.write_table(pa.Table.from_pylist(rows), "list.parquet")
        elif kind == "jsonl":
            Path("list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        else:
            Path("list.csv").write_text("path\n" + "".join(f"{path}\n" for path in paths))
        return [f"list.{kind}"]
    if kind == "zip":
        with zipfile.ZipFile("all.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for path in paths:
                archive.write(path, path.name)
        return ["all.zip"]
    if kind.startswith("tar"):
        with tarfile.open(f"all.{kind}", f"w:{kind[4:]}") as archive:
            for path in paths:
                archive.add(path, f"./{path.name}" if kind == "tar.gz" else path.name)  # as `tar cf all.tar .` does
        return [f"all.{kind}"]
    import tensorflow as tf

    with tf.io.TFRecordWriter("all.tfrecord") as writer:
        for path in paths:
            feature = {"image/encoded": tf.train.Feature(bytes_list=tf.train.BytesList(value=[path.read_bytes()]))}
            writer.write(tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString())
    return ["all.tfrecord"]


KINDS = ["files", "class folders", "csv", "jsonl", "parquet", "zip", "tar", "tar.gz", "tfrecord"]


@pytest.mark.one_backend(trains=True)
def test_every_kind_of_source_gives_the_same_rows(opened):
    """Files, class folders, lists without labels, archives without folders and records without labels; in one call, too."""
    expected = [(row.label, round(row.score, 5)) for row in kresume.predict("runs/1-shapes", "inbox").rows]
    paths = sorted(Path("inbox").glob("*.png")) + sorted(Path("inbox/deep/er").glob("*.png"))
    given = []
    for kind in KINDS:
        source = pack(kind, paths)
        rows = kresume.predict("runs/1-shapes", source).rows
        found = [(row.label, round(row.score, 5)) for row in rows]
        assert (sorted(found) if kind == "class folders" else found) == (
            sorted(expected) if kind == "class folders" else expected
        ), kind
        assert not any(os.path.isabs(row.path) for row in rows), kind
        given += source
    together = kresume.predict("runs/1-shapes", given)
    assert together.images == len(KINDS) * 18
    assert [row.path for row in together.rows][:18] == [str(path) for path in paths]
    assert "all.zip/" in "".join(row.path for row in together.rows)


@pytest.mark.one_backend(trains=True)
def test_what_cannot_be_read_has_a_row_with_the_reason(opened, capsys):
    """Rows stay in order, the summary on stderr names the files, the exit code is 0; if none can be read it is 1."""
    Path("inbox/broken.png").write_bytes(b"\x89PNG and no more")
    Path("inbox/empty.jpg").write_bytes(b"")
    Path("list.csv").write_text("path\ninbox/gone.png\nold/circle/0.png\n")
    code, out, err = run(capsys, "predict", "runs/1-shapes", "inbox", "list.csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert code == 0
    assert list(rows[0]) == ["path", "label", "score", "error"]
    failed = {Path(row["path"]).name: row["error"] for row in rows if not row["label"]}
    assert set(failed) == {"broken.png", "empty.jpg", "gone.png"}
    assert all(failed.values())
    assert all(name in err for name in failed)
    assert "19 pictures predicted by runs/1-shapes" in err
    assert [row["error"] for row in rows if row["label"]] == [""] * 19
    code, out, err = run(capsys, "predict", "runs/1-shapes", "inbox/broken.png", "inbox/empty.jpg")
    assert (code, len(out.splitlines())) == (1, 3)
    assert "none of the 2 pictures can be read" in err


def run(capsys, *arguments):
    """Runs a command; returns exit code, stdout and stderr."""
    with pytest.raises(SystemExit) as left:
        cli.main([str(argument) for argument in arguments])
    streams = capsys.readouterr()
    return left.value.code, streams.out, streams.err


@pytest.mark.one_backend(trains=True)
def test_formats_hold_the_same(opened, monkeypatch):
    """CSV, JSON lines and Parquet have the same rows; a file is never replaced unasked and never half."""
    Path("inbox/broken.png").write_bytes(b"no")
    expected = [row.as_dict() for row in kresume.predict("runs/1-shapes", "inbox", top_k=2).rows]
    for name in ("a.csv", "a.jsonl", "a.parquet", "b.txt"):
        done = kresume.predict(
            "runs/1-shapes", "inbox", top_k=2, output=name, format="csv" if name == "b.txt" else None
        )
        assert (done.rows, done.images) == ((), 18)
    assert [json.loads(line) for line in Path("a.jsonl").read_text().splitlines()] == expected
    assert pq.read_table("a.parquet").to_pylist() == expected
    rows = list(csv.DictReader(io.StringIO(Path("a.csv").read_text())))
    assert [row["label_2"] for row in rows] == [row["top"][1]["label"] if row["top"] else "" for row in expected]
    assert [row["score"] for row in rows] == ["" if row["score"] is None else f"{row['score']:.6f}" for row in expected]
    assert Path("a.csv").read_text() == Path("b.txt").read_text()
    assert str(kresume.predict("runs/1-shapes", "inbox", top_k=2)) == Path("a.csv").read_text().rstrip("\n")
    for wrong, words in (
        ({"output": "a.csv"}, "already exists"),
        ({"output": "a.xml"}, "the formats are csv, jsonl, parquet"),
        ({"output": "gone/a.csv"}, "does not exist"),
        ({"top_k": 0}, "at least 1"),
        ({"min_score": 2.0}, "from 0 to 1"),
        ({"link": True}, "give both"),
    ):
        with pytest.raises(UsageError, match=words):
            kresume.predict("runs/1-shapes", "inbox", **wrong)
    before = Path("a.csv").read_bytes()

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(predictions._Job, "_unreadable", stop)
    with pytest.raises(KeyboardInterrupt):
        kresume.predict("runs/1-shapes", "inbox", output="a.csv", overwrite=True)
    assert Path("a.csv").read_bytes() == before
    assert not list(Path().glob(".tmp-*"))


@pytest.mark.one_backend(trains=True)
def test_pictures_are_read_ahead_but_not_all(tmp_path):
    """However many pictures there are, only a few groups are in memory; order and reasons are kept."""
    path = write_pictures(tmp_path / "p", 1, 0) / "circle" / "0.png"
    taken = itertools.count()

    def endless():
        while True:
            number = next(taken)
            size = path.stat().st_size
            yield Found(str(path) if number % 7 else str(tmp_path / "gone"), "image", "p", size, number)

    reads = read_ahead(endless(), DecodeSpec(8, 8))
    some = list(itertools.islice(reads, 100))
    reads.close()
    assert [read.item.mtime_ns for read in some] == list(range(100))
    assert [bool(read.reason) for read in some] == [number % 7 == 0 for number in range(100)]
    assert next(taken) < 100 + 32 * (os.cpu_count() + 16)
    assert all(read.data is None for read in some)


@pytest.mark.one_backend(trains=True)
def test_sorted_pictures_go_straight_into_add(opened, capsys):
    """The loop of a week: predict, correct, train. Sure pictures are in class folders, the rest waits in unsure/."""
    scores = [row.score for row in kresume.predict("runs/1-shapes", "inbox").rows]
    least = float(np.median(scores))
    code, _, err = run(
        capsys, "predict", "runs/1-shapes", "inbox", "--sort", "week", "--min-score", least, "-o", "week.csv"
    )
    assert code == 0
    rows = list(csv.DictReader(io.StringIO(Path("week.csv").read_text())))
    sure = {Path(row["path"]).name: row["label"] for row, score in zip(rows, scores, strict=True) if score >= least}
    placed = {path.name: path.parent.name for path in Path("week").rglob("*.png")}
    assert placed == {Path(row["path"]).name: sure.get(Path(row["path"]).name, "unsure") for row in rows}
    for path in Path("week").rglob("*.png"):
        assert path.read_bytes() == next(Path("inbox").rglob(path.name)).read_bytes()
    assert f"{len(sure)} into class folders, {18 - len(sure)} into unsure/" in err
    run_training("runs/1-shapes", add=["week"], out="runs/2-shapes", epochs=1)
    assert kresume.open_run("runs/2-shapes").record.images["new"] == len(sure)
    note = "unsure/ was left out: `kresume predict --sort` was not sure of its pictures"
    assert any(note in each for each in list_images(["week"], QUIET).notes)
    moved = next(Path("week/unsure").glob("*.png"))
    moved.rename(Path("week/circle") / moved.name)
    _, _, err = run(capsys, "predict", "runs/1-shapes", "inbox", "--sort", "week", "--min-score", least)
    assert "0 pictures copied" in err
    assert "18 were there already" in err
    assert len(list_images(["week"], QUIET).files) == len(sure) + 1
    assert kresume.predict("runs/1-shapes", "week").images == 18


def read_of(path: Path, member: str = "") -> Read:
    data = path.read_bytes()
    length = len(data) if member else -1
    found = Found(str(path), "image", "x", len(data), 10**18, length=length, member=member)
    return Read(found, data=data, sha256=hashlib.sha256(data).hexdigest(), format="PNG")


@pytest.mark.one_backend
def test_names_that_clash_get_a_suffix_by_content(tmp_path):
    """Nothing is overwritten, one content is put once, whatever its names; what a person put there counts."""
    for number, name in enumerate(["a/x.png", "b/x.png", "c/y.png"]):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"same" if number != 1 else b"other")
    (tmp_path / "out" / "cat").mkdir(parents=True)
    (tmp_path / "out" / "cat" / "z.png").write_bytes(b"mine")
    (tmp_path / "d.png").write_bytes(b"mine")
    folder = SortedFolder(tmp_path / "out", ("cat", "dog"))
    folder.prepare()
    first, second = (folder.put(read_of(tmp_path / name), "cat") for name in ("a/x.png", "b/x.png"))
    assert first.name == "x.png"
    assert second.name == f"x-{hashlib.sha256(b'other').hexdigest()[:8]}.png"
    assert (first.read_bytes(), second.read_bytes()) == (b"same", b"other")
    assert first.stat().st_mtime_ns == 10**18
    assert folder.put(read_of(tmp_path / "c/y.png"), "dog") is None
    assert folder.put(read_of(tmp_path / "d.png"), None) is None
    assert folder.doubles == 2
    assert not list((tmp_path / "out").rglob(".tmp-*"))


HOSTILE = [
    "../../evil.png", "/etc/evil.png", "..", "a/..", "C:\\evil.png", "..\\evil.png", ".hidden.png", "a\nb.png", "con:.png",
    "Thumbs.db", "x" * 300 + ".png", "ü" * 200 + ".png", "record-12", "photo.txt", " .png", "a/b/c.png",
]  # fmt: skip


@pytest.mark.one_backend
@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: repr(name)[:20])
def test_hostile_names_in_archives_stay_in_the_folder(tmp_path, name):
    """A member becomes one plain file in its class folder, under a name that is read as a picture again."""
    (tmp_path / "archive").write_bytes(b"content")
    folder = SortedFolder(tmp_path / "deep" / "er" / "out", ("cat",))
    folder.prepare()
    placed = folder.put(read_of(tmp_path / "archive", name), "cat")
    assert placed.parent == tmp_path / "deep" / "er" / "out" / "cat"
    files = {path for path in tmp_path.rglob("*") if path.is_file() and path.name != UNSURE}
    assert files == {tmp_path / "archive", placed}
    listed = list_images([folder.path], QUIET).files
    assert [Path(found.path) for found in listed] == [placed]
    assert placed.suffix


@pytest.mark.one_backend
@pytest.mark.parametrize("name", ["a/b", "..", ".x", "", " cat", "a\\b", "Thumbs.db"])
def test_a_class_that_cannot_be_a_folder_is_refused(tmp_path, name):
    """Before anything is predicted; a class of the name unsure is no trouble."""
    with pytest.raises(UsageError, match="cannot be that of a folder"):
        SortedFolder(tmp_path / "out", ("cat", name))
    assert SortedFolder(tmp_path / "out", ("cat", "Unsure")).unsure == "unsure-2"


@pytest.mark.one_backend
def test_links_and_marks(tmp_path, monkeypatch):
    """--link makes hard links, symbolic ones to another drive, and copies members of archives."""
    source = tmp_path / "x.png"
    source.write_bytes(b"one")
    folder = SortedFolder(tmp_path / "out", ("cat",), links=True)
    folder.prepare()
    assert folder.put(read_of(source), "cat").samefile(source)
    assert source.stat().st_nlink == 2
    (tmp_path / "y.png").write_bytes(b"two")

    def refuse(*_):
        raise OSError("another drive")

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", refuse)
        assert folder.put(read_of(tmp_path / "y.png"), "cat").readlink() == tmp_path / "y.png"
    (tmp_path / "z.png").write_bytes(b"three")
    copied = folder.put(read_of(tmp_path / "z.png", "member.png"), None)
    assert (copied.parent.name, copied.stat().st_nlink, folder.symbolic) == ("unsure", 1, 1)
    with zipfile.ZipFile(tmp_path / "out.zip", "w") as archive:
        for path in sorted(folder.path.rglob("*")):
            if path.is_file():
                archive.write(path, path.relative_to(folder.path))
    listing = list_images([tmp_path / "out.zip"], QUIET)
    assert {found.label for found in listing.files} == {"cat"}
    assert "unsure/ was left out" in listing.notes[0]
    shutil.rmtree(folder.path / "cat")
    with pytest.raises(ImagesError, match="there are no other class folders"):
        list_images([folder.path], QUIET)


@pytest.mark.one_backend
@pytest.mark.parametrize(
    ("said", "plain"),
    [
        (
            "Graph execution error:\n\nDetected at node cond_1/Assert defined at (most recent call last):\n<stack traces "
            "unavailable>\nassertion failed: [image_bytes[0]: not a JPEG]\n\t [[{{node cond_1/Assert}}]] [Op:__inference_1]",
            "image_bytes[0]: not a JPEG",
        ),
        ("Number of channels must be 1, was 0\n\t [[{{node decode}}]]", "Number of channels must be 1, was 0"),
        ("it is  empty", "it is empty"),
    ],
)
def test_what_tensorflow_says_is_one_line(said, plain):
    """The reason alone is shown, without the places in the graph."""
    assert plain_reason(said) == plain
