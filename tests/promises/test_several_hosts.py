"""The processes of several hosts train one run: two real ones on loopback, beside one process."""

import json
import os
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest

from kresume.backend import hosts, supervisor
from kresume.errors import PeerDied, UsageError
from kresume.options.resolve import from_arguments
from kresume.training.together import group_of
from tests.helpers import forking
from tests.helpers.paths import ROOT
from tests.helpers.runs import lines_without_time, result_arrays, run_training
from tests.helpers.several_devices import MODEL

through_jax = pytest.mark.skipif(os.environ.get("KERAS_BACKEND") != "jax", reason="several hosts train through JAX")
HELPER = str(ROOT / "tests" / "helpers" / "one_of_several.py")


def free_port() -> int:
    """Returns a port that nobody uses now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def train_on_two(folder, arguments, killed_at=(0, 0)):
    """Trains by two processes, and returns them when both have ended."""
    port = free_port()
    started = [
        forking.start(
            [sys.executable, HELPER, str(port), "2", str(index), str(step), json.dumps(arguments)], cwd=folder
        )
        for index, step in enumerate(killed_at)
    ]
    for process in started:
        process.wait()
    return started


@through_jax
def test_a_run_of_two_processes_survives_the_death_of_one(tmp_path, pictures):
    """One killed process ends the other; the same command continues the run, to the steps and weights of one process.

    Augmentation is off: each process draws that of its own share. Five validation images do not fill a batch of eight.
    """
    (tmp_path / "model.py").write_text(MODEL)
    arguments = {
        "data": [str(pictures / "old")], "model": f"{tmp_path / 'model.py'}:build", "image_size": "10", "batch_size": 8,
        "epochs": 2, "val_split": 0.25, "augment": "none", "snapshot_every": "1",
        "monitor": "val_loss",
    }  # fmt: skip
    run_training(out=str(tmp_path / "one"), **arguments)
    arguments["out"] = str(tmp_path / "two")
    survivor, killed = train_on_two(tmp_path, arguments, killed_at=(0, 4))
    assert killed.returncode == -signal.SIGKILL
    assert survivor.returncode in {-signal.SIGABRT, PeerDied.exit_code}
    done = train_on_two(tmp_path, arguments)
    assert [process.returncode for process in done] == [0, 0], done[0].stderr + done[1].stderr
    assert "continuing at step" in done[0].stderr
    lines, others = lines_without_time(tmp_path / "one"), lines_without_time(tmp_path / "two")
    for mine, theirs in zip(lines, others, strict=True):
        assert [mine[name] for name in ("epoch", "step", "position")] == [
            theirs[name] for name in ("epoch", "step", "position")
        ]
        assert mine["all"] == pytest.approx(theirs["all"], rel=1e-4)
    arrays, others = result_arrays(tmp_path / "one"), result_arrays(tmp_path / "two")
    for name, array in arrays.items():
        np.testing.assert_allclose(array, others[name], rtol=1e-4, atol=1e-5, err_msg=name)
    record = json.loads((tmp_path / "two" / "run.json").read_text())
    assert record["fingerprint"]["processes"] == 2
    assert record["result"]["which"] == "best"


@pytest.mark.one_backend
@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({}, None),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, None),  # a shell of a job, not one of its tasks
        ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, None),
        ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "1"}, "SLURM (SLURM_STEP_NUM_TASKS)"),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}, "Open MPI (OMPI_COMM_WORLD_SIZE)"),
        ({"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}, None),
        ({"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "0"}, "the TPU pod (TPU_WORKER_HOSTNAMES)"),
    ],
)
def test_launchers_are_recognised(monkeypatch, environment, found):
    """A launcher of several processes makes a training of several hosts, a job with one task does not."""
    monkeypatch.setattr(os, "environ", environment)
    group = hosts.find(None, None, None)
    assert (group.found if group else None) == found
    assert hosts.find(None, 1, None) is None


@pytest.mark.one_backend
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"coordinator": "a:1"}, "--num-processes and --process-id are missing"),
        ({"coordinator": "a", "num_processes": 2, "process_id": 0}, "give HOST:PORT of process 0"),
        ({"coordinator": "a:1", "num_processes": 2, "process_id": 2}, "give a number from 0 to 1"),
        ({"coordinator": "auto", "backend": "tensorflow"}, "train through JAX alone"),
        ({"coordinator": "auto", "watch": True}, "cannot look for new images"),
        (
            {"coordinator": "a:1", "num_processes": 4, "process_id": 0, "batch_size": 4, "mixup": 0.2},
            "leave one to each",
        ),
    ],
)
def test_what_makes_no_sense_on_several_hosts_is_an_error(monkeypatch, arguments, message):
    """Each error says what to give instead."""
    monkeypatch.delenv("KERAS_BACKEND")
    with pytest.raises(UsageError, match=message):
        group_of(from_arguments(None, arguments))


@pytest.mark.one_backend
def test_a_child_that_jaxlib_aborted_is_a_peer_that_died(monkeypatch):
    """The exit code of a child passes through, but for that of an abort."""
    start = subprocess.Popen
    for code, end in (("import sys; sys.exit(3)", 3), ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", 137)):
        monkeypatch.setattr(
            subprocess, "Popen", lambda *_, code=code, **options: start([sys.executable, "-c", code], **options)
        )
        assert supervisor.supervise(["train"]) == end
    code = "import os, resource; resource.setrlimit(resource.RLIMIT_CORE, (0, 0)); os.abort()"
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **options: start([sys.executable, "-c", code], **options))
    with pytest.raises(PeerDied, match="a peer died; run the same command again"):
        supervisor.supervise(["train"])
