"""Makes the reliability table: processes are killed at random instants, continued, compared by bytes.

    python scripts/bench/kill.py --kills 100 --backend tensorflow

One run is trained without interruption. Other runs with the same options are killed by SIGKILL at random instants
(while they start, plan, train, evaluate, or write a snapshot or the result) and restarted by the same command until
they finish. The table counts kills, finished runs with the same bytes and the same metrics, steps replayed after the
restored snapshot, and snapshots found torn.

With `--watch`, pictures arrive while the first run trains. The other runs start from a copy of the first run as it was
after its first snapshot, with the scans that it wrote later. A run never repeats a scan, so all runs see the same
pictures in the same order.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from kresume import runs
from kresume.checkpoints import snapshot

OPTIONS = "--image-size 12 --batch-size 8 --epochs 150 --snapshot-every 7 --ema 0.9 --monitor val_loss --augment strong"


def write_pictures(folder: Path, seed: int = 0, count: int = 16) -> None:
    """Writes three classes of noise, each with a bright corner."""
    rng = np.random.default_rng(seed)
    for label in range(3):
        (folder / str(label)).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            picture = rng.integers(0, 120, (16, 16, 3)).astype(np.uint8)
            picture[4 * label : 4 * label + 6, :8] += 100
            Image.fromarray(picture).save(folder / str(label) / f"{seed}-{index}.png")


def let_arrive(whole: subprocess.Popen, data: Path, out: Path, begun: Path) -> None:
    """Copies the run after its first snapshot, then adds pictures until the run ends."""
    while whole.poll() is None and not (out / "snapshots" / "LATEST").exists():
        time.sleep(0.05)
    shutil.copytree(out, begun, ignore=shutil.ignore_patterns("lock.json", ".tmp-*", "images"))
    for seed in range(1, 1000):
        if whole.poll() is not None:
            return
        write_pictures(data, seed, 1)
        time.sleep(1.5)


def result(path: Path) -> tuple[str, list[dict]]:
    """Returns the digest of all arrays of the result, and the metrics lines without wall-clock fields."""
    step = runs.open_run(path).result_step()
    arrays = snapshot.read_snapshot(snapshot.snapshot_path(path / "snapshots", step)).arrays
    lines = runs.read_metrics(path / "metrics.jsonl")
    for line in lines:
        for name in ("time", "images_per_second", "waiting_for_images"):
            line.pop(name, None)
    return snapshot.digest_of(arrays), lines


def updates_beyond_plan(path: Path) -> int:
    """Returns the updates that the optimizer counted beyond the result's step: those of replayed steps."""
    step = runs.open_run(path).result_step()
    arrays = snapshot.read_snapshot(snapshot.snapshot_path(path / "snapshots", step)).arrays
    return int(arrays["optimizer/0"]) - step


def main() -> None:
    """Prints one row of the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--backend", default="tensorflow")
    parser.add_argument("--longest", type=float, default=14.0, help="a process is killed within so many seconds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--watch", action="store_true", help="pictures arrive while the first run trains")
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_pictures(folder / "data")
        environment = {**os.environ, "KERAS_BACKEND": arguments.backend, "KRESUME_CACHE": str(folder / "cache")}
        base = [sys.executable, "-m", "kresume", "train", "--data", str(folder / "data"), *OPTIONS.split()]
        base += ["--watch", "--out"] if arguments.watch else ["--out"]

        def start(out: Path) -> subprocess.Popen:
            return subprocess.Popen(
                [*base, str(out)], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
            )

        whole = start(folder / "whole")
        if arguments.watch:
            let_arrive(whole, folder / "data", folder / "whole", folder / "begun")
        told = whole.communicate()[1]
        if whole.returncode:
            sys.exit(told)
        expected = result(folder / "whole")
        kills = ended = equal = torn = replayed = 0
        while kills < arguments.kills:
            out = folder / f"run-{ended}"
            if arguments.watch:
                shutil.copytree(folder / "begun", out)
                shutil.copytree(folder / "whole" / "images", out / "images")
            while True:
                process = start(out)
                try:
                    told = process.communicate(timeout=rng.uniform(0.5, arguments.longest))[1]
                except subprocess.TimeoutExpired:
                    process.send_signal(signal.SIGKILL)
                    process.communicate()
                    kills += 1
                    continue
                # A run killed between its last write and its exit is finished: the same command then fails.
                if process.returncode and not (runs.is_run(out) and runs.open_run(out).finished):
                    sys.exit(f"{out} ended with {process.returncode}: {told}")
                break
            ended += 1
            equal += result(out) == expected
            events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
            torn += sum(event["event"] == "snapshot damaged" for event in events)
            replayed += updates_beyond_plan(out)
            shutil.rmtree(out)
            sys.stderr.write(f"{time.strftime('%H:%M:%S')} kills {kills}, runs {ended}, equal {equal}\n")
        print("| backend | kills | runs that ended | ended with equal bytes | steps replayed | snapshots found torn |")
        print("|---|---|---|---|---|---|")
        row = f"{arguments.backend}, --watch" if arguments.watch else arguments.backend
        print(f"| {row} | {kills} | {ended} | {equal} | {replayed} | {torn} |")


if __name__ == "__main__":
    main()
