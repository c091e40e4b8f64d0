"""Tests that damaged bytes of every format end in a value or in an error in words, and never end the process."""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import h5py
import numpy as np
import psutil
import pytest

from kresume.checkpoints import hdf5
from kresume.checkpoints.read import read_checkpoint
from kresume.errors import CheckpointError, RunError
from kresume.storage import sealed
from tests.helpers.paths import FUZZ, GOLDENS

sys.path.insert(0, str(FUZZ))
import flips
import fuzz
from targets import TARGETS

pytestmark = pytest.mark.one_backend
MILLISECONDS = 150
"""Time for each reader, about 6 seconds in total: hundreds of inputs of a picture, a few of an Orbax folder.
`scripts/fuzz/fuzz.py` reads as many as there is time for."""


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.one_backend(trains=name in {"architecture", "served"})) for name in TARGETS],
)
@pytest.mark.filterwarnings("ignore")  # libraries warn about what they are about to refuse
def test_damage_is_a_value_or_an_error_in_words(name, tmp_path, monkeypatch):
    """Seeded damage of a good file is a value or a KresumeError with one line."""
    if name in {"torch-zip", "torch-pickle"}:
        pytest.importorskip("torch")
    findings = {}
    for index in range(max(5, int(MILLISECONDS / TARGETS[name].cost))):
        folder = tmp_path / str(index)
        folder.mkdir()
        monkeypatch.chdir(folder)  # paths inside of a manifest are relative to it
        files, entry = fuzz.make(name, 24, index)
        fuzz.write(files, folder)
        kind, trace = fuzz.outcome(name, folder / entry)
        if kind not in {"value", "refused"}:
            findings[index] = trace
    assert not findings, "\n".join([f"inputs {list(findings)}", *findings.values()])


@pytest.mark.skipif(not hasattr(signal, "SIGSEGV"), reason="the system has no such signal")
def test_a_crash_of_the_hdf5_library_ends_its_own_process(tmp_path):
    """A process that dies while it opens a file is an error in words, and the next file is read."""
    path = next(GOLDENS.glob("keras-*/legacy-h5-*/model.h5"))
    before = read_checkpoint(path)
    child = hdf5._running()
    os.kill(child.pid, signal.SIGSTOP)
    while psutil.Process(child.pid).status() != psutil.STATUS_STOPPED:  # else it may die at once, before the request
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGSEGV)  # delivered as soon as it goes on, in the middle of the request
    threading.Timer(1.0, os.kill, (child.pid, signal.SIGCONT)).start()
    with pytest.raises(CheckpointError, match=r"the HDF5 library dies on it, SIGSEGV"):
        hdf5._asked({"bytes": 0, "file": str(path)}, b"", str(path))
    after = read_checkpoint(path)
    assert all(after.arrays[name].tobytes() == array.tobytes() for name, array in before.arrays.items())


def test_a_fork_has_a_process_of_its_own():
    """A process forked from this one does not answer with the parent's child."""
    child = hdf5._running()
    hdf5._child.owner = -1
    other = hdf5._running()
    try:
        assert other.pid != child.pid
        os.kill(child.pid, 0)  # raises if it has ended
    finally:
        child.returncode = None
        child.kill()
        child.communicate()


def test_arrays_equal_those_that_h5py_reads(tmp_path):
    """Every kind of storage gives the bytes that h5py gives: contiguous, in chunks, compressed, empty, scalar."""
    path = tmp_path / "m.weights.h5"
    rng = np.random.default_rng(3)
    with h5py.File(path, "w") as file:
        values = rng.normal(size=(40, 30)).astype("f4")
        file["a/vars/0"] = values
        file.create_dataset("a/vars/1", data=values, chunks=(7, 5), compression="gzip")
        file["a/vars/2"] = np.zeros((0, 3), "f8")
        file["a/vars/3"] = np.int64(7)
        file["a/vars/4"] = values.astype(">f4")
        file["a/vars/5"] = np.array([True, False])
    found = read_checkpoint(path).arrays
    with h5py.File(path) as file:
        for index in range(6):
            expected = file[f"a/vars/{index}"][()]
            array = found[f"a/vars/{index}"]
            assert (array.dtype, array.shape) == (expected.dtype, expected.shape)
            assert array.tobytes() == np.asarray(expected).tobytes()


@pytest.mark.parametrize("name", flips.KINDS)
def test_a_flipped_bit_is_detected_or_harmless(name, tmp_path):
    """One flipped bit in a snapshot, a manifest, answers, the cache or an export never gives other values."""
    counts, found = flips.flip(name, tmp_path, 120, seed=7)
    assert not found, "\n".join(found)
    assert counts["detected"] > 60


def test_an_architecture_that_was_changed_is_an_error_with_the_way_on(tmp_path):
    """Another stride is another model; who means it removes the digest, and a run of an earlier version has none."""
    run = shutil.copytree(next((flips.GOLDEN / "runs").rglob("run.json")).parent, tmp_path / "run")
    file = run / "architecture.json"
    before = read_checkpoint(run).architecture
    sealed.write(file, before)
    assert read_checkpoint(run).architecture == before
    file.write_text(file.read_text().replace('"module"', '"moduli"', 1))
    with pytest.raises(RunError, match=r"does not match its digest.* remove `sha256` from it"):
        read_checkpoint(run)
    file.write_text(re.sub(r',\n  "sha256": "[0-9a-f]{64}"', "", file.read_text()))
    assert read_checkpoint(run).architecture != before


def test_a_changed_export_is_neither_read_nor_run(tmp_path):
    """Every way to open an export verifies it first: HDF5 and the graph of a SavedModel have no checksums of their own."""
    from kresume.evaluation import opening
    from kresume.models.load import Subject
    from kresume.reporter import Reporter

    flips.KINDS["export"].make(tmp_path)
    weights = tmp_path / "model.weights.h5"
    assert read_checkpoint(weights).arrays
    content = bytearray(weights.read_bytes())
    content[-9] ^= 1
    weights.write_bytes(content)
    (tmp_path / "saved_model.pb").touch()
    subject, quiet = Subject(str(tmp_path)), Reporter(quiet=True)
    for open_it in (
        lambda: read_checkpoint(weights),
        lambda: opening.read_model(subject, quiet),
    ):
        with pytest.raises(CheckpointError, match="its bytes were changed: export again"):
            open_it()
    (tmp_path / "export.json").unlink()
    assert read_checkpoint(weights).arrays


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit is one of Linux")
def test_the_process_that_opens_hdf5_has_a_limit_of_memory():
    """A read that takes too much memory fails in that process; afterwards the limit is gone."""
    code = """
import importlib.util, sys
import numpy as np
spec = importlib.util.spec_from_file_location("child", sys.argv[1])
child = importlib.util.module_from_spec(spec)
spec.loader.exec_module(child)
with child.limited_memory(2**26):
    try:
        np.ones(2**25)
    except MemoryError:
        print("refused")
print(np.ones(2**25).nbytes)
"""
    done = subprocess.run([sys.executable, "-c", code, str(hdf5.CHILD)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["refused", str(2**28)]
