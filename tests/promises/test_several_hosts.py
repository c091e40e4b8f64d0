"""The processes of several hosts train one run: two real ones on loopback, beside one process."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from kresume import runs
from kresume.backend import groups, hosts, live_state, supervisor
from kresume.errors import PeerDied, UsageError
from kresume.images import scans
from kresume.images.manifest import Manifest
from kresume.options.resolve import from_arguments
from kresume.reporter import Reporter
from kresume.training import alike
from kresume.training.loop import arrivals, stop
from kresume.training.together import group_of
from tests.helpers import forking
from tests.helpers.paths import ROOT
from tests.helpers.runs import TINY, lines_without_time, result_arrays, run_training
from tests.helpers.several_devices import MODEL

through_jax = pytest.mark.skipif(os.environ.get("KERAS_BACKEND") != "jax", reason="several hosts train through JAX")
HELPER = str(ROOT / "tests" / "helpers" / "one_of_several.py")


def free_port() -> int:
    """Returns a port that nobody uses now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def train_on_two(folder, arguments, killed_at=(0, 0), second=None):
    """Trains by two processes, and returns them when both have ended; `second` are further arguments of the second."""
    port = free_port()
    given = (arguments, {**arguments, **(second or {})})
    started = [
        forking.start(
            [sys.executable, HELPER, str(port), "2", str(index), str(step), json.dumps(given[index])], cwd=folder
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
    done = train_on_two(tmp_path, arguments, second={"cache": "off"})  # a cache is of one host
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


@through_jax
def test_processes_that_differ_do_not_train(tmp_path, pictures):
    """Both say what differs, before anything is decided; in one Python process a second group is refused."""
    arguments = {"data": [str(pictures / "old")], "image_size": "10", "batch_size": 8, "out": str(tmp_path / "run")}
    done = train_on_two(tmp_path, arguments, second={"devices": 1})
    for process in done:
        assert process.returncode != 0
        assert "UsageError: the processes of this training differ (devices: not given in process 0 (" in process.stderr
        assert "give the same command on every host" in process.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.one_backend
def test_what_processes_must_share_is_compared(monkeypatch, tmp_path):
    """Versions and source of the packages, options but for those of one host, and every Python file that they name."""
    monkeypatch.chdir(tmp_path)
    facts = []
    monkeypatch.setattr(alike, "_agree", lambda name, mine, compare: facts.append(mine))
    given = {
        "data": ["old"],
        "model": "m.py:build",
        "imports": ["l.py"],
        "pixels": "p.py:f",
        "metric": ["s.py:g", "AUC"],
    }
    for number in (0, 1):
        for name in ("m.py", "l.py", "p.py", "s.py"):
            (tmp_path / name).write_text(f"# {name} {number if name != 'l.py' else 0}")
        here = {"process_id": number, "cache": f"/cache/{number}", "batch_size": 8 + number}
        alike.check_alike(from_arguments(None, {**given, **here}))
    one, other = facts
    assert "batch_size: 8 in process 0" in alike._difference(one, other, "process 1")
    other["options"] = one["options"]
    said = alike._difference(one, other, "process 1")
    assert all(f"{name}: " in said for name in ("m.py", "p.py", "s.py"))
    assert "l.py" not in said
    assert one["packages"].keys() >= {"kresume", "keras", "jax", "python"}
    other["packages"] = {**one["packages"], "jax": "0.0.1"}
    said = alike._difference(one, other, "process 1")
    assert re.search(r"\(jax: \S+ in process 0 .*, 0.0.1 in process 1\): install the same versions", said)
    uneven = alike._uneven({"host": "a", "devices": 2}, {"host": "b", "devices": 1}, "process 1 (b)")
    assert uneven.startswith("process 0 (a) has 2 devices, process 1 (b) has 1: ")
    assert not alike._uneven({"host": "a", "devices": 2}, {"host": "b", "devices": 2}, "process 1 (b)")


@pytest.mark.one_backend
def test_a_process_that_left_its_group_trains_alone(monkeypatch):
    """JAX meets others once in a process."""
    monkeypatch.setattr(hosts, "_parted", True)
    with pytest.raises(UsageError, match=r"has trained with others already.*give --num-processes 1"):
        hosts.join(groups.Group("a:1", 2, 0, "--coordinator a:1"), None)


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
    group = groups.find(None, None, None)
    assert (group.found if group else None) == found
    assert groups.find(None, 1, None) is None


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
    abort = "import os, resource; resource.setrlimit(resource.RLIMIT_CORE, (0, 0)); os.abort()"
    met = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from kresume.backend import supervisor; supervisor.met(); "
    interrupted = "import os, signal; signal.signal(2, signal.SIG_DFL); os.kill(os.getpid(), 2)"
    for code, error, message in (
        (met + abort, PeerDied, "a peer died; run the same command again"),
        (abort, PeerDied, "did not meet: start one on each host .* each with its own --process-id from 0 on"),
        (interrupted, KeyboardInterrupt, None),
    ):
        monkeypatch.setattr(
            subprocess, "Popen", lambda *_, code=code, **options: start([sys.executable, "-c", code], **options)
        )
        with pytest.raises(error, match=message):
            supervisor.supervise(["train"])


@pytest.mark.one_backend
@pytest.mark.parametrize("written", [b"", b"1"])
def test_what_the_child_has_started_does_not_keep_its_command_waiting(written):
    """A worker that lives on has inherited the pipe by which the child tells that all have met."""
    hears, held_open = os.pipe()
    os.write(held_open, written)
    assert supervisor._heard(hears) is bool(written)
    os.close(held_open)


@pytest.mark.one_backend
def test_signals_reach_a_child_from_a_launcher(monkeypatch):
    """`kill -INT` and `kill -TERM` of the command that the user started stop what it waits for."""
    start = subprocess.Popen
    for number in (signal.SIGINT, signal.SIGTERM):
        code = (
            f"import os, signal, sys; signal.signal({int(number)}, lambda *_: sys.exit(9)); "
            f"os.kill(os.getppid(), {int(number)}); signal.pause()"
        )
        monkeypatch.setattr(
            subprocess, "Popen", lambda *_, code=code, **options: start([sys.executable, "-c", code], **options)
        )
        assert supervisor.supervise(["train"]) == 9


@pytest.mark.one_backend
def test_one_press_of_ctrl_c_that_comes_by_several_ways_stops_after_a_snapshot(monkeypatch):
    """Process 0 hears it from its terminal and from the others; a second press ends it at once. Alone every one counts."""
    asked = []
    monkeypatch.setattr(hosts, "ask", lambda kind, value: asked.append((kind, value)))
    for process, later, ends in (
        (hosts.Process(0, 2), 0, False),
        (hosts.Process(0, 2), 9, True),
        (hosts.ALONE, 0, True),
    ):
        monkeypatch.setattr(hosts, "_joined", process)  # also while process 0 finishes by itself
        with stop.StopRequest() as request:
            signal.raise_signal(signal.SIGINT)
            assert request.signal == signal.SIGINT
            request._since -= later
            if ends:
                with pytest.raises(KeyboardInterrupt):
                    signal.raise_signal(signal.SIGINT)
            else:
                signal.raise_signal(signal.SIGINT)
    with hosts._acting_as(hosts.Process(1, 2)), stop.StopRequest() as request:
        signal.raise_signal(signal.SIGTERM)
        assert request.signal is None
    assert asked == [("signal", signal.SIGTERM)]


@pytest.mark.one_backend
@pytest.mark.parametrize("v6", [False, True])
def test_a_port_in_use_is_an_error_in_words(v6):
    """JAX's service crashes on it."""
    family = socket.AF_INET6 if v6 else socket.AF_INET
    try:
        server = socket.create_server(("", 0), family=family)
    except OSError:
        pytest.skip("this host has no IPv6")
    with server as used:
        port = used.getsockname()[1]
        group = groups.Group(f"127.0.0.1:{port}", 2, 0, "--coordinator")
        with pytest.raises(UsageError, match=rf"cannot listen on port {port} of .*: does another training use it"):
            hosts.join(group, "cpu")
        groups.check_port(groups.Group(f"127.0.0.1:{port}", 2, 1, "--coordinator"))  # process 1 only calls there
    groups.check_port(group)


@pytest.mark.one_backend
def test_a_process_of_several_that_fails_assigns_nothing(monkeypatch):
    """It would wait for the others for ever, which do not fail; one process puts back what it had replaced."""
    for process, undone in ((hosts.ALONE, 1), (hosts.Process(1, 2), 0)):
        calls = []
        with hosts._acting_as(process):
            with pytest.raises(ValueError, match="unreadable"), live_state.putting_back(partial(calls.append, 0)):
                raise ValueError("unreadable")
            assert len(calls) == undone
            with live_state.putting_back(partial(calls.append, 1)):
                pass
        assert calls[-1] == 1


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize("written", [True, False])
def test_process_0_decides_whether_the_images_of_an_epoch_were_recorded(monkeypatch, tmp_path, pictures, written):
    """A follower writes nothing, and trains on the images that process 0 trains on."""
    run = runs.open_run(Path(run_training(data=[str(pictures / "old")], out=str(tmp_path / "run"), **TINY).run))
    manifest, card = Manifest.read(run.manifest), run.record.card
    failed = []
    changes = arrivals.Changes(
        run, manifest, from_arguments(None, {}), card, card.spec, Reporter(quiet=True),
        guard=lambda: None, on_failure=lambda *words: failed.append(words),
    )  # fmt: skip
    gone = manifest.sha256s[manifest.train_rows()[0]].decode()
    told = iter([[gone], written])
    monkeypatch.setattr(hosts, "gathered", lambda value: [value])
    monkeypatch.setattr(hosts, "receive", lambda: next(told))
    with hosts._acting_as(hosts.Process(1, 2)):
        scan = changes.before_epoch(1, manifest, lambda: None)
    assert (scan.removed if written else scan) == ((gone,) if written else None)
    assert not (run.path / scans.FOLDER).exists()
    assert not failed
    (run.path / scans.FOLDER).write_text("a file in its place")
    monkeypatch.setattr(changes, "_unreadable", lambda manifest: (gone,))
    sent = []
    monkeypatch.setattr(hosts, "send", sent.append)
    with hosts._acting_as(hosts.Process(0, 2)):
        assert changes.before_epoch(2, manifest, lambda: None) is None
    assert sent == [(gone,), False]
    assert "before epoch 3" in failed[0][0]
