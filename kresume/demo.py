"""Implements `kresume demo`: trains, kills, continues and extends a run on real digits.

It lasts about a minute. The images are the 1,797 handwritten digits of scikit-learn (UCI ML hand-written digits, 43
people). They are stored in the order of collection, so "old" and "new" come from different people. The demo prints its
commands as a user would type them.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kresume import runs
from kresume.checkpoints import snapshot
from kresume.errors import KresumeError
from kresume.reporter import Reporter
from kresume.storage import atomic

OLD, NEW = 500, 800  # of 1,797; the rest, from other people again, is the validation split
SIDE = 32
KILL_AFTER_STEPS = 20


@dataclass(frozen=True)
class DemoResult:
    """The metrics before and after the new images were added."""

    folder: str
    before: dict[str, Any]
    after: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """Returns the JSON form."""
        return dict(vars(self))

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [("", "before", "after")]
        for name in ("all", "old", "new"):
            before, after = self.before[name], self.after[name]
            cells = [f"{100 * part['accuracy']:.1f} %" if part["images"] else "-" for part in (before, after)]
            rows.append((f"{name} ({after['images']} validation images)", *cells))
        width = max(len(row[0]) for row in rows)
        table = "\n".join(f"  {row[0]:<{width}}  {row[1]:>8}  {row[2]:>8}" for row in rows)
        return (
            f"{table}\n\nEverything is in {self.folder}: look at runs/2-digits/, and load runs/2-digits/model.keras with "
            "keras.models.load_model"
        )


def write_digits(folder: Path) -> None:
    """Writes scikit-learn's digits as PNG files into `old/`, `new/` and `test/`.

    Each class has its own folder.
    """
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    for index, (picture, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        part = "old" if index < OLD else "new" if index < OLD + NEW else "test"
        path = folder / part / str(label) / f"{index:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        grey = np.clip(picture * 255 / 16, 0, 255).astype(np.uint8)
        Image.fromarray(grey).resize((SIDE, SIDE), Image.Resampling.BICUBIC).convert("RGB").save(path)


def run(directory: str | Path, reporter: Reporter) -> DemoResult:
    """Trains on old digits, kills and continues that training, then adds new digits.

    Args:
        directory: folder for images and runs; must be empty or not exist.
        reporter: prints each step.

    Raises:
        KresumeError: if the folder is not empty, or a command fails.
    """
    folder = Path(directory)
    if folder.exists() and any(folder.iterdir()):
        raise KresumeError(f"{folder} is not empty: give the demo a folder of its own with --dir")
    folder.mkdir(parents=True, exist_ok=True)
    reporter.say(f"1. Real digits from scikit-learn: {OLD} old ones, {NEW} new ones, the rest to test")
    write_digits(folder)
    first = ["train", "--data", "old", "--val", "test", "--image-size", "32", "--epochs", "8", "--snapshot-every", "5"]
    first += ["--out", "runs/1-digits"]
    reporter.say("\n2. A first training; its machine is taken away in the middle (a real SIGKILL)")
    _kill_in_the_middle(folder, first, reporter)
    reporter.say(
        "\n3. The same command again: it continues from that snapshot, to the bits of a run that was never killed"
    )
    _command(folder, first, reporter)
    reporter.say("\n4. More images: the run remembers its old ones, the new ones are added, at a lower rate")
    _command(
        folder,
        [
            "train",
            "--from",
            "runs/1-digits",
            "--add",
            "new",
            "--lr-scale",
            "0.3",
            "--epochs",
            "8",
            "--out",
            "runs/2-digits",
        ],
        reporter,
    )
    reporter.say("\n5. Where it came from")
    _command(folder, ["log", "runs/2-digits"], reporter)
    evaluation = atomic.read_json(folder / "runs/2-digits/evaluation.json")
    reporter.say("\n6. The same validation images, before and after")
    return DemoResult(str(folder), evaluation["before"], evaluation["after"])


def _arguments(arguments: list[str]) -> list[str]:
    return [sys.executable, "-m", "kresume", *arguments]


def _command(folder: Path, arguments: list[str], reporter: Reporter) -> None:
    reporter.say(f"$ kresume {shlex.join(arguments)}")
    done = subprocess.run(_arguments(arguments), cwd=folder, check=False)
    if done.returncode != 0:
        raise KresumeError(f"`kresume {shlex.join(arguments)}` in {folder} ended with {done.returncode}: see above")


def _kill_in_the_middle(folder: Path, arguments: list[str], reporter: Reporter) -> None:
    reporter.say(f"$ kresume {shlex.join(arguments)}")
    process = subprocess.Popen(_arguments(arguments), cwd=folder)
    path = folder / "runs/1-digits"
    while process.poll() is None and _newest_step(path) < KILL_AFTER_STEPS:
        time.sleep(0.02)
    if process.poll() is not None and not runs.is_run(path):
        raise KresumeError(f"`kresume {shlex.join(arguments)}` in {folder} ended with {process.returncode}: see above")
    process.send_signal(signal.SIGKILL if os.name == "posix" else signal.SIGTERM)
    process.wait()
    reporter.say(f"   killed; the newest snapshot is that of step {_newest_step(path)}")


def _newest_step(path: Path) -> int:
    return max((step for step, _ in snapshot.list_snapshots(path / "snapshots")), default=0)
