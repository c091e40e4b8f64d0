"""Runs `scripts/colab_tpu.ipynb` as Colab does, with a folder in place of Drive; the first training is killed."""

import json
import os
import re
import sys
import threading
import time
import tomllib
from pathlib import Path

import nbclient
import nbformat
import psutil
import pytest
from packaging.requirements import Requirement

from kresume import runs
from tests.helpers.paths import ROOT

NOTEBOOK = ROOT / "scripts" / "colab_tpu.ipynb"
FIRST = "--out runs/1-first"

pytestmark = pytest.mark.one_backend(trains=True)
FORKED = f"""#!{sys.executable}
import os, sys
from tests.helpers import forking

environment = {{**os.environ, "KERAS_BACKEND": "tensorflow"}}  # the one that it chooses on a processor
del environment["PYTHONPATH"]
done = forking.run([sys.executable, "-m", "kresume", *sys.argv[1:]], env=environment)
sys.stderr.write(done.stderr)
sys.stdout.write(done.stdout)
sys.exit(done.returncode)
"""
"""Stands in for the program `kresume`, but for the training that is killed: it imports no framework."""
DOCTOR = "!kresume doctor --no-measure"
"""Skips the measurements of `doctor`, which take half a minute and are tested elsewhere."""
SHORTER = {"!kresume doctor": DOCTOR, "--epochs 4": "--epochs 2"}
"""Changes the text of cells."""


def text_of(cell):
    """Returns what a cell printed."""
    return "".join(output.get("text", "") for output in cell.outputs)


def kill_children(kernel, snapshots):
    """Kills, as soon as there is a snapshot of a step, all processes that a kernel has started.

    Two are there for an instant only: a run without `--monitor` keeps the last one.
    """
    while not any(path.name > "step-00000000" for path in snapshots.glob("step-*")):
        time.sleep(0.01)
    for process in psutil.Process(kernel).children(recursive=True):
        process.kill()


def stand_in(programs):
    """Writes the stand-in for the program `kresume` to a folder of programs."""
    (programs / "kresume").write_text(FORKED)
    (programs / "kresume").chmod(0o755)


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """Returns the executed notebook, its folder, and what the first training printed before it was killed."""
    home, programs = tmp_path_factory.mktemp("drive"), tmp_path_factory.mktemp("programs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KRESUME_HOME", str(home))
        patch.setenv("PATH", os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]]))
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
        patch.delenv("KERAS_BACKEND", raising=False)
        book = nbformat.read(NOTEBOOK, 4)
        for cell in book.cells:
            for text, shorter in SHORTER.items():
                cell.source = cell.source.replace(text, shorter)
        client = nbclient.NotebookClient(book, timeout=900, resources={"metadata": {"path": str(home)}})
        killed = ""
        stand_in(programs)
        with client.setup_kernel():
            for index, cell in enumerate(book.cells):
                if FIRST in cell.source and cell.cell_type == "code":
                    (programs / "kresume").unlink()
                    arguments = client.km.provisioner.pid, home / "runs" / "1-first" / "snapshots"
                    killer = threading.Thread(target=kill_children, args=arguments, daemon=True)
                    killer.start()
                    killed = text_of(client.execute_cell(cell, index))
                    killer.join(60)
                    stand_in(programs)
                client.execute_cell(cell, index)
        yield book, home, killed


def test_the_same_cell_continues_after_a_kill(executed):
    """The training that was killed goes on from its snapshot: each epoch is there once."""
    book, home, killed = executed
    (again,) = (cell for cell in book.cells if cell.cell_type == "code" and FIRST in cell.source)
    assert re.search(r"^time: +about", killed, re.MULTILINE), "it was killed before it had told its plan"
    assert "accepted" not in killed
    assert re.search(r"continuing at step \d+ of 28, epoch \d of 2", text_of(again)), text_of(again)
    run = runs.open_run(home / "runs" / "1-first")
    assert run.status == "accepted"
    assert [line["epoch"] for line in runs.read_metrics(run.metrics)] == [1, 2]
    assert [event["event"] for event in run.events()] == ["started", "continued", "finished"]


def test_every_cell_did_what_it_says(executed):
    """Devices, more images, the report in the page, the lineage, and the export, with no warning of Python."""
    book, home, _ = executed
    cells = {cell.source.split("\n")[0]: cell for cell in book.cells if cell.cell_type == "code"}
    printed = {name: text_of(cell) for name, cell in cells.items()}
    assert all(cell.execution_count for cell in cells.values())
    assert all("Warning" not in each and "error:" not in each for each in printed.values())
    assert {"jax", "tensorflow"} <= set(re.findall(r"\w+", printed[DOCTOR].lower()))
    assert "tensorflow 2." in printed["import importlib.util"]
    child = runs.open_run(home / "runs" / "2-first")
    assert (child.status, child.record.images["added"], child.record.images["total"]) == ("accepted", 800, 1300)
    shown = cells["from html import escape"].outputs[-1]["data"]["text/html"]
    assert "srcdoc=" in shown
    assert "kresume report" in shown
    assert "* runs/2-first  accepted" in printed["!kresume log runs"]
    assert (home / "serving" / "digits" / "1" / "saved_model.pb").is_file()


def test_the_notebook_is_clean():
    """It holds no output, its links exist, and its ranges are those of the package."""
    book = json.loads(NOTEBOOK.read_text())
    code = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    text = "".join("".join(cell["source"]) for cell in book["cells"])
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert links
    assert all((NOTEBOOK.parent / link).is_file() for link in links)
    ranges = {
        each.name: each.specifier for each in map(Requirement, json.loads(re.search(r"RANGES = (\[.*\])", text)[1]))
    }
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    own = {each.name: each.specifier for each in map(Requirement, needed)}
    assert ranges.pop("jaxlib") == own["jax"]
    assert ranges == {name: own[name] for name in ranges}
