"""Makes the reliability table: processes are killed at random instants, continued, compared by bytes.

    python scripts/bench/kill.py --kills 1000 --backend tensorflow --kept kills.jsonl

Takes about two hours per thousand kills on 2 cores. With `--kept FILE`, each run that ended adds a line to the file, and
the same command counts those lines and goes on: stop it whenever you like.

One run is trained without interruption. Other runs with the same options are killed by SIGKILL at random instants
(while they start, plan, train, evaluate, or write a snapshot, the result or the report) and restarted by the same command
until they finish. The table counts kills, finished runs with the same bytes, and snapshots found torn. The same bytes:
all arrays of the result's snapshot (with the optimizer's count of updates), the metrics lines without wall-clock fields,
the scores, the answers to the validation pictures, and a report of the run.

Three stories take turns, or `--stories` names some:

new     A new run, with dropout, strong augmentation, averages of the weights, weights without decay and best-epoch
        tracking.
weeks   A finished run with three classes is extended by pictures of two more: the head grows, old and new pictures are
        mixed, gates hold the old classes, the result is averaged with the checkpoint.
watch   Pictures arrive while the first run trains. The other runs start from a copy of the first run as it was after its
        first snapshot, with the scans that it wrote later. A run never repeats a scan, so all runs see the same pictures
        in the same order.
"""

import argparse
import dataclasses
import hashlib
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

NEW = (
    "--image-size 12 --batch-size 8 --epochs 150 --snapshot-every 7 --ema 0.9 --monitor val_loss --augment strong "
    "--optimizer adamw --exclude-from-weight-decay bias"
)
WEEKS = (
    "--grow --epochs 60 --snapshot-every 7 --replay 0.5 --monitor new.accuracy --require all.accuracy>=0.1 "
    "--max-class-drop 90 --max-forgetting 90 --average 0.3"
)
COUNTS = ("kills", "ended", "equal", "torn")


def write_pictures(folder: Path, seed: int = 0, count: int = 16, classes: range = range(3)) -> None:
    """Writes classes of noise, each with a bright corner of its own."""
    rng = np.random.default_rng(seed)
    for label in classes:
        (folder / str(label)).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            picture = rng.integers(0, 120, (16, 16, 3)).astype(np.uint8)
            picture[2 * label : 2 * label + 6, :8] += 100
            Image.fromarray(picture).save(folder / str(label) / f"{seed}-{index}.png")


@dataclasses.dataclass(frozen=True)
class Story:
    """A run that is trained again and again.

    Attributes:
        name: its name in the table.
        folder: everything of this story; removed at the end.
        options: the options of `kresume train`, without `--out`.
        backend: Keras's backend.
        arrivals: the folder where pictures arrive while the first run trains; None without `--watch`.
    """

    name: str
    folder: Path
    options: tuple[str, ...]
    backend: str
    arrivals: Path | None = None

    def start(self, out: Path) -> subprocess.Popen:
        """Starts `kresume train`."""
        environment = {**os.environ, "KERAS_BACKEND": self.backend, "KRESUME_CACHE": str(self.folder / "cache")}
        words = [sys.executable, "-m", "kresume", "train", *self.options, "--out", str(out)]
        with (self.folder / "stderr.txt").open("w") as told:
            return subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=told)

    def told(self) -> str:
        """Returns what the last process said of its errors."""
        return (self.folder / "stderr.txt").read_text(errors="replace")

    def train(self, out: Path) -> None:
        """Trains a run that nobody interrupts."""
        process = self.start(out)
        if self.arrivals is not None:
            let_arrive(process, self.arrivals, out, self.folder / "begun")
        if process.wait():
            sys.exit(self.told())

    def prepare(self, out: Path) -> None:
        """Copies what the run begins from: with `--watch` the first run as it was early, else nothing."""
        if self.arrivals is not None:
            shutil.copytree(self.folder / "begun", out)
            shutil.copytree(self.folder / "whole" / "images", out / "images")


def tell(name: str, folder: Path, backend: str) -> Story:
    """Writes the pictures of a story, and the run that it extends."""
    data = folder / "data"
    write_pictures(data)
    options = ("--data", str(data), *NEW.split())
    if name == "new":
        return Story(name, folder, options, backend)
    if name == "watch":
        return Story(name, folder, (*options, "--watch"), backend, arrivals=data)
    parent, added = folder / "parent", folder / "added"
    Story(name, folder, options, backend).train(parent)
    write_pictures(added, seed=1, count=8, classes=range(5))
    extending = ("--from", str(parent), "--data", str(data), "--add", str(added), *WEEKS.split())
    return Story(name, folder, extending, backend)


def let_arrive(whole: subprocess.Popen, data: Path, out: Path, begun: Path) -> None:
    """Copies the run after its first snapshot, then adds pictures until the run ends."""
    while not begun.exists():
        time.sleep(0.05)
        if whole.poll() is not None:
            return
        if (out / "snapshots" / "LATEST").exists():
            try:
                shutil.copytree(out, begun, ignore=shutil.ignore_patterns("lock.json", ".tmp-*", "images"))
            except shutil.Error:  # a snapshot was pruned meanwhile
                shutil.rmtree(begun)
    for seed in range(1, 1000):
        if whole.poll() is not None:
            return
        write_pictures(data, seed, 1)
        time.sleep(1.5)


def result(path: Path) -> dict:
    """Returns what two runs with the same pictures and options have in common to the last bit."""
    run = runs.open_run(path)
    arrays = snapshot.read_snapshot(snapshot.snapshot_path(run.result_snapshots, run.result_step())).arrays
    lines = runs.read_metrics(path / "metrics.jsonl")
    for line in lines:
        for name in ("time", "images_per_second", "waiting_for_images"):
            line.pop(name, None)
    return {
        "arrays": snapshot.digest_of(arrays),
        "metrics": lines,
        "scores": (path / "evaluation.json").read_text(),
        "answers": [hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted((path / runs.ANSWERS).iterdir())],
        "report": (path / "report.html").read_text(encoding="utf-8").rstrip().endswith("</html>"),
    }


def kill_until_it_ends(story: Story, out: Path, expected: dict, longest: float, rng: random.Random) -> dict:
    """Trains a run in processes that are killed at random instants, until one ends by itself.

    Args:
        story: the run.
        out: where.
        expected: what `result` returned for the run that nobody interrupted.
        longest: a process is killed within so many seconds.
        rng: chooses the instants.

    Returns:
        The counts for the table, by the names in `COUNTS`.
    """
    story.prepare(out)
    kills = 0
    while True:
        process = story.start(out)
        try:
            process.wait(timeout=rng.uniform(0.5, longest))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            continue
        # A run killed between its last write and its exit is finished: the same command then fails.
        if process.returncode and not (runs.is_run(out) and runs.open_run(out).finished):
            sys.exit(f"{out} ended with {process.returncode}: {story.told()}")
        break
    found = result(out)
    different = [name for name in expected if found[name] != expected[name]]
    if different:
        sys.stderr.write(f"{out} differs from the run that nobody interrupted in: {', '.join(different)}\n")
    events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    torn = sum(event["event"] == "snapshot damaged" for event in events)
    shutil.rmtree(out)
    return {"kills": kills, "ended": 1, "equal": int(not different), "torn": torn}


def table(lines: list[dict]) -> None:
    """Prints a row for each story under each backend."""
    print("| backend | story | kills | runs that ended | ended with equal bytes | snapshots found torn |")
    print("|---|---|---|---|---|---|")
    for key in dict.fromkeys((line["backend"], line["story"]) for line in lines):
        own = [line for line in lines if (line["backend"], line["story"]) == key]
        print("| " + " | ".join([*key, *(str(sum(line[name] for line in own)) for name in COUNTS)]) + " |")


def main() -> None:
    """Kills runs and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100, help="in all, under this backend")
    parser.add_argument("--backend", default="tensorflow", choices=["tensorflow", "jax"])
    parser.add_argument("--longest", type=float, default=14.0, help="a process is killed within so many seconds")
    parser.add_argument("--stories", nargs="+", default=["new", "weeks", "watch"], choices=["new", "weeks", "watch"])
    parser.add_argument("--kept", type=Path, help="a file that keeps a line for each run that ended, and is counted")
    arguments = parser.parse_args()
    kept = arguments.kept
    lines = [json.loads(line) for line in kept.read_text().splitlines()] if kept is not None and kept.exists() else []

    def done() -> int:
        return sum(line["kills"] for line in lines if line["backend"] == arguments.backend)

    # Draws follow the number of runs that ended, so that a command that goes on kills at other instants.
    rng = random.Random(len(lines))
    with tempfile.TemporaryDirectory() as name:
        stories, expected = {}, {}
        for turn in range(len(lines), 10**6):  # the stories go on taking turns
            if done() >= arguments.kills:
                break
            story = arguments.stories[turn % len(arguments.stories)]
            folder = Path(name) / story
            if story not in stories:
                stories[story] = tell(story, folder, arguments.backend)
                stories[story].train(folder / "whole")
                expected[story] = result(folder / "whole")
            counts = kill_until_it_ends(stories[story], folder / f"run-{turn}", expected[story], arguments.longest, rng)
            lines.append({"backend": arguments.backend, "story": story, **counts})
            if kept is not None:
                with kept.open("a") as file:
                    file.write(json.dumps(lines[-1]) + "\n")
            equal = sum(line["equal"] for line in lines)
            sys.stderr.write(f"{time.strftime('%H:%M:%S')} {story}: kills {done()}, runs {len(lines)}, equal {equal}\n")
    table(lines)


if __name__ == "__main__":
    main()
