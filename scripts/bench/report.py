"""Measures what the report costs: its time at the end of a run, as a command of its own, and its size.

    python scripts/bench/report.py ../shared/data/signdigits

Takes about 3 minutes on 2 cores; --quick about 1. To reach: under 3 s at the end of a run, under 3 MB.

Trains on `old/`, then adds `new/`, each in a process of its own, as a user would. The time of the report is taken inside
that process, around the call that writes it; what it imports for the first time counts. Medians over the repetitions.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CHILD = """
import json, sys, time
start = time.monotonic()
from kresume.options.resolve import from_arguments
from kresume.reporter import Reporter
from kresume.training import finish, resume
spent = []
write = finish._write_report
def timed(session):
    begun = time.monotonic()
    path = write(session)
    spent.append(time.monotonic() - begun)
    return path
finish._write_report = timed
parent, arguments = json.loads(sys.argv[1])
result = resume.train(from_arguments(parent, arguments), Reporter(quiet=True))
assert not result.failures, result.failures
print(json.dumps([time.monotonic() - start, spent[0]]))
"""


def child(parent: str | None, **arguments: object) -> tuple[float, float]:
    """Trains in a process of its own; returns the seconds of the whole run and of its report."""
    command = [sys.executable, "-c", CHILD, json.dumps([parent, arguments])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    whole, report = json.loads(done.stdout.splitlines()[-1])
    return whole, report


def alone(run: Path) -> float:
    """Returns the seconds of `kresume report RUN` with the start of Python."""
    start = time.monotonic()
    subprocess.run([sys.executable, "-m", "kresume", "report", str(run)], capture_output=True, check=True)
    return time.monotonic() - start


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="a folder with `old/` and `new/`")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one repetition")
    asked = parser.parse_args()
    figures: dict[str, list[tuple[float, float, float, float]]] = {}
    for _ in range(1 if asked.quick else asked.repeat):
        folder = Path(tempfile.mkdtemp(prefix="kresume-bench-"))
        common = {"image_size": "64", "epochs": 5, "backend": "tensorflow", "cache": str(folder / "cache")}
        first, second = folder / "runs" / "1-signs", folder / "runs" / "2-signs"
        old = [str(asked.data / "old")]
        for name, run, spent in (
            ("first training", first, child(None, data=old, out=str(first), **common)),
            ("new pictures added", second, child(str(first), add=[str(asked.data / "new")], out=str(second), epochs=5)),
        ):
            size = (run / "report.html").stat().st_size / 1e6
            figures.setdefault(name, []).append((*spent, alone(run), size))
        shutil.rmtree(folder)
    print("| run | the whole run | its report | share | `kresume report RUN` | size |\n|---|---|---|---|---|---|")
    for name, rows in figures.items():
        whole, report, command, size = (statistics.median(column) for column in zip(*rows, strict=True))
        share = 100 * report / whole
        print(f"| {name} | {whole:.1f} s | {report:.2f} s | {share:.1f} % | {command:.1f} s | {size:.2f} MB |")


if __name__ == "__main__":
    main()
