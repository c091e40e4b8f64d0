"""Tests that only one process works on a run, and that the lock of a dead process is no obstacle."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time

import pytest

from kresume.errors import RunError
from kresume.lock import NAME, STALE_SECONDS, Lock, is_alive, process_start, read_holder, this_machine

pytestmark = pytest.mark.one_backend


def leave_lock(run, **changes):
    holder = {"host": "elsewhere", "pid": 1, "start": "1", "token": "x", "heartbeat": time.time(), **changes}
    (run / NAME).write_text(json.dumps(holder))


def test_a_second_process_is_refused_with_host_and_pid(tmp_path):
    """A second process on this host is refused with the holder's host and pid."""
    with Lock(tmp_path, host="here"), pytest.raises(RunError, match=f"pid {os.getpid()} on here"):
        Lock(tmp_path, host="here").acquire()
    assert read_holder(tmp_path) is None


def test_a_lock_of_a_dead_process_on_this_host_is_taken(tmp_path):
    """A lock is taken if its pid no longer runs or started at another time."""
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()
    leave_lock(tmp_path, host="here", pid=process.pid)
    with Lock(tmp_path, host="here"):
        assert read_holder(tmp_path)["pid"] == os.getpid()
    leave_lock(tmp_path, host="here", pid=os.getpid(), start="12345")
    with Lock(tmp_path, host="here"):
        assert read_holder(tmp_path)["start"] == process_start(os.getpid())


def test_a_silent_lock_of_another_host_is_waited_for_with_a_countdown(tmp_path):
    """A lock of another host expires three minutes after its last heartbeat; the wait is announced."""
    leave_lock(tmp_path, heartbeat=time.time() - 100)
    clock = [time.time()]
    said = []

    def sleep(seconds):
        clock[0] += seconds

    with Lock(tmp_path, host="here", say=said.append, clock=lambda: clock[0], sleep=sleep):
        assert "waiting 80 s" in said[0]
        assert "--take-over" in said[0]


def test_a_living_lock_of_another_host_is_respected(tmp_path):
    """A heartbeat that moves during the wait keeps the lock: the other machine is alive."""
    leave_lock(tmp_path)

    def sleep(seconds):
        leave_lock(tmp_path, heartbeat=time.time() + 5)

    with pytest.raises(RunError, match="pid 1 on elsewhere"):
        Lock(tmp_path, host="here", sleep=sleep).acquire()


def test_take_over_goes_on_at_once_and_the_old_holder_notices(tmp_path):
    """`--take-over` does not wait; the old holder notices and commits nothing more."""
    new = Lock(tmp_path, host="here", take_over=True, sleep=lambda seconds: pytest.fail("waited"))
    with Lock(tmp_path, host="there") as old, new, pytest.raises(RunError, match="taken over"):
        old.check()


def test_a_machine_of_the_same_name_is_another_one(tmp_path):
    """Its pids are others: a heartbeat tells whether the holder lives. A lock of an earlier version has no mark."""
    leave_lock(tmp_path, host="here", pid=2**22 + 1, machine="another")
    said = []

    def sleep(seconds):
        leave_lock(tmp_path, host="here", pid=2**22 + 1, machine="another", heartbeat=time.time() + 5)

    with pytest.raises(RunError, match="on here, in another container or another machine of this name: wait for it"):
        Lock(tmp_path, host="here", say=said.append, sleep=sleep).acquire()
    assert "waiting" in said[0]
    leave_lock(tmp_path, host="here", pid=2**22 + 1)
    with Lock(tmp_path, host="here", sleep=lambda seconds: pytest.fail("waited")):
        assert read_holder(tmp_path)["machine"] == this_machine()


IN_A_CONTAINER = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")


@pytest.mark.skipif(
    shutil.which("unshare") is None
    or subprocess.run([*IN_A_CONTAINER, "true"], capture_output=True, check=False).returncode != 0,
    reason="this machine makes no namespaces of processes",
)
def test_two_containers_with_one_host_name_do_not_train_one_run(tmp_path):
    """Neither sees the processes of the other, and pids are equal: the second is refused, while the first lives."""
    code = (
        "import sys, time; from pathlib import Path; from kresume import lock; lock.HEARTBEAT_SECONDS = 0.1; "
        "held = lock.Lock(Path(sys.argv[1])); held.acquire(); print('held', flush=True); time.sleep(60)"
    )
    first = subprocess.Popen(
        [*IN_A_CONTAINER, sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert first.stdout.readline() == "held\n"
        with pytest.raises(RunError, match="in another container or another machine of this name: wait for it"):
            Lock(tmp_path, sleep=lambda seconds: time.sleep(0.5)).acquire()
    finally:
        first.kill()
        first.wait()
        first.stdout.close()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"host": 1}', b"\xff\xfe"])
def test_a_torn_lock_file_is_no_obstacle(tmp_path, content):
    """A torn lock file holds nothing."""
    (tmp_path / NAME).write_bytes(content)
    with Lock(tmp_path):
        assert read_holder(tmp_path)["pid"] == os.getpid()


def test_another_hosts_heartbeat_decides(tmp_path):
    """A lock of another host is judged by its heartbeat alone, not by pid and start time."""
    holder = {"host": "elsewhere", "pid": os.getpid(), "start": "", "heartbeat": 1000.0}
    assert is_alive(holder, host="here", clock=lambda: 1000.0 + STALE_SECONDS - 1)
    assert not is_alive(holder, host="here", clock=lambda: 1000.0 + STALE_SECONDS + 1)


@pytest.mark.parametrize("changes", [{"heartbeat": None}, {"pid": "abc"}, {"pid": None}, {"host": 7}, {"start": 1}])
def test_a_lock_of_other_kinds_of_values_is_torn_like_any(tmp_path, changes):
    """A lock file of valid JSON but other types holds nothing."""
    leave_lock(tmp_path, **changes)
    assert read_holder(tmp_path) is None
    with Lock(tmp_path, host="here"):
        assert read_holder(tmp_path)["pid"] == os.getpid()


def test_the_claim_of_a_process_that_died_is_no_obstacle(tmp_path):
    """A process that died between its claim on a dead lock and the lock itself blocks nobody."""
    leave_lock(tmp_path, host="here", start="12345")
    dead = (tmp_path / NAME).read_bytes()
    claim = tmp_path / f".tmp-{NAME}-{hashlib.sha256(dead).hexdigest()[:8]}"
    claim.write_bytes(dead)
    with Lock(tmp_path, host="here"):
        assert read_holder(tmp_path)["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_links_has_locks_too(tmp_path, monkeypatch):
    """Where a file cannot get a second name, the lock file is created exclusively."""

    def refuse(*names):
        raise PermissionError("no links")

    monkeypatch.setattr(os, "link", refuse)
    with Lock(tmp_path, host="here"), pytest.raises(RunError, match="on here"):
        Lock(tmp_path, host="here").acquire()
    assert list(tmp_path.iterdir()) == []


def test_a_clock_that_is_ahead_is_waited_for_three_minutes_at_most(tmp_path):
    """The heartbeat of a host whose clock is ahead counts for three minutes, not for the difference of the clocks."""
    leave_lock(tmp_path, heartbeat=time.time() + 10000)
    slept = []
    with Lock(tmp_path, host="here", sleep=slept.append):
        assert sum(slept) <= STALE_SECONDS
