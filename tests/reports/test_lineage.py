"""Tests `kresume log`: every run is listed, with what it came from, also where something is gone, moved or damaged."""

import dataclasses
import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest

import kresume
from kresume import cli
from kresume.checkpoints.files import compare_files, describe_files
from kresume.errors import RunError
from kresume.images.manifest import DEFAULTS, Manifest, schema
from kresume.lock import process_start
from kresume.options.lookup import MAY_DIFFER
from kresume.reports.differences import compare_runs
from kresume.reports.generation import NOT_COMPARED, Generation
from kresume.reports.lineage import real_paths
from tests.helpers.paths import ROOT
from tests.helpers.run_records import GOLDEN, write_result, write_run
from tests.helpers.runs import run_training, trained

pytestmark = pytest.mark.one_backend
OLD_KEYS = {
    "path", "generation", "status", "created", "parent", "images", "added", "classes", "epochs", "before", "accuracy", "old",
    "new", "rate", "exports",
}  # fmt: skip
"""Keys that `log --json` had in earlier versions."""


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Changes to a folder with `runs/`: two accepted generations, two rejected, a branch of two."""
    monkeypatch.chdir(tmp_path)
    folder = Path("runs")
    first = write_run(folder / "1-signs", 1)
    second = write_run(folder / "2-signs", 2, first)
    write_run(folder / "3-signs", 3, first, status="rejected", failed=["old.accuracy>=0.99"])
    branch = write_run(folder / "4-branch", 4, first)
    write_run(folder / "5-branch", 5, branch, status="rejected")
    write_run(folder / "6-signs", 6, second)
    return folder


def tree(path="runs"):
    """Returns the first column of the short form."""
    return [line.split("  ")[0] for line in kresume.lineage(path).text(short=True).splitlines()[1:]]


def only(path="runs", name=""):
    """Returns the generation whose path ends with a name."""
    return next(each for each in kresume.lineage(path).generations if each.path.endswith(name))


def test_runs_are_a_tree_with_the_newest_on_top(runs):
    """A run is above its parent, the line that goes on longest is on the left, branches end above what they left."""
    assert tree() == [
        "* runs/6-signs",
        "* runs/2-signs",
        "| x runs/5-branch",
        "|-* runs/4-branch",
        "|-x runs/3-signs",
        "* runs/1-signs",
    ]
    names = [Path(each.path).name for each in kresume.lineage("runs").generations]
    assert names == ["6-signs", "5-branch", "4-branch", "3-signs", "2-signs", "1-signs"]
    assert [Path(each.path).name for each in kresume.lineage("runs/6-signs").generations] == [
        "6-signs",
        "2-signs",
        "1-signs",
    ]


@pytest.mark.parametrize("width", [80, 120])
def test_lines_fit_the_terminal(runs, monkeypatch, width):
    """No line is longer than the terminal, and both forms name every run."""
    monkeypatch.setenv("COLUMNS", str(width))
    found = kresume.lineage("runs")
    for text in (str(found), found.text(short=True)):
        assert max(map(len, text.splitlines())) <= width
        assert all(each.path in text for each in found.generations)
        assert text.isascii()
    assert "failed   old.accuracy>=0.99" in str(found)


def move(runs):
    (runs / "1-signs").rename(runs / "archive")


def touch(runs):
    for file in (runs / "1-signs").rglob("*"):
        os.utime(file, (1, 1))


def replace(runs):
    shutil.rmtree(runs / "1-signs")
    write_run(runs / "1-signs", 99, content="another")


def retrain(runs):
    write_result(runs / "1-signs", "another")


def damage(runs):
    (runs / "1-signs" / "run.json").write_text("{")


def go_on(runs):
    shutil.rmtree(runs / "1-signs" / "snapshots" / "step-00000400")
    record = json.loads((runs / "1-signs" / "run.json").read_text())
    record["result"]["step"] = 500
    (runs / "1-signs" / "run.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("change", "state", "words"),
    [
        (lambda runs: None, "unchanged", ""),
        (touch, "unchanged", ""),
        (move, "moved", "it was runs/1-signs"),
        (lambda runs: shutil.rmtree(runs / "1-signs"), "missing", "nothing is there any more"),
        (replace, "changed", "another run is there now, made 2026-11-05"),
        (retrain, "changed", "another content"),
        (damage, "unknown", "its run.json cannot be read"),
        (go_on, "unknown", "its snapshot of step 400 is not kept; its result is step 500"),
    ],
    ids=["same", "copied", "moved", "deleted", "replaced", "retrained", "damaged", "went-on"],
)
def test_a_run_says_whether_its_parent_still_is_what_it_was(runs, change, state, words):
    """The content decides; a parent that was moved is found; nothing is called unchanged that is not there."""
    change(runs)
    for found in (only(name="2-signs").start, kresume.lineage("runs/2-signs").generations[0].start):
        assert found.state == state
        assert words in found.reason
    assert "runs/2-signs" in str(kresume.lineage("runs"))
    if state == "moved":
        assert tree()[-1] == "* runs/archive"
        assert [Path(each.path).name for each in kresume.lineage("runs/6-signs").generations][-1] == "archive"


def test_runs_of_earlier_versions_did_not_record_files(runs):
    """The state of their parent is `unknown`."""
    write_run(runs / "7-old", 7, runs / "6-signs", files=False)
    assert (only(name="7-old").start.state, tree()[0]) == ("unknown", "* runs/7-old")
    assert "not compared: its files were not recorded" in str(kresume.lineage("runs"))
    shutil.rmtree(runs / "6-signs")
    assert only(name="7-old").start.state == "missing"


def test_the_golden_run_of_an_earlier_version_is_listed(tmp_path):
    """It was killed: its record says running, but no process trains it."""
    shutil.copytree(GOLDEN, tmp_path / "runs" / "first")
    found = kresume.lineage(tmp_path / "runs").generations[0]
    assert (found.status, found.epochs, found.planned, found.images, found.start) == ("interrupted", 3, 3, 24, None)
    assert found.accuracy is not None
    assert "3 of 3 epochs" in str(kresume.lineage(tmp_path / "runs"))


def test_a_run_that_is_being_trained_names_its_process(runs):
    """Only a lock of a living process counts."""
    path = write_run(runs / "7-signs", 7, runs / "6-signs", status="running")
    lock = {"host": socket.gethostname(), "pid": os.getpid(), "start": process_start(os.getpid()), "heartbeat": 0.0}
    for pid, status in ((os.getpid(), "running"), (2**22 + 1, "interrupted")):
        (path / "lock.json").write_text(json.dumps(lock | {"pid": pid}))
        assert only(name="7-signs").status == status
    assert only(name="7-signs").trained_by == ""


@pytest.mark.parametrize(
    "content",
    [
        "", "{", "[]", "null", "\0\xff", '{"format": 99}', '{"format": 1}', "[" * 100_000, None, {"images": "many"},
        {"created": None, "rate": 3}, {"result": {"step": "x"}}, {"parent": {"path": 3}}, {"card": {}},
    ],
    ids=lambda content: str(content)[:30],
)  # fmt: skip
def test_a_damaged_run_hides_no_other(runs, content):
    """It is listed with the reason; the others are all there, also its children."""
    file = runs / "1-signs" / "run.json"
    record = json.loads(file.read_text())
    file.unlink()
    if content is None:
        file.mkdir()
    else:
        file.write_text(json.dumps(record | content) if isinstance(content, dict) else content, encoding="latin-1")
    found = kresume.lineage("runs")
    assert len(found.generations) == 5
    assert [Path(each.path).name for each in found.unreadable] == ["1-signs"]
    assert len(found.unreadable[0].reason) > 10
    assert "! runs/1-signs  unreadable" in str(found)
    json.dumps(found.as_dict())


def test_damaged_lines_of_metrics_and_events_are_left_out(runs):
    """A line that a crash has torn hides neither the run nor the whole lines."""
    path = write_run(runs / "7-signs", 7, runs / "6-signs", status="interrupted")
    (path / "metrics.jsonl").write_text(
        '{"epoch": 1, "step": 5, "all": {"accuracy": 0.5, "images": 4}}\n{"epoch": 2, "st'
    )
    (path / "events.jsonl").write_text(
        '{"event": "exported"}\n{"event": ["exported"]}\n["exported"]\n{"event": "exported", "path": 3}\n{"event": "exp'
    )
    assert (only(name="7-signs").epochs, only(name="7-signs").step, only(name="7-signs").accuracy) == (1, 5, 0.5)
    assert only(name="7-signs").versions == ()


def test_foreign_checkpoints_are_roots(runs, tmp_path):
    """A file is one root for all of its children; another content at its path is another root."""
    base = tmp_path / "base.keras"
    base.write_text("first")
    for number in (1, 2):
        write_run(runs / "foreign" / f"{number}-flowers", 10 + number, base)
    found = kresume.lineage("runs/foreign")
    assert [(root.path, root.format, root.state) for root in found.checkpoints] == [
        ("base.keras", "keras", "unchanged")
    ]
    assert tree("runs/foreign") == ["* runs/foreign/2-flowers", "|-* runs/foreign/1-flowers", "o base.keras"]
    base.write_text("other")
    write_run(runs / "foreign" / "3-flowers", 13, base)
    record = json.loads((runs / "foreign" / "3-flowers" / "run.json").read_text())
    record["parent"]["digest"] = "e" * 64
    (runs / "foreign" / "3-flowers" / "run.json").write_text(json.dumps(record))
    found = kresume.lineage("runs/foreign")
    assert sorted(root.state for root in found.checkpoints) == ["changed", "unchanged"]
    base.unlink()
    assert {each.start.state for each in kresume.lineage("runs/foreign").generations} == {"missing"}
    assert "o base.keras  keras checkpoint, step 400, missing" in str(kresume.lineage("runs/foreign/3-flowers"))


def test_folders_of_folders_links_and_runs_moved_aside(runs, tmp_path):
    """Runs are found at any depth, each once; one that --overwrite moved aside only if a listed run came from it."""
    write_run(runs / "team" / "a" / "1-deep", 8, runs / "6-signs")
    (runs / "latest").symlink_to("6-signs")
    (runs / ".tmp-7-signs-0123abcd").mkdir()
    (runs / ".tmp-7-signs-0123abcd" / "run.json").write_text("{")
    write_run(runs / "9-x.before-1", 9, runs / "6-signs")
    (runs / "4-branch").rename(runs / "4-branch.before-1")
    write_run(runs / "4-branch", 50, content="again")
    names = [Path(each.path).name for each in kresume.lineage("runs").generations]
    assert sorted(names) == sorted(
        ["1-deep", "1-signs", "2-signs", "3-signs", "4-branch", "4-branch.before-1", "5-branch", "6-signs"]
    )
    assert only(name="5-branch").start.state == "moved"
    assert "* runs/team/a/1-deep" in tree()
    outside = kresume.lineage("runs/team")
    assert [(root.format, root.state) for root in outside.checkpoints] == [("run", "unchanged")]


def test_records_that_were_edited_into_a_circle_end(runs):
    """A run that claims to descend from its own child is still drawn, once."""
    for path in runs.iterdir():
        record = json.loads((path / "run.json").read_text()) | {"created": "2026-11-01T00:00:00+00:00"}
        if path.name == "1-signs":
            record["parent"] = {"path": "../6-signs", "format": "run", "step": 400, "digest": ""}
        (path / "run.json").write_text(json.dumps(record))
    assert sorted(line.split("/")[-1] for line in tree()) == sorted(path.name for path in runs.iterdir())
    assert len(kresume.lineage("runs/6-signs").generations) == 3


def test_which_export_is_which_version(runs, tmp_path, monkeypatch):
    """The newest version of a server's folder, one that is gone, and one that another export replaced are told apart."""
    lines = []
    for number in (1, 2, 3):
        folder = tmp_path / "serving" / "signs" / str(number)
        folder.mkdir(parents=True)
        (folder / "export.json").write_text(f'{{"version": {number}}}')
        digest = hashlib.sha256((folder / "export.json").read_bytes()).hexdigest()
        path = os.path.relpath(folder, runs / "6-signs")
        lines.append({"event": "exported", "format": "saved-model", "path": path, "step": 400, "digest": digest})
    (runs / "6-signs" / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    shutil.rmtree(tmp_path / "serving" / "signs" / "1")
    (tmp_path / "serving" / "signs" / "2" / "export.json").write_text("{}")
    found = only(name="6-signs").versions
    assert [(version.version, version.state) for version in found] == [(1, "gone"), (2, "replaced"), (3, "newest")]
    assert "* runs/6-signs  accepted  2026-11-01 06:00  [serving/signs/3]" in str(kresume.lineage("runs"))
    (tmp_path / "serving" / "signs" / "2" / "export.json").write_text('{"version": 2}')
    monkeypatch.setenv("COLUMNS", "200")
    (line,) = (line for line in kresume.lineage("runs").text(short=True).splitlines() if "6-signs" in line)
    assert line.rstrip().endswith("3, 2")


def test_what_changed_between_parent_and_child_is_listed(runs, monkeypatch):
    """Rate, classes, batch size and options, those that were not given with their defaults."""
    monkeypatch.setenv("COLUMNS", "120")  # workers of pytest-xdist have 80, where the line would be wrapped
    record = json.loads((runs / "6-signs" / "run.json").read_text())
    record["rate"] |= {"checkpoint": 0.001, "peak": 0.0001}
    record["amount"]["batch_size"] = 16
    record["card"]["classes"] += ["rose"]
    record["new_classes"] = ["rose"]
    record["options"] |= {"augment": "strong", "out": "elsewhere", "backend": "jax"}
    (runs / "6-signs" / "run.json").write_text(json.dumps(record))
    found = only(name="6-signs")
    assert [(each.name, each.before, each.after) for each in found.changes] == [
        ("rate", 0.001, 0.0001), ("batch size", 4, 16), ("--augment", "light", "strong"),
    ]  # fmt: skip
    assert "+1 classes (rose); rate 0.001 -> 0.0001; batch size 4 -> 16; --augment light -> strong" in str(
        kresume.lineage("runs")
    )
    assert MAY_DIFFER <= NOT_COMPARED


@pytest.mark.parametrize(
    ("given", "sources"),
    [
        ({"data": ["old"], "add": ["new", "more"]}, ("new", "more")),
        ({"data": ["old"], "val": ["held"]}, ("old", "held")),
        ({"add": ["new"], "val": ["held", "new"]}, ("new", "held")),
        ({"val": ["held"]}, ("held",)),
        ({}, ()),
    ],
)
def test_new_images_come_from_what_was_added_and_validates(runs, given, sources):
    """Lists the sources of `--add` and `--val`; where nothing was added, or in a first training, also those of `--data`."""
    record = json.loads((runs / "6-signs" / "run.json").read_text())
    (runs / "6-signs" / "run.json").write_text(json.dumps(record | {"given": given}))
    assert only(name="6-signs").sources == sources
    alone = record | {"given": given, "parent": None}
    (runs / "6-signs" / "run.json").write_text(json.dumps(alone))
    every = [*given.get("data", ()), *given.get("add", ()), *given.get("val", ())]
    assert only(name="6-signs").sources == tuple(dict.fromkeys(every))


def test_the_shape_of_json_is_documented(runs):
    """Keys of earlier versions are there; every key is on the page."""
    value = kresume.lineage("runs").as_dict()
    assert set(value) == {"runs", "checkpoints", "unreadable"}
    assert set(value["runs"][0]) >= OLD_KEYS
    assert set(value["runs"][0]) == {field.name for field in dataclasses.fields(Generation)}
    page = (ROOT / "docs" / "lineage.md").read_text(encoding="utf-8")
    assert [name for name in value["runs"][0] if not re.search(rf"`{name}`", page)] == []


def test_real_paths_are_those_of_the_system(tmp_path, monkeypatch):
    """Through links, past links by `..`, relative, and where nothing is."""
    (tmp_path / "a" / "b" / "run").mkdir(parents=True)
    (tmp_path / "folder").symlink_to("a/b")
    (tmp_path / "run").symlink_to("a/b/run")
    monkeypatch.chdir(tmp_path / "folder")
    real = real_paths()
    paths = [
        "run",
        "../b/run",
        "..",
        ".",
        "run/",
        "run/.",
        "nowhere/x",
        "../../run",
        "../../folder/../b",
        tmp_path / "folder" / "run",
    ]
    assert [real(path) for path in paths] == [os.path.realpath(path) for path in paths]


def test_nothing_heavy_is_imported(runs):
    """A folder, a run and JSON need no framework, no arrays and no Parquet; two runs need Parquet alone."""
    script = (
        "import sys\n"
        "from kresume import cli\n"
        "heavy = {'tensorflow', 'keras', 'jax', 'sklearn', 'scipy', 'PIL', 'pydantic', 'h5py', 'pyarrow', 'rich', 'numpy'}\n"
        "for arguments in (['log'], ['log', 'runs/6-signs'], ['log', '--json'], ['log', '--short'],\n"
        "                  ['log', 'runs/1-signs', 'runs/2-signs']):\n"
        "    try:\n"
        "        cli.main(arguments)\n"
        "    except SystemExit as left:\n"
        "        print(left.code, sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    write_manifest(runs / "1-signs", {"a": ("circle", False)})
    write_manifest(runs / "2-signs", {"a": ("circle", False)})
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines() == ["0 []"] * 4 + ["0 ['numpy', 'pyarrow']"]


def write_manifest(run, images):
    """Writes the manifest of a run: (label, whether it validates) by content."""
    rows = [
        {
            "sha256": hashlib.sha256(name.encode()).hexdigest(), "path": name, "label": label, "source": "old", "origin": 0,
            "side": "val" if validates else "train", "width": 1, "height": 1, "bytes": 1, "mtime_ns": 1, "format": "png",
            "phash": 0, **DEFAULTS,
        }
        for name, (label, validates) in images.items()
    ]  # fmt: skip
    table = pa.Table.from_pylist(rows, schema())
    Manifest.from_table(table, ("circle", "square", "stripes")).write(run / "images.parquet")


def test_two_runs_are_compared_by_content(runs, capsys):
    """Counts equal those of plain sets; options, decisions, versions and results that differ are listed."""
    one = {"a": ("circle", True), "b": ("circle", False), "c": ("square", False), "gone": ("square", True)}
    two = {"a": ("circle", True), "b": ("square", False), "c": ("square", True), "new": ("stripes", False)}
    write_manifest(runs / "1-signs", one)
    write_manifest(runs / "2-signs", two)
    record = json.loads((runs / "2-signs" / "run.json").read_text())
    record["options"]["mixup"] = 0.4
    record["fingerprint"]["packages"]["keras"] = "3.16.0"
    record["result"]["scores"]["classes"]["circle"]["recall"] = 0.5
    (runs / "2-signs" / "run.json").write_text(json.dumps(record))
    found = compare_runs("runs/1-signs", "runs/2-signs")
    both = one.keys() & two.keys()
    assert (found.images.both, found.images.removed, found.images.added) == (len(both), 1, 1)
    assert found.images.relabelled == sum(one[name][0] != two[name][0] for name in both)
    assert found.images.moved == sum(one[name][1] != two[name][1] for name in both)
    assert found.images.classes == {"circle": (2, 1), "square": (2, 2), "stripes": (0, 1)}
    assert found.images.validation == (2, 2, 1)
    assert [(each.name, each.before, each.after) for each in found.options] == [("--mixup", 0.2, 0.4)]
    assert [(each.name, each.after) for each in found.versions] == [("keras", "3.16.0")]
    assert found.results["classes.circle.recall"] == (0.9, 0.5)
    text = str(found)
    assert "recall of circle: 90.0 % -> 50.0 %  (-40.0 points)" in text
    assert "on 2 and 2 validation images, 1 of them the same" in text
    with pytest.raises(SystemExit):
        cli.main(["log", "runs/1-signs", "runs/2-signs", "--json"])
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(found.as_dict()))
    (runs / "2-signs" / "images.parquet").write_text("no")
    assert "not compared: the manifest" in str(compare_runs("runs/1-signs", "runs/2-signs"))
    with pytest.raises(RunError, match="no run at nowhere"):
        compare_runs("runs/1-signs", "nowhere")


@pytest.mark.parametrize(
    ("names", "source", "format", "recorded"),
    [
        (["m.keras", "other.keras"], "m.keras", "keras", ["m.keras"]),
        (["ckpt-5.index", "ckpt-5.data-00000-of-00001", "ckpt-6.index"], "ckpt-5", "tf-checkpoint",
         ["ckpt-5.data-00000-of-00001", "ckpt-5.index"]),
        (["s/saved_model.pb", "s/variables/variables.index"], "s", "saved-model",
         ["saved_model.pb", "variables/variables.index"]),
        (["w.weights.json", "w_0.weights.h5", "x.weights.h5"], "w.weights.json", "weights-h5",
         ["w.weights.json", "w_0.weights.h5"]),
    ],
    ids=["file", "prefix", "folder", "shards"],
)  # fmt: skip
def test_the_files_of_a_checkpoint(tmp_path, names, source, format, recorded):
    """Those of the checkpoint, no others; each that is touched, changed or lost is noticed."""
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps({"weight_map": {"a": ["w_0.weights.h5"]}}))
    state = SimpleNamespace(source=str(tmp_path / source), format=format, step=None, records={})
    files = describe_files(state, None)
    assert sorted(files) == recorded
    path = tmp_path / source
    last = (path if path.is_dir() else path.parent) / recorded[-1]
    assert compare_files(path, files).state == "unchanged"
    os.utime(last, (1, 1))
    assert compare_files(path, files).state == "unchanged"
    content = last.read_text()
    last.write_text(content.upper())
    os.utime(last, (2, 2))
    assert compare_files(path, files).state == "changed"
    last.unlink()
    assert compare_files(path, files).state == "missing"
    assert compare_files(path, {}).state == "unknown"


@pytest.mark.one_backend(trains=True)
def test_trained_runs_record_the_files_of_their_parents(workplace, monkeypatch):
    """A child of a run and a child of its `model.keras` find both unchanged, and notice another training in their place.

    All are made within one second: the tree is in the order of their numbers.
    """
    monkeypatch.setattr("kresume.runs.now", lambda: "2026-01-02T03:04:05+00:00")
    options = {"model": "convnet", "image_size": "8", "batch_size": 8, "epochs": 1, "val_split": 0.25}
    first = trained("runs/1-shapes", data=["old"], **options)
    run_training("runs/1-shapes", add=["new"], out="runs/2-shapes", epochs=1)
    shutil.copy(first / "model.keras", "base.keras")
    run_training("base.keras", data=["old"], out="runs/3-shapes", epochs=1, val_split=0.25)
    found = {Path(each.path).name: each.start for each in kresume.lineage("runs").generations}
    assert (found["2-shapes"].state, found["3-shapes"].state) == ("unchanged", "unchanged")
    assert [root.path for root in kresume.lineage("runs").checkpoints] == ["base.keras"]
    assert tree() == ["* runs/3-shapes", "o base.keras", "* runs/2-shapes", "* runs/1-shapes"]
    differing = compare_runs("runs/1-shapes", "runs/2-shapes")
    assert (differing.images.both, differing.images.added) == (24, 18)
    arrays = next((first / "snapshots").glob("step-*/state.safetensors"))
    arrays.write_bytes(arrays.read_bytes() + b" ")
    shutil.copy(first / "run.json", "base.keras")
    found = {Path(each.path).name: each.start for each in kresume.lineage("runs").generations}
    assert (found["2-shapes"].state, found["3-shapes"].state) == ("changed", "changed")
