"""Every option that takes text: what it names is read or written at an address, or refused by name; no folder `s3:` appears."""

import os
from pathlib import Path

import click
import fsspec
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem

import kresume
from kresume.addresses import MUST_BE_HERE
from kresume.class_names import read_classes
from kresume.cli import cli, main
from kresume.errors import KresumeError, RunError, UsageError
from kresume.images.corrections import read_drop
from kresume.models import torch_map
from kresume.options.resolve import resolve
from kresume.staging import fetch
from kresume.storage import atomic
from kresume.storage.stores import Bucket
from tests.helpers.flaky_bucket import bucket
from tests.helpers.runs import TINY, trained

pytestmark = pytest.mark.one_backend(trains=True)

HERE, TEXT = "must be on this machine", "names no file"
AT = "flaky://b"
"""The address of the bucket of these tests."""

MODEL = {
    "--model": HERE, "--import": HERE, "--map": "read", "--classes": "read", "--pixels": HERE, "--image-size": TEXT,
    "--axes": TEXT,
}  # fmt: skip
TRAIN = {
    "--from": "read", "--data": "read", "--add": "read", "--val": "read", "--val-like": TEXT, "--feature": TEXT,
    "--drop": "read", "--remap": TEXT, "--mix": TEXT, "--model": HERE, "--map": "read", "--map-out": "written",
    "--import": HERE, "--rename": TEXT,
    "--image-size": TEXT, "--pixels": HERE, "--axes": TEXT, "--metric": TEXT, "--weights": HERE, "--grow": "read",
    "--head": TEXT, "--monitor": TEXT, "--until": TEXT, "--freeze": TEXT, "--optimizer": TEXT, "--optimizer-from": "read",
    "--exclude-from-weight-decay": TEXT, "--average": TEXT, "--out": "written", "--without": TEXT, "--snapshot-every": TEXT,
    "--mlflow": HERE, "--require": TEXT, "--coordinator": TEXT, "--cache": HERE, "--cache-limit": TEXT, "--config": "read",
    "--set": TEXT, "--classes": "read",
}  # fmt: skip
TABLE = {
    "train": TRAIN,
    "plan": TRAIN,
    "inspect": {"checkpoint": "read", "--write-model": HERE},
    "eval": MODEL
    | {
        "checkpoint": "read", "--data": "read", "--against": "read", "--against-classes": "read", "--against-pixels": HERE,
        "--require": TEXT, "--metric": HERE, "--csv": "written", "--answers": "written", "--report": "written",
        "--feature": TEXT, "--cache": HERE,
    },
    "predict": MODEL
    | {"checkpoint": "read", "paths": "read", "--output": "written", "--sort": "written", "--feature": TEXT},
    "export": MODEL
    | {
        "checkpoint": "read", "directory": "written", "--like": "read", "--like-pixels": TEXT, "--name": TEXT,
        "--optimizer": TEXT, "--data": "read", "--feature": TEXT,
    },
    "data scan": {"paths": "read", "--out": "written", "--feature": TEXT, "--cache": HERE},
    "data check": {"paths": "read", "--val": "read", "--from": "read", "--feature": TEXT, "--cache": HERE},
    "data show": {
        "paths": "read", "--sheet": "written", "--image-size": TEXT, "--feature": TEXT, "--cache": HERE,
    },
    "log": {"paths": "read"},
    "report": {"run": "read", "other": "read", "--out": "written"},
    "doctor": {},
    "demo": {"--dir": HERE},
}  # fmt: skip
"""Names what each option that takes text does with an address. Enter a new option here, and a case for it below."""


def commands():
    """Yields every command with its words."""
    for name, command in cli.commands.items():
        if isinstance(command, click.Group):
            yield from ((f"{name} {inner}", each) for inner, each in command.commands.items())
        else:
            yield name, command


def texts(command):
    """Returns the names of the options and arguments of a command that take text."""
    names = cli.context_settings["help_option_names"]  # a command keeps its first context's help option
    found = command.get_params(click.Context(command, help_option_names=names))
    return {
        max(each.opts, key=len)
        for each in found
        if each.type.name == "text" and not getattr(each, "is_flag", False) and each.name != "help"
    }


def test_every_option_that_takes_text_is_in_the_table():
    """A new option or argument says what it does with an address."""
    assert {name: texts(command) for name, command in commands()} == {name: set(each) for name, each in TABLE.items()}


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Returns an empty current folder, beside an empty bucket; no folder may be there that has the name of a scheme."""
    bucket.reset()
    fetch._here.clear()
    monkeypatch.setenv("KRESUME_STAGE", str(tmp_path / "stages"))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    yield work
    fetch._here.clear()
    assert [path for path in tmp_path.rglob("*:*") if "stages" not in path.parts] == []


def command_line(words, capsys):
    """Runs a command; returns its exit code, what it printed and what it said."""
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    said = capsys.readouterr()
    return ended.value.code, said.out, said.err


REFUSED = [(name, flag) for name, table in TABLE.items() for flag, what in table.items() if what is HERE]
NEEDED = {
    "inspect": ["x"], "eval": ["x", "--data", "x"], "predict": ["x", "x"], "export": ["x", "x"], "data scan": ["x", "-o", "y"],
    "data check": ["x"], "data show": ["x"],
}  # fmt: skip


@pytest.mark.parametrize(("name", "flag"), REFUSED, ids=lambda each: each.lstrip("-"))
def test_an_address_for_what_must_be_here_is_refused_by_name(machine, capsys, name, flag):
    """Before any work: nothing of the rest of the command exists."""
    address = (
        "s3://bkt/file.py:f" if flag in {"--model", "--pixels", "--metric", "--against-pixels"} else "s3://bkt/file"
    )
    words = [f"{flag}={address}"] if flag == "--mlflow" else [flag, address]
    code, _, said = command_line([*name.split(), *NEEDED.get(name, []), *words], capsys)
    assert code == 2
    assert said.startswith(f"kresume: {flag} {address}: this must be on this machine")
    assert len(said.splitlines()) == 1


OTHERS = [(name, flag) for name, table in TABLE.items() for flag, what in table.items() if what is not HERE]


@pytest.mark.parametrize(("name", "flag"), OTHERS, ids=lambda each: each.lstrip("-"))
def test_an_address_of_nothing_leaves_no_folder_here(machine, capsys, name, flag):
    """The command ends, and `machine` finds no folder that has the name of a scheme."""
    base = {"log": [], "report": []}.get(name, NEEDED.get(name, []))
    words = [flag, f"{AT}/nothing"] if flag.startswith("--") else [f"{AT}/nothing"]
    command_line([*name.split(), *base, *words], capsys)


@pytest.mark.parametrize("word", ["s3://bkt/file", Path("s3://bkt/file")], ids=["text", "path"])
def test_python_refuses_the_same(machine, pictures, word):
    """Arguments of Python are refused as options are, also as paths, which lose a slash."""
    for call in (
        lambda: kresume.plan(data=pictures / "old", weights=word),
        lambda: kresume.plan(data=pictures / "old", imports=word),
        lambda: kresume.plan(data=pictures / "old", cache=word),
        lambda: kresume.evaluate("x", data=pictures / "old", imports=[word]),
        lambda: kresume.evaluate("x", data=pictures / "old", metric=f"{word}.py:f"),
        lambda: kresume.predict("x", pictures / "old", model=f"{word}.py:f"),
        lambda: kresume.image_dataset(pictures / "old", image_size=10, cache=word),
        lambda: atomic.make_directory(Path("s3://bkt/runs")),
    ):
        with pytest.raises(KresumeError) as refused:
            call()
        assert MUST_BE_HERE in str(refused.value)


def test_class_names_and_presets_are_no_addresses():
    """Names that hold `://`, a preset, a server and a folder are no addresses, and pass."""
    for given in (
        {"model": "hub:hf://a/b"},
        {"model": "hub:/folder"},
        {"mlflow": "http://host:1"},
        {"pixels": "m.py:f"},
    ):
        assert resolve(given)
    assert read_classes("cat,a://b") == ("cat", "a://b")


@pytest.fixture
def run(machine, pictures):
    """Returns a finished run on the disk, which is also at `flaky://b/runs/1-signs`; the pictures are at `flaky://b/old`."""
    made = trained(machine / "runs" / "1-signs", **TINY, data=[str(pictures / "old")], snapshot_every="2")
    upload(made, f"{AT}/runs/1-signs")
    upload(pictures / "val", f"{AT}/val")
    return made


def upload(folder, address):
    """Copies a folder to an address."""
    store = Bucket(address)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            store.send(path.relative_to(folder).as_posix(), path)


def files():
    """Returns the files in the bucket."""
    return Bucket(AT).names()


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_predictions_are_written_to_an_address(run, capsys, kind):
    """The rows are those of a file here; a second time is refused without --overwrite, before anything is predicted."""
    kresume.predict(run, f"{AT}/val", output=run.parent / f"here.{kind}")
    words = ["predict", run, f"{AT}/val", "-o", f"{AT}/p.{kind}"]
    assert command_line(words, capsys)[0] == 0
    content = (run.parent / f"here.{kind}").read_bytes()
    assert Bucket(AT).read(f"p.{kind}") == content
    code, _, said = command_line(words, capsys)
    assert (code, said) == (
        2,
        f"kresume: --output {AT}/p.{kind}: it already exists; give another name, or --overwrite\n",
    )
    assert command_line([*words, "--overwrite"], capsys)[0] == 0
    kresume.predict(run, f"{AT}/val", output=Path("memory://b") / f"p.{kind}", overwrite=True)
    assert MemoryFileSystem.store.pop(f"/b/p.{kind}").getvalue() == content


def test_pictures_are_sorted_into_an_address(run, capsys):
    """Each picture is copied once, by content; unsure/ is left out where the address is read; links are refused."""
    words = ["predict", run, f"{AT}/val", "--sort", f"{AT}/sorted", "--min-score", "0.3", "-o", "p.csv"]
    code, _, said = command_line(words, capsys)
    assert code == 0
    assert f"{AT}/sorted: 9 pictures copied: " in said
    found = Bucket(f"{AT}/sorted").names()
    mark = "unsure/.kresume-unsure"
    pictures = [name for name in found if name != mark]
    assert mark in found
    assert len(pictures) == 9
    stored = {Bucket(f"{AT}/sorted").read(name) for name in pictures}
    assert stored == {Bucket(f"{AT}/val").read(name) for name in Bucket(f"{AT}/val").names()}
    assert (
        f"{AT}/sorted: 0 pictures copied" in command_line([*words, "--sort", f"{AT}/sorted/", "-o", "q.csv"], capsys)[2]
    )
    assert Bucket(f"{AT}/sorted").names() == found
    code, out, _ = command_line(["data", "show", f"{AT}/sorted"], capsys)
    assert (code, out.split()[0]) == (0, str(sum(not name.startswith("unsure") for name in pictures)))
    code, _, said = command_line([*words, "--link", "--overwrite"], capsys)
    assert (code, said) == (
        2, f"kresume: --sort {AT}/sorted: pictures are copied to an address, it holds no links: leave --link out, or give a "
        "folder on this machine\n",
    )  # fmt: skip


def test_an_evaluation_writes_its_files_to_an_address(run, capsys, pictures):
    """--csv, --answers and --report are those of files here; the page of a compared run is in the run at its address."""
    given = ["eval", run, "--data", pictures / "val"]
    names = {"--csv": "scores.csv", "--answers": "answers.parquet", "--report": "page.html"}
    here = [word for flag, name in names.items() for word in (flag, name)]
    there = [word for flag, name in names.items() for word in (flag, f"{AT}/{name}")]
    assert command_line([*given, *here], capsys)[0] == 0
    code, _, said = command_line([*given, *there], capsys)
    assert code == 0
    assert f"report: {AT}/page.html" in said
    assert Bucket(AT).read("scores.csv") == Path("scores.csv").read_bytes()
    assert Bucket(AT).read("answers.parquet") == Path("answers.parquet").read_bytes()
    assert b"<html" in Bucket(AT).read("page.html")
    for flag, name in names.items():
        assert command_line([*given, flag, f"{AT}/{name}"], capsys)[2].startswith(
            f"kresume: {flag} {AT}/{name}: it already"
        )
    against = ["eval", f"{AT}/runs/1-signs", "--data", pictures / "val", "--against", run]
    assert command_line(against, capsys)[0] == 0
    assert "runs/1-signs/eval-against-1-signs.html" in files()


def test_pages_manifests_and_sheets_are_written_to_an_address(run, capsys, pictures):
    """Files that a message names at an address exist there; `data show` reads a run at an address."""
    code, out, _ = command_line(["report", run, "--out", f"{AT}/r.html"], capsys)
    assert code == 0
    assert out.startswith(f"{AT}/r.html: ")
    assert b"<html" in Bucket(AT).read("r.html")
    assert command_line(["data", "scan", pictures / "old", "-o", f"{AT}/m.parquet"], capsys)[0] == 0
    with fsspec.open(f"{AT}/m.parquet") as file:
        assert len(pq.read_table(file)) == 24
    assert command_line(["data", "show", f"{AT}/m.parquet"], capsys)[1].startswith("24 images of 3 classes")
    code, out, said = command_line(["data", "show", f"{AT}/runs/1-signs", "--sheet", f"{AT}/s.png"], capsys)
    assert (code, out.split(" in ")[0]) == (0, "24 images of 3 classes")
    assert f"{AT}/s.png: " in said
    assert Bucket(AT).read("s.png").startswith(b"\x89PNG")
    assert command_line(["data", "check", f"{AT}/val", "--from", f"{AT}/runs/1-signs"], capsys)[0] in {0, 1}
    code, _, said = command_line(["data", "scan", pictures / "old", "-o", f"{AT}/val"], capsys)
    assert (code, said) == (
        2,
        f"kresume: --out {AT}/val: this is a folder; give the name of a file, in it for example\n",
    )


def test_a_bucket_that_refuses_is_told_in_one_line(run, capsys, pictures):
    """Nothing is said to be written, and the exit code is 1."""
    bucket.reset(lambda count, name: "refuse" if name == "put_file" else None, empty=False)
    for words in (
        ["report", run, "--out", f"{AT}/r.html"],
        ["data", "scan", pictures / "old", "-o", f"{AT}/m.parquet"],
        ["predict", run, pictures / "val", "-o", f"{AT}/p.csv"],
    ):
        code, out, said = command_line(words, capsys)
        assert (code, out) == (1, "")
        assert f"kresume: {words[-1]} cannot be written (the bucket refuses)" in said
    bucket.reset(lambda count, name: "refuse" if name == "pipe_file" else None, empty=False)
    code, _, said = command_line(["predict", run, pictures / "val", "--sort", f"{AT}/sorted"], capsys)
    assert code == 1
    assert f"kresume: {AT}/sorted cannot be written (the bucket refuses)" in said


def test_small_files_are_read_at_an_address(machine, monkeypatch):
    """--drop, --classes, --grow, --config and --map read their files there; a missing one is named."""
    store = Bucket(AT)
    store.write("drop.txt", b"# comment\n" + b"A" * 64 + b"\n")
    assert set(read_drop(f"{AT}/drop.txt")) == {"a" * 64}
    store.write("classes.txt", b"\xef\xbb\xbfcat\r\ndog\r\n")
    store.write("classes.json", b'{"cat": 1, "dog": 0}')
    assert read_classes(f"{AT}/classes.txt") == ("cat", "dog")
    assert read_classes(f"{AT}/classes.json") == ("dog", "cat")
    assert resolve({"grow": f"{AT}/classes.txt"}).grow == ("cat", "dog")
    store.write("c.yaml", b"lr: 1e-3\n")
    assert resolve({}, f"{AT}/c.yaml").lr == 1e-3
    for work in (
        read_drop,
        read_classes,
        lambda file: resolve({}, file),
        lambda file: torch_map._read_map(file, [], {}),
    ):
        with pytest.raises(UsageError, match=f"{AT}/no.txt: (there is no such file|the file does not exist)"):
            work(f"{AT}/no.txt")
    store.write("map.yaml", b"dense/kernel: a\n")
    with pytest.raises(UsageError, match=f"--map {AT}/map.yaml: the model has no dense/kernel"):
        torch_map._read_map(f"{AT}/map.yaml", [], {})
    bucket.reset(lambda count, name: "refuse" if name == "cat_file" else None, empty=False)
    with pytest.raises(RunError, match=f"^{AT}/drop.txt cannot be read .the bucket refuses.*: is the address right"):
        read_drop(f"{AT}/drop.txt")


def test_images_that_a_list_at_an_address_names_are_dropped(run, pictures):
    """`--drop` reads its file there, in a plan as well."""
    dropped = pictures / "old" / os.listdir(pictures / "old")[0]
    first = sorted(dropped.iterdir())[0]
    Bucket(AT).write("drop.txt", f"{first}\n".encode())
    plan = str(kresume.plan(run, drop=f"{AT}/drop.txt", add=f"{AT}/val", epochs=1))
    assert "1 image dropped" in plan


def test_a_run_at_an_address_is_read_in_python(run, pictures):
    """Everything that takes a run takes its address, and what is shown of an opened one names the address, not its stage."""
    address = f"{AT}/runs/1-signs"
    opened = kresume.open_run(address)
    assert opened.record == kresume.open_run(run).record
    assert repr(opened) == f"<run {address}: accepted, generation 0>"
    for given in (address, opened):
        assert kresume.evaluate(given, data=pictures / "val").model == address
        assert kresume.read_checkpoint(given).format == "run"
        assert len(kresume.lineage(given).generations) == 1
    with pytest.raises(RunError, match=f"no run at {AT}/runs/2: a run is"):
        kresume.open_run(f"{AT}/runs/2")
