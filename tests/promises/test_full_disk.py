"""Tests a disk that refuses to write: one line that says what to do, and the old file stays."""

import errno
import os
import resource
import subprocess
from contextlib import suppress
from functools import partial

import numpy as np
import pytest

from kresume import cli
from kresume.errors import ImagesError
from kresume.images import cache as caches
from kresume.images.cache import Cache
from kresume.images.file_index import INDEX_NAME
from kresume.images.prepare import prepare
from kresume.images.sources import list_images
from kresume.storage import atomic, refusals
from kresume.training.loop.writer import RunWriter
from kresume.training.snapshot_policy import Retention
from kresume.values.decode_spec import DecodeSpec
from tests.helpers.reporters import Warned
from tests.helpers.runs import TINY, trained

SPEC = DecodeSpec(10, 10)


@pytest.fixture
def full(tmp_path):
    """Mounts a small file system, which is full except for an old file in it; skips where that is not permitted."""
    folder = tmp_path / "full"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("only root may mount a file system")
    try:
        (folder / "old").write_text("old")
        with suppress(OSError), (folder / "fill").open("wb", buffering=0) as file:
            while True:
                file.write(b"0" * 4096)
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def said_by(capsys, *arguments):
    """Returns the one line with which a command ends, after checking its exit code."""
    with pytest.raises(SystemExit) as ended:
        cli.main([str(argument) for argument in arguments])
    assert ended.value.code == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("kresume: ")]
    assert len(lines) == 1
    return lines[0]


WRITES = {
    "csv": ("predict", "RUN", "OLD", "--overwrite", "-o", "OUT.csv"),
    "jsonl": ("predict", "RUN", "OLD", "--overwrite", "-o", "OUT.jsonl"),
    "parquet": ("predict", "RUN", "OLD", "--overwrite", "-o", "OUT.parquet"),
    "sort": ("predict", "RUN", "OLD", "--sort", "OUT"),
    "scores": ("eval", "RUN", "--data", "OLD", "--overwrite", "--csv", "OUT.csv"),
    "answers": ("eval", "RUN", "--data", "OLD", "--overwrite", "--answers", "OUT.parquet"),
    "page": ("eval", "RUN", "--data", "OLD", "--overwrite", "--report", "OUT.html"),
    "report": ("report", "RUN", "--out", "OUT.html"),
    "manifest": ("data", "scan", "OLD", "-o", "OUT.parquet"),
    "sheet": ("data", "show", "OLD", "--sheet", "OUT.png"),
    "export": ("export", "RUN", "OUT", "--format", "keras"),
    "run": ("train", "--data", "OLD", "--image-size", "10", "--out", "OUT"),
}


@pytest.fixture
def small_files(monkeypatch):
    """Returns a function after which the system refuses files of more than 300 bytes, as `ulimit -f` does."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (300, limits[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize("arguments", WRITES.values(), ids=WRITES)
def test_a_limit_of_files_is_one_line(small_files, tmp_path, pictures, capsys, arguments):
    """The line says that it is the size of the file, also where a library tells no number."""
    trained(tmp_path / "run", data=[str(pictures / "old")], **TINY)
    names = {"RUN": tmp_path / "run", "OLD": pictures / "old", "OUT": tmp_path / "out"}
    small_files()
    said = said_by(
        capsys, *(names.get(word, tmp_path / word if word.startswith("OUT.") else word) for word in arguments)
    )
    assert "cannot be" in said
    assert "the file would be larger than `ulimit -f`" in said
    assert "raise the limit, " in said


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize("arguments", WRITES.values(), ids=WRITES)
def test_a_full_disk_is_one_line_and_leaves_the_old_file(full, tmp_path, pictures, capsys, arguments):
    """A command whose output finds no space names it, says what to do, and neither replaces nor leaves a file."""
    trained(tmp_path / "run", data=[str(pictures / "old")], **TINY)
    output = full / arguments[-1] if arguments[-1].startswith("OUT.") else full / "out"
    if output.suffix:
        os.link(full / "old", output)
    before = set(full.rglob("*"))
    names = {"RUN": tmp_path / "run", "OLD": pictures / "old", "OUT": full / "out"}
    line = said_by(capsys, *(names.get(word, full / word if word.startswith("OUT.") else word) for word in arguments))
    assert str(full) in line
    assert "(the disk is full)" in line
    assert "make room, or give another" in line
    left = {path for path in set(full.rglob("*")) - before if path.is_file() and path.stat().st_size}
    assert left == set()
    assert not output.is_file() or output.read_text() == "old"


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize("name", ["csv", "answers", "report", "manifest", "export", "run"])
def test_a_read_only_disk_is_one_line(full, tmp_path, pictures, capsys, name):
    """On a read-only file system the output is named by its own name, and room is no advice."""
    trained(tmp_path / "run", data=[str(pictures / "old")], **TINY)
    subprocess.run(["mount", "-o", "remount,ro", full], check=True)
    names = {"RUN": tmp_path / "run", "OLD": pictures / "old", "OUT": full / "out"}
    words = WRITES[name]
    line = said_by(capsys, *(names.get(word, full / word if word.startswith("OUT.") else word) for word in words))
    assert str(names.get(words[-1], full)) in line
    assert ".tmp-" not in line
    assert "(the file system is read-only)" in line
    assert "give another" in line
    assert "room" not in line


@pytest.mark.one_backend
def test_a_full_disk_behind_the_output_is_one_line(full, tmp_path):
    """`kresume log > FILE` on a full disk ends with one line, and without a trace of Python's end."""
    with (full / "log.txt").open("wb") as file:
        command = ["python", "-m", "kresume", "--help"]
        done = subprocess.run(command, stdout=file, stderr=subprocess.PIPE, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert done.stderr == (
        "kresume: the output cannot be written (the disk is full): make room, or give another path\n"
    )


def refusing():
    """Returns what libraries raise on a disk that refuses, and the number of the system's error."""
    import tensorflow as tf
    from safetensors import SafetensorError

    return [
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), errno.ENOSPC),
        (tf.errors.ResourceExhaustedError(None, None, "x/variables; No space left on device"), errno.ENOSPC),
        (OSError(28, "Error writing bytes to file. Detail: [errno 28] No space left on device"), errno.ENOSPC),
        (OSError("Unable to write: errno = 122, error message = 'Disk quota exceeded'"), errno.EDQUOT),
        (OSError(30, "Read-only file system"), errno.EROFS),
        (OSError("55296 requested and 19872 written"), errno.ENOSPC),
        (PermissionError(13, "Permission denied"), errno.EACCES),
    ]


def half_written(path, error):
    """Fails as a library does."""
    path.write_text("half")
    raise error


@pytest.mark.one_backend
@pytest.mark.parametrize("index", range(6))
def test_what_a_library_raises_on_a_full_disk_names_the_file(tmp_path, index):
    """Each becomes the system's error with the file's own name; the old file stays, and nothing beside it."""
    error, number = refusing()[index]
    (tmp_path / "old.txt").write_text("old")
    with pytest.raises(OSError, match=r"old\.txt") as raised, atomic.new_file(tmp_path / "old.txt") as temporary:
        half_written(temporary, error)
    assert (raised.value.errno, raised.value.filename) == (number, str(tmp_path / "old.txt"))
    assert [path.name for path in tmp_path.iterdir()] == ["old.txt"]
    assert (tmp_path / "old.txt").read_text() == "old"
    assert refusals.WHY[number] in refusals.describe(raised.value)
    with pytest.raises(OSError, match="folder") as raised, atomic.new_directory(tmp_path / "folder"):
        raise error
    assert (raised.value.errno, raised.value.filename) == (number, str(tmp_path / "folder"))


@pytest.mark.one_backend
def test_other_errors_stay_what_they_are(tmp_path):
    """A picture that may not be read while a table is written is no refusal of the table; a bug keeps its class."""
    for error in (PermissionError(13, "Permission denied", "inbox/1.png"), ValueError("a bug"), OSError(5, "broken")):
        with pytest.raises(type(error)) as raised, atomic.new_file(tmp_path / "out.csv"):
            raise error
        assert raised.value is error
    assert refusals.describe(ValueError("a bug")) is None


@pytest.mark.one_backend
def test_an_export_in_another_process_tells_of_a_full_disk(tmp_path, monkeypatch):
    """The process that writes an export under TensorFlow gives the number of the error, and the first one raises it."""
    import sys

    from kresume.exports import tensorflow_process
    from kresume.exports.job import Job
    from kresume.models.load import Subject

    monkeypatch.setattr(tensorflow_process.selection, "select", lambda *_: None)
    monkeypatch.setattr(tensorflow_process, "load", lambda *_, **__: (_ for _ in ()).throw(refusing()[1][0]))

    def run(command, **_):
        code = tensorflow_process.main(command[-1])
        return subprocess.CompletedProcess([sys.executable], code, "", "")

    monkeypatch.setattr(tensorflow_process.subprocess, "run", run)
    job = Job("saved-model", "signs", 5, False, "error", None, None, None, None)
    with pytest.raises(OSError, match="No space left") as raised:
        tensorflow_process.write_by_tensorflow(Subject.of("run"), tmp_path / "1", job, anonymous=False)
    assert (raised.value.errno, raised.value.filename) == (errno.ENOSPC, str(tmp_path / "1"))


@pytest.mark.one_backend
def test_a_full_disk_of_the_cache_costs_time_alone(full, pictures, quiet):
    """Without space for the index and for pixels the images are prepared all the same, with one warning."""
    expected = prepare(list_images([pictures / "old"], quiet).files, SPEC, None, quiet)
    reporter = Warned()
    cache = Cache.open(SPEC, full / "cache")
    prepared = prepare(list_images([pictures / "old"], quiet).files, SPEC, cache, reporter)
    assert prepared.images == expected.images
    assert len(reporter.warnings) == 1
    assert "make room" in reporter.warnings[0]
    assert "the index beside it" in reporter.warnings[0]
    facts = prepare(list_images([pictures / "old"], quiet).files, SPEC, cache, reporter, pixels=False)
    assert facts.images == expected.images
    assert len(reporter.warnings) == 2
    assert INDEX_NAME in reporter.warnings[1]
    assert "(the disk is full): make room" in reporter.warnings[1]


@pytest.mark.one_backend
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_cache_that_becomes_full_costs_time_alone(tmp_path, pictures, quiet, monkeypatch, number):
    """A quota shows only when a shard is written: the images are decoded again later, with one warning."""
    monkeypatch.setattr(caches, "SHARD_BYTES", 1)

    def refused(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(np, "save", refused)
    reporter, cache = Warned(), Cache.open(SPEC, tmp_path)
    prepared = prepare(list_images([pictures / "old"], quiet).files, SPEC, cache, reporter)
    assert len(prepared.images) == 24
    assert len(reporter.warnings) == 1
    assert str(cache.folder) in reporter.warnings[0]
    assert "make room" in reporter.warnings[0]
    with pytest.raises(OSError, match=os.strerror(number)), cache.writer() as writer:
        writer.add("0" * 64, np.zeros((10, 10, 3), np.uint8), 0)


@pytest.mark.one_backend
def test_a_cache_that_cannot_be_created_says_make_room(tmp_path, monkeypatch):
    """A folder that finds no space is no folder to give up."""
    monkeypatch.setattr(atomic, "make_directory", partial(_raise, OSError(28, "No space left on device")))
    with pytest.raises(ImagesError, match=r"\(the disk is full\): make room, or give --cache DIR"):
        Cache.open(SPEC, tmp_path / "cache")


def _raise(error, *_):
    raise error


@pytest.mark.one_backend
def test_a_full_disk_is_reported_once_until_it_works_again(tmp_path, monkeypatch):
    """Of snapshots that fail one after another the first is reported; lines between them change nothing."""
    from kresume.checkpoints import snapshot

    write, told, repeated = snapshot.write_snapshot, [], []

    def failing(directory, step, groups, records):
        if step != 4:
            raise OSError(28, "No space left on device")
        return write(directory, step, groups, records)

    monkeypatch.setattr(snapshot, "write_snapshot", failing)
    writer = RunWriter(
        tmp_path, retention=Retention(1), guard=lambda: None, on_failure=told.append, on_repeat=repeated.append
    )
    for step in range(1, 7):
        arrays = {"trainable": [np.ones(3, np.float32)]}
        records = {"phase": "training", "best": None, "callbacks": {}}
        writer.submit(step, lambda _, arrays=arrays: arrays, records, extra={}, must=True)
        writer.wait()
        writer.put_line({"epoch": step})
        writer.wait()
    assert told == ["snapshot of step 1: the disk is full", "snapshot of step 5: the disk is full"]
    assert len(repeated) == 3
    assert len(writer.failures) == 5
