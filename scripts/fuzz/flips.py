"""Flips bits in kresume's own files, one at a time: each must be detected, or change nothing.

    python scripts/fuzz/flips.py --flips 2000 --seed 0

For each kind a good file is made, one bit anywhere in it is flipped, and it is read as kresume reads it. Then either the
reader refuses it (detected), or it gives the very values that were written (harmless): a bit of a blank, or of a field that
nobody uses. A row of the cache that is not found or fails its checksum is decoded again, which is detected, too. Anything
else is a silent change, and fails.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2])]

import numpy as np  # noqa: E402

from kresume import runs  # noqa: E402
from kresume.checkpoints import sealed_arrays, snapshot  # noqa: E402
from kresume.errors import KresumeError  # noqa: E402
from kresume.evaluation import answers  # noqa: E402
from kresume.images.cache import Cache, checksum  # noqa: E402
from kresume.images.manifest import Manifest  # noqa: E402
from kresume.storage import atomic, sealed  # noqa: E402
from kresume.values.decode_spec import DecodeSpec  # noqa: E402

GOLDEN = Path(__file__).parents[2] / "tests" / "golden"
SPEC = DecodeSpec(6, 6, "stretch", "area")


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        make: writes good files into a folder.
        read: reads them, and returns all that a user would get.
    """

    make: Callable[[Path], None]
    read: Callable[[Path], object]


def _make_snapshot(folder: Path) -> None:
    rng = np.random.default_rng(0)
    groups = {"trainable": [rng.normal(size=(5, 7)).astype("f4")], "optimizer": [np.array(3), np.zeros(9, "f4")]}
    snapshot.write_snapshot(folder, 12, groups, {"epoch": 1, "phase": "epoch", "seed": 4, "callbacks": {"rose": [0.5]}})


def _read_snapshot(folder: Path) -> object:
    state, skipped = snapshot.newest_snapshot(folder)
    if skipped:
        raise KresumeError("the snapshot is set aside")
    return state.step, snapshot.digest_of(state.arrays), json.dumps(state.records, sort_keys=True)


def _make_manifest(folder: Path) -> None:
    path = next(GOLDEN.glob("runs/**/images.parquet"))
    Manifest.read(path).write(folder / "images.parquet")


def _read_manifest(folder: Path) -> object:
    manifest = Manifest.read(folder / "images.parquet")
    columns = manifest.table.to_pydict()
    return manifest.classes, manifest.digest(), repr(columns)


def _make_answers(folder: Path) -> None:
    rng, count = np.random.default_rng(0), 60
    made = answers.Answers(
        ("rose", "tulip"),
        np.array([f"{row:064x}" for row in range(count)]),
        rng.integers(0, 2, count).astype(np.int32),
        np.zeros(count, np.int32),
        rng.permuted(np.tile(np.arange(2, dtype=np.int32), (count, 1)), axis=1),
        rng.random((count, 2), np.float32),
        rng.random(count, np.float32),
        rng.random(count, np.float32),
    )
    answers.write(folder / "after.parquet", made)


def _read_answers(folder: Path) -> object:
    found = answers.read(folder / "after.parquet")
    return [repr(np.asarray(value).tolist()) for value in vars(found).values()]


def _pictures() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    names = [hashlib.sha256(bytes([row])).hexdigest() for row in range(20)]
    return {name: rng.integers(0, 256, (6, 6, 3)).astype(np.uint8) for name in names}


def _make_cache(folder: Path) -> None:
    with Cache.open(SPEC, folder).writer() as writer:
        for name, pixels in _pictures().items():
            writer.add(name, pixels, checksum(pixels))


def _read_cache(folder: Path) -> object:
    cache, made = Cache.open(SPEC, folder), _pictures()
    found = cache.find(list(made))
    if (found < 0).any():
        raise KresumeError("an image is decoded again")
    return cache.read(found).tobytes()


def _make_export(folder: Path) -> None:
    source = next(GOLDEN.glob("keras-*/**/*.weights.h5"))
    (folder / "variables").mkdir()
    shutil.copy(source, folder / "model.weights.h5")
    (folder / "variables" / "data").write_bytes(random.Random(0).randbytes(3000))
    files = {
        str(file.relative_to(folder)): {"bytes": file.stat().st_size, "sha256": atomic.sha256_of_file(file)}
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
    record = {"export_format": 1, "labels": ["rose", "tulip"], "card": {"pixels": "0-255"}, "files": files}
    atomic.write_json(folder / sealed.NAME, sealed.seal(record))


def _read_export(folder: Path) -> object:
    sealed.check(folder)
    record = json.loads((folder / sealed.NAME).read_bytes())
    used = {name: record[name] for name in ("export_format", "labels", "card", "files")}
    content = {file.name: file.read_bytes() for file in folder.rglob("*") if file.is_file() and file.suffix != ".json"}
    return json.dumps(used), content


def _make_run(folder: Path) -> None:
    golden = runs.open_run(next((GOLDEN / "runs").rglob("run.json")).parent)
    runs.write_record(folder, golden.record)


def _read_run(folder: Path) -> object:
    return json.dumps(runs.open_run(folder).record.as_dict(), sort_keys=True)


def _make_architecture(folder: Path) -> None:
    golden = next((GOLDEN / "runs").rglob("architecture.json"))
    sealed.write(folder / runs.ARCHITECTURE, atomic.read_json(golden))


def _read_architecture(folder: Path) -> object:
    record = runs.open_run(next((GOLDEN / "runs").rglob("run.json")).parent).record
    return json.dumps(runs.Run(folder, record).read_architecture(), sort_keys=True)


def _make_arrays(folder: Path) -> None:
    rng = np.random.default_rng(0)
    sealed_arrays.write(folder / runs.HELD, {"0": rng.normal(size=(5, 7)).astype("f4"), "1": np.arange(3)})


def _read_arrays(folder: Path) -> object:
    found = sealed_arrays.read(folder / runs.HELD)
    return {name: (str(array.dtype), array.shape, array.tobytes()) for name, array in found.items()}


KINDS = {
    "run.json": Kind(_make_run, _read_run),
    "architecture.json": Kind(_make_architecture, _read_architecture),
    "slots of frozen layers, weights of a teacher": Kind(_make_arrays, _read_arrays),
    "snapshot": Kind(_make_snapshot, _read_snapshot),
    "manifest": Kind(_make_manifest, _read_manifest),
    "answers": Kind(_make_answers, _read_answers),
    "cache shard": Kind(_make_cache, _read_cache),
    "export": Kind(_make_export, _read_export),
}


def flip(name: str, folder: Path, flips: int, seed: int) -> tuple[Counter[str], list[str]]:
    """Flips bits of one kind of file.

    Returns:
        How often a flip was `detected`, `harmless` or `silent`, and the places of those that neither was.
    """
    kind, rng = KINDS[name], random.Random(f"{name} {seed}")
    kind.make(folder)
    good = kind.read(folder)
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and file.name != snapshot.LATEST]
    counts: Counter[str] = Counter()
    found = []
    for _ in range(flips):
        file = rng.choice(files)
        content = file.read_bytes()
        damaged = bytearray(content)
        at, bit = rng.randrange(len(content)), rng.randrange(8)
        damaged[at] ^= 1 << bit
        file.write_bytes(damaged)
        try:
            outcome = "harmless" if kind.read(folder) == good else "silent"
        except KresumeError:
            outcome = "detected"
        except Exception as error:  # a finding, too: the user would see a traceback
            outcome = f"{type(error).__name__}: {error}"
        counts[outcome if outcome in {"harmless", "detected"} else "silent"] += 1
        if outcome not in {"harmless", "detected"}:
            found.append(f"{name}: {file.name}, byte {at} of {len(content)}, bit {bit}: {outcome}")
        file.write_bytes(content)
    return counts, found


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"all, or some of: {', '.join(KINDS)}")
    parser.add_argument("--flips", type=int, default=2_000, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    rows, silent = [], 0
    for name in asked.kinds or KINDS:
        with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
            counts, found = flip(name, Path(folder), asked.flips, asked.seed)
        silent += counts["silent"]
        rows.append(
            f"| {name} | {counts.total():,} | {counts['detected']:,} | {counts['harmless']:,} | {counts['silent']} |"
        )
        sys.stderr.write("".join(f"{line}\n" for line in [rows[-1], *found[:20]]))
    print("| file | flips | detected | harmless | silent |\n|---|---|---|---|---|")
    print("\n".join(rows))
    sys.exit(1 if silent else 0)


if __name__ == "__main__":
    main()
