"""Lets processes race for the lock of a run: never two writers, never a deadlock, always a winner.

    python scripts/bench/races.py --races 200          # takes about a minute

In each race four processes start to lock one folder at the same moment. In two races of three a dead process has left its
lock there. They are on one host, or call themselves two hosts with a shared folder. A process that has the lock checks it
before each write, as training does, and writes while nobody else may. Heartbeats are faster than in use: a loser on the
other host watches for one for a quarter of a second instead of three minutes.
"""

import argparse
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from kresume import lock
from kresume.errors import RunError

PROCESSES = 4
WATCHED_SECONDS = 0.25


def race(folder: Path, name: str, hosts: int, rng: random.Random) -> str:
    """Tries to lock a folder and to write there; returns what happened."""
    mine = f"host-{int(name) % hosts}"
    held = lock.Lock(folder, host=mine, sleep=lambda seconds: time.sleep(WATCHED_SECONDS if seconds > 1 else seconds))
    try:
        held.acquire()
    except RunError:
        return "refused"
    try:
        for _ in range(3):
            held.check()
            try:
                os.close(os.open(folder / "writing", os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                return "two writers"
            time.sleep(rng.uniform(0, 0.002))
            (folder / "writing").unlink()
    except RunError:
        return "taken over"
    finally:
        held.release()
    return "wrote"


def leave_lock(folder: Path, kind: int) -> None:
    """Leaves the lock of a dead process of the first host, or of a host that is gone; or none."""
    facts = {"host": "host-0", "pid": os.getpid(), "start": "before", "token": "dead", "heartbeat": time.time() - 1000}
    if kind:
        (folder / lock.NAME).write_text(json.dumps({**facts, "host": "host-0" if kind == 1 else "gone"}))


def worker(folder: Path, name: str, races: int) -> None:
    """Takes part in each race, and prints the outcomes."""
    lock.HEARTBEAT_SECONDS = 0.01
    rng, outcomes = random.Random(name), []
    for number in range(races):
        here = folder / str(number)
        (here / f"ready-{name}").touch()
        while len(list(here.glob("ready-*"))) < PROCESSES:
            time.sleep(0.0005)
        time.sleep(rng.uniform(0, 0.002))
        outcomes.append(race(here, name, 1 + number % 2, rng))
    sys.stdout.write(json.dumps(outcomes))


def run_races(folder: Path, races: int) -> Counter[str]:
    """Runs all races and counts the outcomes.

    Raises:
        subprocess.TimeoutExpired: a process waits for ever.
        ValueError: a race had no winner, or left a lock behind.
    """
    for number in range(races):
        (folder / str(number)).mkdir()
        leave_lock(folder / str(number), number // 2 % 3)
    command = [sys.executable, __file__, "--races", str(races), "--folder", str(folder), "--worker"]
    started = [subprocess.Popen([*command, str(name)], stdout=subprocess.PIPE, text=True) for name in range(PROCESSES)]
    counts: Counter[str] = Counter()
    try:
        told = [json.loads(process.communicate(timeout=60 + races)[0]) for process in started]
    finally:
        for process in started:
            with contextlib.suppress(OSError):
                process.kill()
    for number in range(races):
        outcomes = [outcomes[number] for outcomes in told]
        counts.update(outcomes)
        left = [path.name for path in (folder / str(number)).iterdir() if not path.name.startswith("ready-")]
        if "wrote" not in outcomes or left:
            raise ValueError(f"race {number}: {outcomes}, left behind: {left}")
    return counts


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--races", type=int, default=200)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.worker:
        worker(asked.folder, asked.worker, asked.races)
        return
    with tempfile.TemporaryDirectory() as name:
        counts = run_races(Path(name), asked.races)
    print("| races | wrote | refused | taken over | two writers |\n|---|---|---|---|---|")
    print(
        f"| {asked.races} | {counts['wrote']} | {counts['refused']} | {counts['taken over']} | {counts['two writers']} |"
    )
    sys.exit(1 if counts["two writers"] else 0)


if __name__ == "__main__":
    main()
