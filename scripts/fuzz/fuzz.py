"""Reads damaged files and reports whatever is neither a value nor an error in words.

    python scripts/fuzz/fuzz.py torch-zip --inputs 20000 --seed 0
    python scripts/fuzz/fuzz.py                        # lists the readers
    python scripts/fuzz/fuzz.py torch-zip --seed 0 --only 4711     # one input again, with its traceback

Each input is a good file with seeded damage. It must end in a value or in a KresumeError within 10 seconds of CPU time
and 1 GB of memory. The inputs are read in a process of their own: one that dies or hangs is a finding, and the next
process goes on behind that input. The files of each finding are written below `--findings`, with the traceback.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import random
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]

import mutations  # noqa: E402
import targets  # noqa: E402

SECONDS, BYTES = 10.0, 2**30
WALL_SECONDS = 120.0
"""Limit of the clock on the wall, for a process that waits instead of computing."""


def make(reader: str, seed: int, index: int) -> tuple[mutations.Files, str]:
    """Returns the files of one input and the name to read."""
    rng = random.Random(f"{reader} {seed} {index}")
    good = targets.inputs_of(reader)
    chosen, other = rng.choice(good), rng.choice(good)
    kept = {name: chosen.files[name] for name in chosen.whole}
    damaged = {name: data for name, data in chosen.files.items() if name not in kept}
    return {**mutations.mutate(damaged, other.files, rng), **kept}, chosen.entry


def write(files: mutations.Files, folder: Path) -> None:
    """Writes the files of one input below a folder."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def outcome(reader: str, path: Path) -> tuple[str, str]:
    """Reads one input; returns "value", "refused" or the finding, and the traceback of a finding."""
    from kresume.errors import KresumeError

    try:
        targets.TARGETS[reader].read(path)
    except KresumeError as error:
        return ("refused", "") if "\n" not in str(error) else ("a message of several lines", traceback.format_exc())
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        place = traceback.extract_tb(error.__traceback__)[-1]
        ours = [frame for frame in traceback.extract_tb(error.__traceback__) if "/kresume/" in frame.filename][-1:]
        where = "".join(f" from {Path(frame.filename).name}:{frame.lineno}" for frame in ours if frame != place)
        return f"{type(error).__name__} in {Path(place.filename).name}:{place.lineno}{where}", traceback.format_exc()
    return "value", ""


def work(reader: str, seed: int, first: int, last: int) -> None:
    """Reads inputs and prints one line before and one after each."""
    faulthandler.enable()
    warnings.simplefilter("ignore")
    say = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # libraries print to stdout
    good = targets.inputs_of(reader)
    with tempfile.TemporaryDirectory(prefix="kresume-fuzz-") as folder:
        write(good[0].files, Path(folder))
        os.chdir(folder)
        targets.TARGETS[reader].read(Path(folder) / good[0].entry)  # imports what the reader needs
        os.chdir("/")
    _limit_memory()
    print("ready", file=say)
    for index in range(first, last):
        with tempfile.TemporaryDirectory(prefix="kresume-fuzz-") as folder:
            files, entry = make(reader, seed, index)
            write(files, Path(folder))
            print(f"start {index}", file=say)
            os.chdir(folder)  # paths inside of a manifest are relative to it
            Path("/proc/self/clear_refs").write_text("5")
            before, began = _memory("VmRSS"), time.process_time()
            kind, trace = outcome(reader, Path(folder) / entry)
            if _memory("VmHWM") - before > BYTES:
                kind = f"more than {BYTES / 2**30:g} GB of memory"
            if time.process_time() - began > SECONDS:
                kind = f"more than {SECONDS:g} s"
            os.chdir("/")
            print("done", json.dumps([index, kind, trace]), file=say)


def _memory(what: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{what}:"))


def _limit_memory() -> None:
    """Keeps a read that asks for far too much from filling the machine."""
    limit = _memory("VmSize") + 6 * BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


class Findings:
    """Counts outcomes and writes the files of findings.

    Args:
        reader: the reader's name.
        seed: the seed of the inputs.
        folder: findings are written below it, at most `FEW` of a kind.
    """

    FEW = 3

    def __init__(self, reader: str, seed: int, folder: Path) -> None:
        self.reader, self.seed, self.folder = reader, seed, folder
        self.counts: Counter[str] = Counter()

    def add(self, index: int, kind: str, trace: str) -> None:
        """Counts one outcome."""
        self.counts[kind] += 1
        if kind in {"value", "refused"} or self.counts[kind] > self.FEW:
            return
        place = self.folder / self.reader / f"{self.seed}-{index}"
        place.mkdir(parents=True, exist_ok=True)
        write(make(self.reader, self.seed, index)[0], place)
        (place / "finding.txt").write_text(f"{kind}\n\n{trace}", encoding="utf-8", errors="backslashreplace")
        print(f"{self.reader}: input {index}: {kind}", flush=True)


def watch(reader: str, seed: int, first: int, last: int, findings: Findings) -> int:
    """Runs one worker; returns the index at which the next one goes on."""
    with tempfile.TemporaryFile("w+") as errors:
        command = [
            sys.executable,
            str(Path(__file__).absolute()),
            reader,
            "--seed",
            str(seed),
            "--work",
            str(first),
            str(last),
        ]
        quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", **os.environ}
        worker = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=quiet)
        assert worker.stdout is not None  # noqa: S101
        used = 0.0
        current: int | None = None
        while True:
            began = time.monotonic()
            while not select.select([worker.stdout], [], [], 1)[0]:
                waited = time.monotonic() - began
                if current is not None and (waited > WALL_SECONDS or _computed(worker.pid) - used > SECONDS):
                    worker.send_signal(signal.SIGABRT)  # faulthandler writes where it hangs
                    break
            line = worker.stdout.readline()
            if not line:
                break
            word, _, rest = line.partition(" ")
            if word == "start":
                current, used = int(rest), _computed(worker.pid)
            elif word == "done":
                index, kind, trace = json.loads(rest)
                findings.add(index, kind, trace)
                current, first = None, index + 1
        code = worker.wait()
        if current is None and code == 0:
            return last
        errors.seek(0)
        text = errors.read()[-8000:]
        if current is None:
            sys.exit(f"{reader}: the worker could not start ({code}):\n{text}")
        name = signal.Signals(-code).name if code < 0 else f"exit {code}"
        findings.add(current, f"the process hung or died ({name})", text)
        return current + 1


def _computed(pid: int) -> float:
    """Returns the seconds of CPU time that a process has used, which do not depend on the machine's other work."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Fuzzes one reader."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reader", nargs="?", choices=sorted(targets.TARGETS), help="what to fuzz")
    parser.add_argument("--inputs", type=int, default=20_000, help="number of damaged files (20,000)")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other damage (0)")
    parser.add_argument("--first", type=int, default=0, help="index of the first input (0)")
    parser.add_argument("--findings", type=Path, default=Path("findings"), help="folder for inputs that failed")
    parser.add_argument("--only", type=int, help="read this input alone, in this process")
    parser.add_argument("--work", type=int, nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.reader is None:
        print("\n".join(targets.TARGETS))
    elif given.work is not None:
        work(given.reader, given.seed, *given.work)
    elif given.only is not None:
        with tempfile.TemporaryDirectory() as folder:
            files, entry = make(given.reader, given.seed, given.only)
            write(files, Path(folder))
            print(targets.TARGETS[given.reader].read(Path(folder) / entry))
    else:
        found, began = Findings(given.reader, given.seed, given.findings), time.monotonic()
        next_one, last = given.first, given.first + given.inputs
        while next_one < last:
            next_one = watch(given.reader, given.seed, next_one, last, found)
        counts = ", ".join(f"{count:,} {kind}" for kind, count in found.counts.most_common())
        print(f"{given.reader}: {given.inputs:,} inputs in {time.monotonic() - began:.0f} s: {counts}")
        sys.exit(1 if set(found.counts) - {"value", "refused"} else 0)


if __name__ == "__main__":
    main()
