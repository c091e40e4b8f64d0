"""Cuts the power, in thought, at every instant of a training, a backup, a cache and an export, and goes on.

    python scripts/bench/powercut.py                       # every state, some of them to the end; takes about 10 minutes
    python scripts/bench/powercut.py run --continued 40    # one folder only

Each small job runs once while `strace` (Debian package `strace`) records what it does to its folder. `disk_states.py`
lists the states in which a power cut may leave the folder. Each must be accepted by what the next process reads first,
with nothing lost that was acknowledged: no step that a durable `LATEST` named, no result, no export, no removal. A sample
is continued to the end, and must end with the bytes of the job that was not interrupted.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import sys
import tempfile
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import disk_record
import disk_states
import numpy as np
from disk_record import Recording
from disk_states import State

from kresume import runs
from kresume.checkpoints import snapshot
from kresume.checkpoints.read import read_checkpoint
from kresume.drop_in import backup_files
from kresume.errors import KresumeError
from kresume.images.cache import Cache, checksum
from kresume.images.manifest import Manifest
from kresume.images.scans import epochs_begun, read_scans
from kresume.storage import atomic
from kresume.training.loop.progress import Progress
from kresume.values.decode_spec import DecodeSpec

TRAINING = {"image_size": "8", "batch_size": 6, "epochs": 2, "val_split": 0.25, "snapshot_every": "1", "keep": 2}
OPTIONS = {**TRAINING, "monitor": "val_loss", "watch": True, "cache": "off"}
RUN = "runs/1-cut"


@dataclass(frozen=True)
class Job:
    """A job whose power is cut.

    Attributes:
        do: does it in a folder; is called with the folder and `Recording.mark`.
        problems: lists what is wrong with a folder after a power cut; is called with what had been acknowledged, too.
        result: reads what the job made; None for a job that does not go on.
    """

    do: Callable[[Path, Callable[[str], None]], None]
    problems: Callable[[Path, State], list[str]]
    result: Callable[[Path], object] | None = None


def _acknowledged(state: State) -> list[int]:
    """Returns the steps that a durable `LATEST` has named."""
    return [int(text.removeprefix("step-").partition("-")[0]) for kind, text in state.acknowledged if kind == "pointer"]


# Runs


def write_pictures(folder: Path) -> None:
    """Writes two classes of noise, one brighter than the other."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for label in range(2):
        (folder / str(label)).mkdir(parents=True)
        for index in range(8):
            picture = (rng.integers(0, 120, (8, 8, 3)) + 100 * label).astype(np.uint8)
            Image.fromarray(picture).save(folder / str(label) / f"{index}.png")


def train(folder: Path, mark: Callable[[str], None], data: Path) -> None:
    """Trains a run, or continues it, by the same command."""
    from kresume.options.resolve import from_arguments
    from kresume.reporter import Reporter
    from kresume.training import resume

    config = from_arguments(None, {**OPTIONS, "data": [str(data)], "out": str(folder / RUN)})
    resume.train(config, Reporter(quiet=True))
    mark("finished")


def problems_of_run(folder: Path, state: State) -> list[str]:
    """Lists what would make `train` refuse a run, or lose steps of it."""
    path = folder / RUN
    steps = _acknowledged(state)
    if not runs.is_run(path):
        lost = ["the run is gone"] if steps else []
        return lost + ["what is there is no run"] * (path.exists() and any(path.iterdir()))
    run = runs.open_run(path)
    run.events()
    atomic.read_json(run.architecture)
    if run.finished:
        return _problems_of_result(run)
    if ("mark", "finished") in state.acknowledged:
        return ["the run is not finished any more"]
    snapshot.undo_replacements(run.snapshots)
    found, _ = snapshot.newest_snapshot(run.snapshots)
    progress = Progress.from_records(found.records)
    wrong = [f"step {max(steps)} is lost"] if steps and progress.step < max(steps) else []
    if progress.best is not None:
        snapshot.read_snapshot(snapshot.snapshot_path(run.snapshots, progress.best["step"]))
    runs.keep_lines(run.metrics, progress.lines)
    manifest, begun = Manifest.read(run.manifest), epochs_begun(found.records)
    for epoch, scan in read_scans(path / "images").items():
        manifest = scan.applied_to(manifest) if epoch <= begun else manifest
    return wrong + ["another manifest"] * (found.records["manifest"] != manifest.digest())


def _problems_of_result(run: runs.Run) -> list[str]:
    snapshot.read_snapshot(snapshot.snapshot_path(run.snapshots, run.result_step()))
    atomic.read_json(run.path / "evaluation.json")
    if not run.answers("after").is_file():
        return ["the answers are gone"]
    with zipfile.ZipFile(run.model) as archive:
        return [f"model.keras: {name} is damaged" for name in [archive.testzip()] if name]


def result_of_run(folder: Path) -> object:
    """Returns every array of the result, the lines without the clock, and the answers."""
    run = runs.open_run(folder / RUN)
    if not run.finished:
        return None
    arrays = snapshot.read_snapshot(snapshot.snapshot_path(run.snapshots, run.result_step())).arrays
    clock = {"time", "images_per_second", "waiting_for_images"}
    lines = [{k: v for k, v in line.items() if k not in clock} for line in runs.read_metrics(run.metrics)]
    model = snapshot.digest_of(read_checkpoint(run.model).arrays)
    return snapshot.digest_of(arrays), lines, run.answers("after").read_bytes(), model


# Backups


def fit(folder: Path, mark: Callable[[str], None]) -> None:
    """Trains with `BackupAndRestore`, or continues."""
    import keras

    import kresume

    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, "tanh"), keras.layers.Dense(1)])
    model.compile("adam", "mse")
    x = np.random.default_rng(0).normal(size=(24, 3)).astype("float32")
    backup = kresume.BackupAndRestore(folder / "backup", save_freq=1, strict=False, delete_checkpoint=False)
    log = keras.callbacks.CSVLogger(folder / "log.csv", append=True)
    model.fit(x, x.sum(axis=1), 8, 2, 0, callbacks=[backup, log], shuffle=False)
    np.save(folder / "weights.npy", np.concatenate([array.ravel() for array in model.get_weights()]))


def problems_of_backup(folder: Path, state: State) -> list[str]:
    """Lists what would make `BackupAndRestore` refuse a backup, or lose steps of it."""
    path = folder / "backup"
    steps = _acknowledged(state)
    if not snapshot.list_snapshots(path):
        return [f"step {max(steps)} is lost"] if steps else []
    found, _ = snapshot.newest_snapshot(path)
    backup_files.read_fit(path)
    if (path / "training_metadata.json").exists():
        atomic.read_json(path / "training_metadata.json")
    return [f"step {max(steps)} is lost"] if steps and (found.step or 0) < max(steps) else []


def result_of_backup(folder: Path) -> object:
    """Returns the trained weights."""
    return (folder / "weights.npy").read_bytes()


# The cache

SPEC = DecodeSpec(4, 4, "stretch", "area")


def _pictures() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {f"{index:064x}": rng.integers(0, 256, (4, 4, 3)).astype(np.uint8) for index in range(12)}


def fill(folder: Path, mark: Callable[[str], None]) -> None:
    """Writes a cache in three shards, forgets an image for good, and trims the oldest shard."""
    made = list(_pictures().items())
    for place in range(0, 12, 4):
        with Cache.open(SPEC, folder / "cache").writer() as writer:
            for sha256, pixels in made[place : place + 4]:
                writer.add(sha256, pixels, checksum(pixels))
        mark(f"cached {place + 4}")
    Cache.open(SPEC, folder / "cache").forget({made[5][0]})
    mark("forgotten")
    Cache.open(SPEC, folder / "cache", limit_bytes=6 * 48).trim()


def problems_of_cache(folder: Path, state: State) -> list[str]:
    """Lists images that are not those that were cached, that came back, or that are gone."""
    cache, made = Cache.open(SPEC, folder / "cache"), _pictures()
    found = cache.find(list(made))
    wrong = [
        f"image {place} has other pixels"
        for place, (row, pixels) in enumerate(zip(found, made.values(), strict=True))
        if row >= 0 and not np.array_equal(cache.read(np.array([row]))[0], pixels)
    ]
    marks = [text for kind, text in state.acknowledged if kind == "mark"]
    if "forgotten" in marks:
        return wrong + ["the forgotten image is back"] * bool(found[5] >= 0)
    kept = max((int(text.split()[1]) for text in marks), default=0)
    return wrong + ["an image is gone"] * bool((found[[place for place in range(kept) if place != 5]] < 0).any())


# Exports


def export(folder: Path, mark: Callable[[str], None]) -> None:
    """Places two versions of a folder of files, and replaces a third."""
    from kresume.exports.target import placed, prune

    for number in (1, 2):
        with placed(folder / "served" / str(number)) as temporary:
            _write_export(temporary, number)
        mark(f"served/{number}")
    with placed(folder / "single") as temporary:
        _write_export(temporary, 3)
    mark("single")
    with placed(folder / "single", overwrite=True) as temporary:
        _write_export(temporary, 4)
    mark("single replaced")
    prune(folder / "served", 1, folder / "served" / "2")


def _write_export(folder: Path, number: int) -> None:
    """Writes files in folders, as a SavedModel has them, and the record with their digests."""
    for name in ("saved_model.pb", "variables/variables.index", "variables/data", "assets.extra/warm"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(f"{name} {number}".encode() * 900)
    files = {str(path.relative_to(folder)): atomic.sha256_of_file(path) for path in folder.rglob("*") if path.is_file()}
    atomic.write_json(folder / "export.json", {"number": number, "files": files})


def problems_of_exports(folder: Path, state: State) -> list[str]:
    """Lists exports that are not whole, or gone."""
    wrong, numbers = [], set()
    for path in [*(folder / "served").glob("[0-9]*"), *folder.glob("single*")]:
        if not (path / "export.json").is_file():
            wrong.append(f"{path.name} has no export.json")
            continue
        told = atomic.read_json(path / "export.json")
        numbers.add(told["number"])
        for name, digest in told["files"].items():
            if not (path / name).is_file() or atomic.sha256_of_file(path / name) != digest:
                wrong.append(f"{path.name}: {name} is damaged or gone")
    marks = {text for kind, text in state.acknowledged if kind == "mark"}
    needed = {number for text, number in (("served/2", 2), ("single", 3), ("single replaced", 4)) if text in marks}
    needed |= {1} if "served/1" in marks and "single replaced" not in marks else set()
    return wrong + [f"export {number} is gone" for number in needed - numbers]


# All of them


def jobs(data: Path) -> dict[str, Job]:
    """Returns the jobs by name.

    Args:
        data: a folder of pictures.
    """
    return {
        "run": Job(partial(train, data=data), problems_of_run, result_of_run),
        "backup": Job(fit, problems_of_backup, result_of_backup),
        "cache": Job(fill, problems_of_cache),
        "export": Job(export, problems_of_exports),
    }


def record(job: Job, folder: Path) -> tuple[Recording, object]:
    """Does a job in a new folder; returns the recording, and what it made."""
    folder.mkdir(parents=True)
    with disk_record.recorded(folder) as recording:
        job.do(folder, recording.mark)
    return recording, job.result(folder) if job.result else None


def problems(job: Job, state: State, folder: Path) -> list[str]:
    """Writes a state into a new folder, and lists what is wrong with it."""
    disk_states.write(state.tree, folder)
    for lock in folder.rglob("lock.json"):  # no process outlives a power cut
        with contextlib.suppress(ValueError, TypeError):
            lock.write_text(json.dumps({**json.loads(lock.read_text()), "start": "before"}))
    try:
        return job.problems(folder, state)
    except Exception as error:  # whatever it is, the next process would end with it
        return [
            f"{type(error).__name__}: {error}",
            *([] if isinstance(error, KresumeError) else [traceback.format_exc()]),
        ]


def goes_on(job: Job, state: State, folder: Path, expected: object) -> list[str]:
    """Goes on from a state by the same call; returns what is wrong at the end."""
    wrong = problems(job, state, folder)
    shutil.rmtree(folder)
    problems(replace(job, problems=lambda folder, state: []), state, folder)  # the check may have tidied up
    if wrong or job.result is None:
        return wrong
    try:
        if not (runs.is_run(folder / RUN) and runs.open_run(folder / RUN).finished):
            job.do(folder, lambda text: None)
        return [] if job.result(folder) == expected else ["the result has other bytes"]
    except Exception as error:
        return [f"continued: {type(error).__name__}: {error}", traceback.format_exc()]


def told(state: State, wrong: list[str]) -> str:
    """Describes a state and what is wrong with it in lines."""
    return f"after {state.at} operations, {state.told}: " + "; ".join(wrong)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("jobs", nargs="*", choices=[*JOBS, []], help="default: all")
    parser.add_argument("--continued", type=int, default=60, help="how many states of each job go on to the end")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--most", type=int, default=12, help="how many findings of a job are shown")
    asked = parser.parse_args()
    rng, rows, failed = random.Random(asked.seed), [], 0
    with tempfile.TemporaryDirectory(prefix="powercut-", dir=_in_memory()) as name:
        work = Path(name)
        write_pictures(work / "data")
        for called in asked.jobs or JOBS:
            job = jobs(work / "data")[called]
            record(job, work / f"first-{called}")  # what is made once in a process is not in the recording
            recording, expected = record(job, work / called)
            counts: Counter[str] = Counter()
            sample: list[State] = []
            for state in disk_states.states(recording):
                counts["states"] += 1
                wrong = problems(job, state, work / "state")
                shutil.rmtree(work / "state")
                if wrong:
                    counts["refused or lost"] += 1
                    if counts["refused or lost"] <= asked.most:
                        sys.stderr.write(f"{called}: {told(state, wrong)}\n")
                place = rng.randrange(counts["states"])
                if len(sample) < asked.continued:
                    sample.append(state)
                elif place < asked.continued:
                    sample[place] = state
            for state in sample if job.result else ():
                wrong = goes_on(job, state, work / "state", expected)
                shutil.rmtree(work / "state")
                counts["continued"] += 1
                counts["other bytes"] += bool(wrong)
                if wrong and counts["other bytes"] <= asked.most:
                    sys.stderr.write(f"{called}: {told(state, wrong)}\n")
            failed += counts["refused or lost"] + counts["other bytes"]
            facts = [len(recording.operations), *(counts[name] for name in COLUMNS)]
            rows.append(f"| {called} | {' | '.join(f'{fact:,}' for fact in facts)} |")
            sys.stderr.write(f"{rows[-1]}\n")
    print(f"| folder | operations | {' | '.join(COLUMNS)} |\n|---|{'---|' * (len(COLUMNS) + 1)}")
    print("\n".join(rows))
    sys.exit(1 if failed else 0)


JOBS = ("run", "backup", "cache", "export")
COLUMNS = ("states", "refused or lost", "continued", "other bytes")


def _in_memory() -> str | None:
    """Returns a folder in memory, where a thousand flushes cost nothing; None for the usual one."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


if __name__ == "__main__":
    main()
