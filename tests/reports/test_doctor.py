"""Tests `kresume doctor`: what is wrong with a machine, and that a framework that crashes or hangs is a line of it."""

import json
import os
import signal

import pytest

from kresume import cli
from kresume.reporter import Reporter
from kresume.reports.doctor import diagnose as doctor
from kresume.reports.doctor import probe
from kresume.reports.doctor.findings import find
from kresume.reports.doctor.machine import PRESENT, Gpu, Machine, Seen, ask, busy_share, look
from kresume.staging.usage import Usage

pytestmark = pytest.mark.one_backend

ALL = dict.fromkeys(("kresume", "keras", "tensorflow", "jax", "jaxlib", "numpy"), "1")
T4 = Gpu("Tesla T4", 15 * 2**30, 2**28, "550.54.15")
GOOD = {"jax": Seen({"devices": ["cpu:0 cpu"], "errors": {}}), "tensorflow": Seen({"devices": ["cpu:0"]})}
ON_GPU = {"accelerator": "gpu", "gpus": (T4,), "drives": ("gpu",), "backend": "jax"}
ON_TPU = {"accelerator": "tpu", "drives": ("tpu",), "backend": "jax"}


def jax_error(kind, text):
    return {**GOOD, "jax": Seen({"devices": ["cpu:0 cpu"], "errors": {kind: text}})}


MACHINES = {
    "a processor alone": ({}, GOOD, "", ""),
    "a GPU that JAX can use": (ON_GPU, GOOD, "", ""),
    "a TPU": (ON_TPU, GOOD, "", ""),
    "JAX without CUDA": ({**ON_GPU, "drives": ()}, GOOD, "no CUDA build", "pip install -U 'jax[cuda12]'"),
    "a new driver": (
        {**ON_GPU, "drives": (), "gpus": (Gpu("H100", 2**36, 0, "580.1"),)}, GOOD, "no CUDA build", "'jax[cuda13]'",
    ),
    "an old driver": ({**ON_GPU, "gpus": (Gpu("K80", 2**34, 0, "470.1"),)}, GOOD, "driver is 470.1", "update the driver"),
    "CUDA that fails": (ON_GPU, jax_error("gpu", "CUDNN mismatch"), "CUDNN mismatch", "'jax[cuda12]'"),
    "a GPU that TensorFlow holds": (
        {**ON_GPU, "gpus": (Gpu("Tesla T4", 15 * 2**30, 14 * 2**30, "550.1"),)}, GOOD, "hold 14.0 GB", "Restart session",
    ),
    "a TPU without its runtime": ({**ON_TPU, "drives": ()}, GOOD, "libtpu", "pip install -U 'jax[tpu]'"),
    "a TPU in use": (ON_TPU, jax_error("tpu", "The TPU is already in use"), "already in use", "Restart session"),
    "a TPU that hangs": (ON_TPU, {**GOOD, "jax": Seen(error="no answer within 9 s", slow=True)}, "holds the TPU", "Restart"),
    "JAX that crashes": ({}, {**GOOD, "jax": Seen(error="died in native code (SIGSEGV)")}, "SIGSEGV", "force-reinstall jax"),
    "TensorFlow that hangs": ({}, {**GOOD, "tensorflow": Seen(error="no answer", slow=True)}, "does not start", "again"),
    "KERAS_BACKEND of another": ({"keras_backend": "torch"}, GOOD, "KERAS_BACKEND=torch", "unset KERAS_BACKEND"),
    "KERAS_BACKEND beside a GPU": ({**ON_GPU, "keras_backend": "tensorflow"}, GOOD, "can use the GPU", "--backend jax"),
    "KERAS_BACKEND on a processor": ({"keras_backend": "tensorflow"}, GOOD, "", ""),
    "a package that is missing": (
        {"packages": dict.fromkeys(ALL.keys() - {"jax"}, "1")}, GOOD, "jax is not installed", "pip install jax",
    ),
    "an old package": ({"outside": {"keras": "2.15 is installed, kresume needs >=3.15"}}, GOOD, "needs >=3.15", "--upgrade"),
}  # fmt: skip


@pytest.mark.parametrize("name", MACHINES)
def test_what_is_wrong_with_a_machine_is_named_with_what_to_do(name):
    """Each machine has the one problem that it has, with its fix, and a machine without one has none."""
    facts, seen, problem, fix = MACHINES[name]
    problems, _ = find(Machine(**{"packages": ALL, "free": 2**40, **facts}), seen)
    assert [each.what for each in problems if problem not in each.what] == []
    assert len(problems) == bool(problem)
    assert all(fix in each.fix for each in problems)


def test_notes_are_no_problems():
    """A processor alone, a part of the cores and little room are said, and training can start."""
    machine = Machine(packages=ALL, threads=2, cores=64, free=2**20, cache="/tmp/cache", colab=True)
    problems, notes = find(machine, GOOD)
    assert problems == []
    text = " ".join(f"{each.what} {each.fix}" for each in notes)
    for words in ("no GPU or TPU", "Change runtime type", "2 of the 64 cores", "0.0 GB are free", "KRESUME_CACHE"):
        assert words in text


def fake_jax(folder, code):
    (folder / "jax").mkdir()
    (folder / "jax" / "__init__.py").write_text(code)


DEVICE = "class D:\n    platform, id, device_kind = 'tpu', 3, 'TPU v5 lite'\n__version__ = '9'\ndef devices(*n): return [D]\n"


@pytest.mark.parametrize(
    ("code", "seconds", "facts", "error", "slow"),
    [
        (DEVICE, 60, ["tpu:3 TPU v5 lite"], "", False),
        (f"import os; os.kill(os.getpid(), {int(signal.SIGSEGV)})", 60, None, "SIGSEGV", False),
        ("raise ImportError('libcudart.so is missing')", 60, None, "ImportError: libcudart.so is missing", False),
        ("import time; time.sleep(60)", 3, None, "no answer within 3 s", True),
    ],
    ids=["answers", "crashes", "fails", "hangs"],
)
def test_a_framework_answers_in_a_process_of_its_own(tmp_path, monkeypatch, code, seconds, facts, error, slow):
    """Devices are named; a crash, an error and a hang of a framework are words, within the time limit."""
    fake_jax(tmp_path, code)
    monkeypatch.setattr("kresume.reports.doctor.machine.PRESENT", f"{tmp_path}{os.pathsep}{PRESENT}")
    seen = ask("jax", seconds)
    assert seen.facts.get("devices") == facts
    assert error in seen.error
    assert bool(seen.error) == bool(error)
    assert seen.slow == slow


SPEEDS = {
    "decoded": 412.0,
    "cached": 9800.0,
    "threads": 2,
    "trained": 85.0,
    "backend": "tensorflow",
    "device": "cpu",
    "first": 2,
}


def test_the_page_and_its_json_say_the_same(monkeypatch, capsys):
    """The page has devices, speeds and their verdict; `--json` the same facts; `--no-measure` measures nothing."""
    asked = []

    def answer(probe, seconds):
        asked.append(probe)
        return GOOD.get(probe) or Seen(SPEEDS)

    monkeypatch.setattr(doctor, "ask", answer)
    monkeypatch.setattr(doctor, "look", lambda: Machine(packages=ALL, free=2**40, cpu="a processor", python="3.12"))
    monkeypatch.setattr(doctor, "busy_share", lambda seconds: 0.4)
    shown = str(doctor.diagnose(Reporter(quiet=True)))
    assert asked == ["jax", "tensorflow", "feeding", "training"]
    for words in (
        "other processes use 40%",
        "finds cpu:0 cpu",
        "412 images/s",
        "9,800 images/s",
        "85 images/s",
        "115 times as fast",
        "ready:",
    ):
        assert words in shown
    slow = doctor.Diagnosis(Machine(), {}, {**SPEEDS, "cached": 20.0})
    assert "at 24% of its speed" in str(slow)
    asked.clear()
    with pytest.raises(SystemExit) as ended:
        cli.main(["doctor", "--no-measure", "--json"])
    assert not ended.value.code
    assert asked == ["jax", "tensorflow"]
    facts = json.loads(capsys.readouterr().out)
    assert facts["devices"] == {"jax": ["cpu:0 cpu"], "tensorflow": ["cpu:0"]}
    assert facts["images_per_second"] == {}
    assert facts["problems"] == []
    assert facts["packages"] == ALL


def test_work_of_other_processes_is_noticed(tmp_path, monkeypatch):
    """The share in use is that of the ticks that passed meanwhile; without the file nothing is said."""
    path = tmp_path / "stat"
    path.write_text("cpu  100 0 50 800 50 0 0 0 7 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n")
    monkeypatch.setattr("time.sleep", lambda seconds: path.write_text("cpu  130 5 55 850 55 0 5 0 9 0\n"))
    assert busy_share(0.5, path) == pytest.approx(0.45)
    assert busy_share(0.5, tmp_path / "none") == 0.0
    assert 0.0 <= busy_share(0.5) <= 1.0


@pytest.mark.parametrize("unwritten", [(), ("gs://b/runs/7",)])
def test_stages_that_take_much_of_the_disk_are_noticed(tmp_path, monkeypatch, unwritten):
    """Copies of what is in a bucket may go; one that is ahead of it is named."""
    for size, told in ((2**29, False), (3 * 2**30, True)):
        monkeypatch.setattr(doctor, "usage", lambda size=size: Usage(tmp_path, size, unwritten))
        found = doctor._stages()
        assert bool(found) is told
    assert f"take 3.0 GB in {tmp_path}" in found[0].what
    but = " but gs://b/runs/7, not all of which is at its address yet" if unwritten else ""
    assert found[0].fix == f"remove any of them{but}: what is needed again is fetched"


@pytest.mark.one_backend(trains=True)
def test_the_speeds_are_measured(monkeypatch):
    """The probes measure what the page names, here with small pictures and in no time."""
    for name, value in (("SIDE", 32), ("PHOTO", (50, 75)), ("BATCH", 4), ("SECONDS", 0.05)):
        monkeypatch.setattr(probe, name, value)
    found = {**probe.feeding(), **probe.training()}
    assert {name for name, value in found.items() if not isinstance(value, str) and value > 0} == {
        "decoded", "cached", "threads", "trained", "first",
    }  # fmt: skip
    assert (found["backend"], found["device"]) == ("tensorflow", "cpu")


def test_this_machine_is_seen():
    """The facts of this machine are read without a framework and fit the form of the page."""
    machine = look()
    assert machine.threads >= 1
    assert machine.memory > 0
    assert machine.packages["keras"]
    assert str(doctor.Diagnosis(machine, {}))
