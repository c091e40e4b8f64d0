"""Measures two implementations in alternating pairs; reports the median and quartiles of the ratio.

    asked = pairs.parse(pairs.parser(__doc__))
    measured = pairs.measure(asked, ours, theirs, busy)     # each a function that returns its figure
    pairs.table(COLUMNS, rows, busy)

A ratio is computed within each pair, because two medians drift apart on a machine whose speed changes; a pair does not.
Before each pair, CPU use is sampled. While other processes use the CPU, the bench waits, up to a limit. The note below
the table names the pairs that began on a busy machine. Every script that produces a figure of the README uses this
module.
"""

from __future__ import annotations

import argparse
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PAIRS = 5
"""Number of pairs; fewer give no meaningful quartiles."""
QUIET = 0.15
"""Number of cores that other processes may use before the machine counts as busy."""
WATCHED_SECONDS = 2.0
WAIT_SECONDS = 300.0


@dataclass
class Busy:
    """Counts the measured pairs and notes those that began on a busy machine."""

    pairs: int = 0
    noted: list[str] = field(default_factory=list)

    def wait(self, limit: float) -> None:
        """Waits for an idle CPU, up to a limit; notes a pair that starts busy."""
        self.pairs += 1
        end = time.monotonic() + limit
        while (cores := cores_in_use()) > QUIET and time.monotonic() < end:
            time.sleep(WATCHED_SECONDS)
        if cores > QUIET:
            self.noted.append(f"{cores:.1f} cores in use at pair {self.pairs}")


def cores_in_use(seconds: float = WATCHED_SECONDS) -> float:
    """Returns how many cores other processes use, sampled while this process sleeps.

    Without `/proc/stat`: the load average of the last minute.
    """
    if not Path("/proc/stat").exists():
        return os.getloadavg()[0]
    before = _ticks()
    time.sleep(seconds)
    idle, total = (now - then for now, then in zip(_ticks(), before, strict=True))
    return (os.cpu_count() or 1) * (1 - idle / total) if total else 0.0


def _ticks() -> tuple[int, int]:
    fields = [int(number) for number in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return fields[3] + fields[4], sum(fields)  # idle and waiting for the disk; user, nice, system, ..., steal


def parser(doc: str, quick: str = "one pair of each") -> argparse.ArgumentParser:
    """Makes the argument parser that every bench shares; `doc` is the help text."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument(
        "--pairs", type=int, default=PAIRS, help=f"pairs of each cell; default and least that counts: {PAIRS}"
    )
    made.add_argument("--quick", action="store_true", help=f"{quick}, without waiting: shows that the script works")
    made.add_argument(
        "--wait", type=float, default=WAIT_SECONDS, help="seconds to wait for a quiet machine before a pair"
    )
    return made


def parse(made: argparse.ArgumentParser) -> argparse.Namespace:
    """Parses the command line; `--quick` means one pair and no waiting."""
    asked = made.parse_args()
    if asked.quick:
        asked.pairs, asked.wait = 1, 0.0
    return asked


def measure(
    asked: argparse.Namespace, ours: Callable[[], float], theirs: Callable[[], float], busy: Busy | None = None
) -> list[tuple[float, float]]:
    """Measures pairs, alternating which of the two runs first.

    Args:
        asked: the options, from `parse`.
        ours: measures once and returns the figure: seconds or a speed.
        theirs: the same for the peer.
        busy: waits before each pair; None if pairs take milliseconds and the caller has waited for the whole block.

    Returns:
        A list of `(ours, theirs)`, one for each pair.
    """
    measured = []
    for number in range(asked.pairs):
        if busy is not None:
            busy.wait(asked.wait)
        if number % 2:
            other = theirs()
            measured.append((ours(), other))
        else:
            own = ours()
            measured.append((own, theirs()))
    return measured


def ratio(measured: Sequence[tuple[float, float]], digits: int = 2) -> str:
    """Formats the median and quartiles of the ratio within each pair, as `"0.98 (0.96-1.01)"`."""
    low, middle, high = quartiles([ours / theirs for ours, theirs in measured])
    return f"{middle:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Returns the lower quartile, the median and the upper quartile."""
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def medians(measured: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Returns the medians of ours and of theirs."""
    ours, theirs = zip(*measured, strict=True)
    return statistics.median(ours), statistics.median(theirs)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], busy: Busy | None = None) -> None:
    """Prints a Markdown table below the command that makes it, and a note on busy pairs."""
    print(f"`python {shlex.join([os.path.relpath(sys.argv[0]), *sys.argv[1:]])}`, {os.cpu_count()} cores\n")
    for cells in (columns, ["---"] * len(columns), *rows):
        print(f"| {' | '.join(cells)} |")
    if busy is not None and busy.noted:
        print(f"\nNot quiet ({len(busy.noted)} of {busy.pairs} pairs): {'; '.join(busy.noted)}")
    sys.stdout.flush()


def note(text: str) -> None:
    """Prints a progress line on stderr, because the table appears only at the end."""
    print(text, file=sys.stderr, flush=True)


def run(
    command: Sequence[Any], environment: Mapping[str, str] | None = None, exit_codes: Sequence[int] = (0,)
) -> tuple[float, str]:
    """Runs a process; returns its wall-clock seconds and its output.

    Any other exit code ends the bench.
    """
    start = time.monotonic()
    done = subprocess.run(
        [str(word) for word in command],
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.monotonic() - start
    if done.returncode not in exit_codes:
        sys.exit(f"{shlex.join(map(str, command))}\n{done.stderr}")
    return seconds, done.stdout


def forget(folder: Path) -> None:
    """Drops a folder's files from the page cache, so that the next process reads the disk."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file():
            handle = os.open(path, os.O_RDONLY)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)
