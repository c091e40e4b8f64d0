"""Trains for very long, and reads very long records: memory and open files must stay flat.

    python scripts/bench/soak.py --epochs 2000 --work /tmp/soak      # one run of tiny epochs, watched; about 10 minutes
    python scripts/bench/soak.py --lines 10000 --work /tmp/soak      # a run with so many epochs: log, report, continuing

The first is resumable: the same command goes on with the run in --work and with its samples, wherever it was interrupted.
Memory is the resident size of the process, its median over the second tenth of the epochs against that over the last one
(the first tenth holds imports, compilation and the first report of each kind). The second takes a run that was stopped
after some epochs, makes its records as long as if --lines epochs had been trained, and measures each command as a process.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from kill import write_pictures

from kresume import runs
from kresume.checkpoints import snapshot

OPTIONS = (
    "--image-size 8 --batch-size 12 --val-split 0.25 --cache off --snapshot-every 20 --lr-schedule constant --lr 1e-3"
)
SECONDS = 2.0
"""Between two samples."""


def command(data: Path, out: Path, epochs: int) -> list[str]:
    """Returns the command that trains the run, or goes on with it."""
    train = [sys.executable, "-m", "kresume", "train", "--data", str(data), "--out", str(out), "--epochs", str(epochs)]
    return [*train, *OPTIONS.split(), "--model", "convnet"]


def sample(process: int, out: Path) -> dict[str, float] | None:
    """Returns epochs done, resident memory in MB and open files; None if the process has ended."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
        files = len(os.listdir(f"/proc/{process}/fd"))
    except OSError:
        return None
    sizes = [int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:")]
    if not sizes:
        return None  # it has ended, and nobody has asked how
    lines = (out / "metrics.jsonl").read_bytes().count(b"\n") if (out / "metrics.jsonl").exists() else 0
    return {"pid": process, "epoch": lines, "mb": round(sizes[0] / 1024, 1), "files": files}


def soak(work: Path, epochs: int, environment: dict[str, str]) -> str:
    """Trains the run to its end, or as far as it comes; returns a row of the table."""
    out, samples = work / "run", work / "samples.jsonl"
    if not (work / "data").exists():
        write_pictures(work / "data", count=8)
    with (work / "train.log").open("ab") as log:
        process = subprocess.Popen(command(work / "data", out, epochs), env=environment, stdout=log, stderr=log)
    try:
        while process.poll() is None:
            time.sleep(SECONDS)
            taken = sample(process.pid, out)
            if taken and taken["epoch"]:
                with samples.open("a") as file:
                    file.write(json.dumps(taken) + "\n")
    finally:
        process.terminate()  # it writes a snapshot
        process.wait()
    return row(samples, environment["KERAS_BACKEND"])


def row(samples: Path, backend: str) -> str:
    """Returns the row of the process that trained the most epochs."""
    taken = [json.loads(line) for line in samples.read_text().splitlines()]
    by_process = [[one for one in taken if one["pid"] == pid] for pid in {one["pid"] for one in taken}]
    longest = max(by_process, key=lambda each: each[-1]["epoch"] - each[0]["epoch"])
    first, last = longest[0]["epoch"], longest[-1]["epoch"]
    tenth = (last - first) / 10

    def within(low: float, high: float, name: str) -> float:
        return float(
            np.median([one[name] for one in longest if first + low * tenth <= one["epoch"] <= first + high * tenth])
        )

    early, late = within(1, 2, "mb"), within(9, 10, "mb")
    opened = f"{within(1, 2, 'files'):.0f} -> {within(9, 10, 'files'):.0f}"
    return (
        f"| {backend} | {last - first:,} | {early:,.0f} | {late:,.0f} | {100 * (late / early - 1):+.1f} % | {opened} |"
    )


def lengthen(run: Path, lines: int) -> None:
    """Makes the records of a run as long as if so many epochs had been trained and it had been killed then."""
    record = json.loads((run / runs.RECORD).read_text())
    kept = {name: value for name, value in record.items() if name not in {"result", "best", "finished"}}
    (run / runs.RECORD).write_text(json.dumps({**kept, "status": "running"}))
    opened = runs.open_run(run)
    state, _ = snapshot.newest_snapshot(opened.snapshots)
    metrics = runs.read_metrics(opened.metrics)
    done = int(state.records["epoch"])
    steps = int(metrics[done - 1]["step"]) // done
    last = metrics[done - 1]
    with opened.metrics.open("w") as file:
        for epoch in range(1, lines + 1):
            file.write(json.dumps({**last, "epoch": epoch, "step": epoch * steps}) + "\n")
    with (run / "events.jsonl").open("a") as file:
        for index in range(lines):
            file.write(json.dumps({"time": "2026-01-01T00:00:00+00:00", "event": "continued", "step": index}) + "\n")
    groups: dict[str, list[np.ndarray]] = {}
    for name, array in sorted(
        state.arrays.items(), key=lambda item: (item[0].split("/")[0], int(item[0].split("/")[1]))
    ):
        groups.setdefault(name.split("/")[0], []).append(array)
    records = {**state.records, "epoch": lines, "step": lines * steps, "lines": lines, "phase": "epoch"}
    shutil.rmtree(opened.snapshots)
    snapshot.write_snapshot(opened.snapshots, lines * steps, groups, records)


def measured(words: list[str], environment: dict[str, str]) -> str:
    """Runs a command; returns its seconds and its largest resident memory."""
    code = "import resource, subprocess, sys; done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL); "
    code += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(done.returncode)"
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code, *words], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(done.stderr)
    return f"{time.monotonic() - began:.1f} s, {int(done.stdout) / 1024:,.0f} MB"


def long_records(work: Path, lines: int, environment: dict[str, str]) -> list[str]:
    """Measures the commands that read the records of a run with few and with many epochs."""
    if not (work / "data").exists():
        write_pictures(work / "data", count=8)
    rows: dict[str, list[str]] = {"continuing (one epoch)": [], "kresume log": [], "kresume report": []}
    for count in (10, lines):
        out = work / f"long-{count}"
        shutil.rmtree(out, ignore_errors=True)
        train = command(work / "data", out, count + 1)
        process = subprocess.Popen(train, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not (out / "metrics.jsonl").exists() and process.poll() is None:
            time.sleep(0.2)
        process.terminate()
        process.wait()
        lengthen(out, count)
        rows["continuing (one epoch)"].append(measured(train, environment))
        for name, words in (("log", [str(out)]), ("report", [str(out)])):
            rows[f"kresume {name}"].append(measured([sys.executable, "-m", "kresume", name, *words], environment))
    return [f"| {name} | {' | '.join(found)} |" for name, found in rows.items()]


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, help="train a run of so many epochs")
    parser.add_argument("--lines", type=int, help="measure a run with records of so many epochs")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--backend", default="tensorflow", choices=["tensorflow", "jax"])
    asked = parser.parse_args()
    work = asked.work / asked.backend
    work.mkdir(parents=True, exist_ok=True)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    environment = {**os.environ, "KERAS_BACKEND": asked.backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    if asked.epochs:
        print(
            "| backend | epochs of one process | early, MB | late, MB | change | open files |\n|---|---|---|---|---|---|"
        )
        print(soak(work, asked.epochs, environment))
    if asked.lines:
        print(f"| command | 10 epochs | {asked.lines:,} epochs |\n|---|---|---|")
        print("\n".join(long_records(work, asked.lines, environment)))


if __name__ == "__main__":
    main()
