"""Kills runs at every snapshot, continues them and compares bytes."""

import json
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from kresume import runs
from kresume.checkpoints import snapshot
from kresume.options.resolve import from_arguments
from kresume.reporter import Reporter
from kresume.training.resume import train

TINY = {"image_size": "12", "batch_size": 5, "epochs": 2, "val_split": 0.25}


def run_training(checkpoint=None, **arguments):
    """Trains in this process, without output, and returns the result."""
    return train(from_arguments(checkpoint, arguments), Reporter(quiet=True))


def lines_without_time(path: Path) -> list[dict]:
    """Returns the lines of `metrics.jsonl` without their wall-clock fields."""
    wall_clock = {"time", "images_per_second"}
    lines = runs.read_metrics(path / "metrics.jsonl")
    return [{name: value for name, value in line.items() if name not in wall_clock} for line in lines]


def result_arrays(path: Path) -> dict[str, np.ndarray]:
    """Returns every array of the result's snapshot."""
    step = runs.open_run(path).result_step()
    return dict(snapshot.read_snapshot(snapshot.snapshot_path(path / "snapshots", step)).arrays)


def assert_same_bytes(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    """Asserts that both hold the same names, types, shapes and bytes."""
    assert sorted(one) == sorted(other)
    for name, array in one.items():
        assert array.dtype == other[name].dtype, name
        assert array.shape == other[name].shape, name
        assert array.tobytes() == other[name].tobytes(), name


def kill_at_every_snapshot(monkeypatch, tmp_path, places=None, **arguments):
    """Trains once to the end, keeping all snapshots; then continues a copy killed after each of them.

    Args:
        places: indices of the snapshots to continue from; None for all.

    Returns:
        The names of the snapshots from which continuations were compared.
    """
    with monkeypatch.context() as patch:
        patch.setattr(snapshot, "prune_snapshots", lambda *_: None)
        whole = Path(run_training(out=str(tmp_path / "whole"), snapshot_every="1", **arguments).run)
    expected, expected_lines = result_arrays(whole), lines_without_time(whole)
    taken = snapshot.list_snapshots(whole / "snapshots")
    chosen = taken if places is None else [taken[place] for place in places]
    for number, (_, last) in enumerate(chosen):
        killed = tmp_path / f"killed-{number}"
        shutil.copytree(whole, killed)
        make_interrupted(killed, last.name)
        run_training(out=str(killed))
        assert_same_bytes(expected, result_arrays(killed))
        assert lines_without_time(killed) == expected_lines, last.name
        assert_same_model(whole, killed)
        shutil.rmtree(killed)
    return [last.name for _, last in chosen]


def make_interrupted(path: Path, last: str) -> None:
    """Reverts a finished run to its state just after it had written the snapshot `last`."""
    later = False
    for _, folder in snapshot.list_snapshots(path / "snapshots"):
        if later:
            shutil.rmtree(folder)
        later = later or folder.name == last
    for name in ("model.keras", "evaluation.json"):
        (path / name).unlink()
    record = json.loads((path / "run.json").read_text())
    for name in ("result", "best", "finished"):
        record.pop(name, None)
    record["status"] = "running"
    (path / "run.json").write_text(json.dumps(record))


def assert_same_model(one: Path, other: Path) -> None:
    """Asserts that the weights in two results' `model.keras` have equal bytes."""
    from kresume.checkpoints.read import read_checkpoint

    assert_same_bytes(
        dict(read_checkpoint(one / "model.keras").arrays), dict(read_checkpoint(other / "model.keras").arrays)
    )


def photo(seed):
    """Draws a smooth picture, unlike that of any other seed, `(64, 64, 3) uint8`."""
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((64, 64), Image.Resampling.BICUBIC))


def save_photo(path, seed, **options):
    """Writes a JPEG of a photo; other `options` make another file of the same picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(photo(seed))
    if "side" in options:
        side = options.pop("side")
        picture = picture.resize((side, side), Image.Resampling.BILINEAR)
    picture.save(path, "JPEG", **({"quality": 92} | options))
