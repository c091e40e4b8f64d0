"""Lets processes share a cache that is too small for what they read: every picture must be the one in its file.

    python scripts/bench/shared_cache.py --minutes 60

Each process prepares random pictures at a random size and reads all of them, again and again, as training does. The cache
holds about a quarter of what the processes want, so they remove each other's shards all the time. Now and then a process
is killed by SIGKILL and another one takes its place. Every picture is compared with its file, decoded without a cache.

The table counts pictures that were read, those of them that were decoded again, those that differed, errors, killed
processes, and the largest size of the cache against its limit. Shards that a process still uses are kept, so the limit may
be passed by what all processes use at one moment.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

import numpy as np
from kill import write_pictures

from kresume.images import merging
from kresume.images.cache import Cache
from kresume.images.decode import decode
from kresume.images.prepare import prepare
from kresume.images.reader import PictureReader
from kresume.images.sources import list_images
from kresume.reporter import Reporter
from kresume.values.decode_spec import DecodeSpec

PROCESSES, CLASSES, PICTURES, TAKEN = 4, 4, 150, 100
SIZES = (24, 32, 48)
SECONDS = 15.0
"""About how long a process lives before it is killed."""


def limit() -> int:
    """Returns a quarter of what all pictures take at all sizes, in bytes."""
    return CLASSES * PICTURES * sum(3 * size**2 for size in SIZES) // 4


def once(data: Path, root: Path, rng: random.Random) -> tuple[int, int, int]:
    """Prepares and reads some pictures at one size.

    Returns:
        `(pictures read, pictures that the prepare pass decoded, pictures that differ from their files)`.
    """
    quiet, size = Reporter(quiet=True), rng.choice(SIZES)
    spec = DecodeSpec(size, size, "stretch", "area")
    listing = list_images([data], quiet)
    chosen = sorted(rng.sample(range(len(listing.files)), TAKEN))
    cache = Cache.open(spec, root, limit())
    prepared = prepare([listing.files[index] for index in chosen], spec, cache, quiet)
    merged = merging.merge(None, prepared, None, None, classes=listing.classes, val_split=None, generation=0).manifest
    read = PictureReader(merged, spec, cache)
    wrong = 0
    for start in range(0, len(merged), 10):
        rows = np.arange(start, min(start + 10, len(merged)))
        expected = [decode(Path(found.path).read_bytes(), spec) for found in merged.found(rows)]
        wrong += sum(not np.array_equal(*both) for both in zip(read(rows), expected, strict=True))
    return len(merged), prepared.decoded, wrong


def work(data: Path, root: Path, seed: int) -> None:
    """Reads until it is killed, and prints a line for each time."""
    rng = random.Random(seed)
    while True:
        try:
            print(json.dumps(once(data, root, rng)), flush=True)
        except Exception:  # every fault is counted, and told
            print(json.dumps(traceback.format_exc()), flush=True)


def size_of(root: Path) -> int:
    """Returns the bytes of all shards."""
    found = 0
    for path in root.glob("*/shard-*.bin"):
        try:
            found += path.stat().st_size
        except FileNotFoundError:
            continue
    return found


def share(folder: Path, minutes: float) -> tuple[Counter[str], int, list[str]]:
    """Runs the processes; returns counts, the largest size of the cache, and the tracebacks of errors."""
    data, root, end, largest, seed = folder / "data", folder / "cache", time.monotonic() + 60 * minutes, 0, 0
    write_pictures(data, 0, PICTURES, range(CLASSES))
    root.mkdir()
    rng, counts, files, running = random.Random(0), Counter(), [], {}

    def start() -> None:
        nonlocal seed
        seed += 1
        file = (folder / f"lines-{seed}").open("w")
        files.append(file)
        command = [sys.executable, __file__, "--work", str(data), str(root), str(seed)]
        running[subprocess.Popen(command, stdout=file)] = time.monotonic() + rng.uniform(0.2, 2) * SECONDS

    for _ in range(PROCESSES):
        start()
    while time.monotonic() < end:
        time.sleep(0.2)
        largest = max(largest, size_of(root))
        for process, until in list(running.items()):
            if process.poll() is not None:
                counts["processes that ended"] += 1
            elif time.monotonic() < until:
                continue
            else:
                process.send_signal(signal.SIGKILL)
                process.wait()
                counts["killed"] += 1
            del running[process]
            start()
    for process in running:
        process.kill()
        process.wait()
    errors = []
    for file in files:
        file.close()
        for line in Path(file.name).read_text().splitlines(keepends=True):
            if not line.endswith("\n"):  # killed while it was printed
                continue
            value = json.loads(line)
            if isinstance(value, str):
                errors.append(value)
            else:
                counts.update(dict(zip(("read", "decoded", "wrong"), value, strict=True)))
    return counts, largest, errors


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.work:
        work(Path(asked.work[0]), Path(asked.work[1]), int(asked.work[2]))
    with tempfile.TemporaryDirectory() as name:
        counts, largest, errors = share(Path(name), asked.minutes)
    print("| minutes | read | decoded again | wrong | errors | killed | largest size over the limit |")
    print("|---|---|---|---|---|---|---|")
    row = [f"{asked.minutes:g}", *(f"{counts[key]:,}" for key in ("read", "decoded", "wrong"))]
    row += [str(len(errors) + counts["processes that ended"]), str(counts["killed"]), f"{largest / limit():.2f}"]
    print("| " + " | ".join(row) + " |")
    sys.stderr.write("\n".join(errors[:3]))
    sys.exit(1 if errors or counts["wrong"] or counts["processes that ended"] else 0)


if __name__ == "__main__":
    main()
