"""Tests that a power cut at any instant loses nothing that was acknowledged, and that nothing is refused afterwards.

`scripts/bench/powercut.py` tries every state that a power cut may leave; here is a sample.
"""

import random
import shutil
import sys

import pytest

from kresume.storage import atomic
from tests.helpers.paths import BENCH

sys.path.insert(0, str(BENCH))
import disk_states
import powercut
import races

pytestmark = [pytest.mark.one_backend, pytest.mark.usefixtures("flushing")]
needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
CHECKED = {"run": 110, "backup": 60, "cache": 30, "export": 60}


def recording_of(name, folder):
    """Does a job and returns it with its recording and its result."""
    powercut.write_pictures(folder / "data")
    job = powercut.jobs(folder / "data")[name]
    try:
        return job, *powercut.record(job, folder / "recorded")
    except PermissionError as error:
        pytest.skip(f"processes may not be traced here: {error}")


def sample(recording, count):
    """Returns states of power cuts at random instants, and the last one."""
    rng = random.Random(0)
    places = rng.sample(range(len(recording.operations) + 1), min(40, len(recording.operations)))
    found = list(disk_states.states(recording, places=places))
    return rng.sample(found, min(count, len(found)))


@needs_strace
@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize("name", CHECKED)
def test_a_power_cut_loses_nothing_and_the_same_command_goes_on(name, tmp_path):
    """Each state is accepted with all that was acknowledged; some go on, and end with equal bytes."""
    job, recording, expected = recording_of(name, tmp_path)
    chosen = sample(recording, CHECKED[name])
    found = []
    for state in chosen:
        wrong = powercut.problems(job, state, tmp_path / "state")
        found += [powercut.told(state, wrong)] if wrong else []
        shutil.rmtree(tmp_path / "state")
    for state in chosen[:2] if job.result else ():
        wrong = powercut.goes_on(job, state, tmp_path / "state", expected)
        found += [powercut.told(state, wrong)] if wrong else []
        shutil.rmtree(tmp_path / "state")
    assert not found, "\n".join(found)
    assert len(chosen) >= 0.9 * CHECKED[name]


@needs_strace
def test_a_missing_flush_is_found(tmp_path, monkeypatch):
    """Without flushes of folders the same check finds exports that are gone."""
    monkeypatch.setattr(atomic, "flush_directory", lambda path: None)
    job, recording, _ = recording_of("export", tmp_path)
    found = []
    for state in sample(recording, 20):
        found += powercut.problems(job, state, tmp_path / "state")
        shutil.rmtree(tmp_path / "state")
    assert any("gone" in problem for problem in found)


def test_processes_that_race_for_a_run_never_write_at_once(tmp_path):
    """Of four processes on one host or two, with and without a dead holder's lock, never two write; none waits for ever."""
    counts = races.run_races(tmp_path, 24)
    assert counts["two writers"] == 0
    assert counts["wrote"] >= 24
