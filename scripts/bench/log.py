"""Measures `kresume log` on a folder of a thousand runs, as processes of their own.

    python scripts/bench/log.py

The runs are copies of the record of a real kind: 10 classes, 12 epochs of metrics, exports, snapshots with the addresses of
a MobileNetV2, every fifth rejected, branches, one foreign root, one damaged record. Takes about a minute; --quick makes 100
runs and takes five seconds.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from kresume.storage import sealed

CLASSES = [str(index) for index in range(10)]
WEIGHTS = 314
"""Variables of a MobileNetV2 with its head."""
REPEATS = 7


def main() -> None:
    """Prints a row per command: its median time, and how much of it is Python's start and imports."""
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("--quick", action="store_true")
    count = 100 if asked.parse_args().quick else 1000
    with tempfile.TemporaryDirectory(prefix="kresume-log-") as name:
        folder = Path(name) / "runs"
        write_runs(folder, count)
        newest = folder / f"{count}-signs"
        commands = {
            f"`kresume log runs/`, {count:,} runs": ["log", str(folder)],
            "the same with `--short`": ["log", str(folder), "--short"],
            "the same with `--json`": ["log", str(folder), "--json"],
            "`kresume log` of the newest run and its ancestors": ["log", str(newest)],
            "`kresume --help`, for comparison": ["--help"],
        }
        print("| command | seconds by the clock | of the processor |\n|---|---|---|")
        for label, arguments in commands.items():
            print(f"| {label} | {seconds(arguments)} |")
        for file in folder.rglob("state.safetensors"):
            os.utime(file, (1, 1))
        print(f"| `kresume log runs/` after a copy, which changed all times | {seconds(['log', str(folder)])} |")


def seconds(arguments: list[str]) -> str:
    """Returns the median time of a command's process, by the clock and of the processor."""
    taken = []
    for _ in range(REPEATS + 1):
        start, before = time.perf_counter(), os.times()
        subprocess.run([sys.executable, "-m", "kresume", *arguments], check=True, stdout=subprocess.DEVNULL)
        after = os.times()
        used = after.children_user + after.children_system - before.children_user - before.children_system
        taken.append((time.perf_counter() - start, used))
    clock, processor = (statistics.median(each) for each in zip(*taken[1:], strict=True))
    return f"{clock:.2f} | {processor:.2f}"


def write_runs(folder: Path, count: int) -> None:
    """Writes run directories that descend from each other."""
    base = folder.parent / "base.keras"
    folder.mkdir(parents=True)
    base.write_bytes(b"weights")
    accepted: Path | None = None
    for number in range(1, count + 1):
        path = folder / f"{number}-signs"
        path.mkdir(parents=True)
        rejected = number % 5 == 0
        parent = parent_of(base if accepted is None else accepted, path)
        (path / "run.json").write_text(sealed.sealed_text(record(number, parent, rejected=rejected)))
        (path / "metrics.jsonl").write_text("".join(json.dumps(line(epoch)) + "\n" for epoch in range(1, 13)))
        write_snapshot(path / "snapshots" / "step-00000400", number)
        events: list[dict[str, Any]] = [{"time": when(number), "event": "started"}]
        if not rejected:
            accepted = path
            events.append(
                {"event": "exported", "format": "saved-model", "path": f"../../serving/signs/{number}", "step": 400}
            )
        (path / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    (folder / "7-signs" / "run.json").write_text("{")


def write_snapshot(folder: Path, number: int) -> None:
    """Writes a snapshot with a record as long as a real one, and no arrays to speak of."""
    folder.mkdir(parents=True)
    (folder / "state.safetensors").write_bytes(b"x" * 100)
    addresses = {f"functional/block_{index}/conv2d/kernel": index for index in range(WEIGHTS)}
    facts = {"records": {"structure": addresses}, "files": {"state.safetensors": {"bytes": 100, "sha256": str(number)}}}
    (folder / "meta.json").write_text(json.dumps(facts))


def parent_of(path: Path, child: Path) -> dict[str, Any]:
    """Returns the record of a parent."""
    is_run = path.is_dir()
    name = "snapshots/step-00000400/state.safetensors" if is_run else path.name
    written = (path / name if is_run else path).stat()
    number = path.name.partition("-")[0]
    facts = {"bytes": written.st_size, "mtime_ns": written.st_mtime_ns, "sha256": number if is_run else "0"}
    return {
        "path": os.path.relpath(path, child),
        "format": "run" if is_run else "keras",
        "step": 400,
        "digest": "d" * 64,
        "files": {name: facts},
    }


def when(number: int) -> str:
    """Returns the time at which a run was made."""
    return (datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC) + datetime.timedelta(hours=number)).isoformat()


def line(epoch: int) -> dict[str, Any]:
    """Returns the line of an epoch."""
    subset = {"images": 383, "loss": 0.21, "accuracy": 0.95, "f1": 0.94}
    classes = {name: {"images": 38, "recall": 0.9, "precision": 0.9, "f1": 0.9} for name in CLASSES}
    return {
        "epoch": epoch,
        "step": 33 * epoch,
        "loss": 0.2,
        "all": subset,
        "old": subset,
        "new": subset,
        "classes": classes,
    }


def record(number: int, parent: dict[str, Any], *, rejected: bool) -> dict[str, Any]:
    """Returns the content of `run.json`."""
    scores = {name: value for name, value in line(12).items() if name in {"all", "old", "new", "classes"}}
    options = {"from_": "../base.keras", "add": ["inbox"], "lr": 1e-4, "out": f"runs/{number}-signs"}
    return {
        "format": 1, "kresume": "0.2.0", "status": "rejected" if rejected else "accepted", "created": when(number),
        "command": "kresume train", "generation": number, "parent": parent, "given": options, "options": options, "seed": 0,
        "backend": "tensorflow", "fingerprint": {"packages": {"keras": "3.15.1"}},
        "card": {
            "classes": CLASSES, "image_size": [48, 48], "pixels": "0-255", "resize": "stretch", "interpolation": "area",
        },
        "loss": {"kind": "sparse_categorical_crossentropy", "from_logits": False, "label_smoothing": 0.0, "reason": ""},
        "optimizer": {"class_name": "AdamW", "config": {"name": "adamw"}},
        "rate": {
            "checkpoint": 1e-3, "peak": 1e-4, "schedule": "rewarm-cosine", "warmup_steps": 24, "steps": 400, "start": 0.0,
            "reason": "--lr",
        },
        "amount": {"epochs": 12, "steps": 400, "batch_size": 32, "boundaries": list(range(33, 430, 33)), "reason": "--epochs"},
        "iterations": 0, "variables": {"trainable": [f"layer_{index}/kernel" for index in range(WEIGHTS)]}, "base_step": 0,
        "images": {"total": 1000 + number, "new": 1, "added": 1, "train": 900, "validation": 100 + number},
        "manifest": "m" * 64, "dropped": [], "not_used": 0, "before": scores,
        "plan": {
            "sides": "", "pixels_reason": "", "interpolation_reason": "", "classes_reason": "", "loss": "", "optimizer": "",
            "options": {},
        },
        "failed": ["old.accuracy>=0.93"] if rejected else [],
        "result": {"step": 400, "which": "last", "scores": scores}, "best": None, "finished": when(number),
    }  # fmt: skip


if __name__ == "__main__":
    main()
