"""Writes run directories without training, for tests of the report: any number of classes and images, any names."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from kresume import runs
from kresume.evaluation import answers as answers_file
from kresume.evaluation.answers import Answers, answers_from
from kresume.evaluation.score import score
from kresume.images.cache import Cache, checksum
from kresume.images.manifest import Manifest, ordered, schema
from kresume.storage import atomic
from kresume.tasks.single_label import SINGLE_LABEL
from kresume.values.amount import Amount
from kresume.values.card import Card
from kresume.values.loss import Loss
from kresume.values.rate import RatePlan
from kresume.values.record import ParentRecord, PlanWords, Result, RunRecord
from kresume.values.state import SavedOptimizer

SIDE = 32
WORDS = PlanWords("", "the model's first layer", "", "the class folders, sorted", "a loss", "AdamW", {})


def write_images(folder: Path, classes, *, old=60, new=40, seed=0, names=None, stored=True, dark=True) -> Manifest:
    """Returns a manifest of images that exist only in a cache at `folder/cache`; half of them validate.

    Args:
        folder: of the cache and of the paths.
        classes: class names.
        old: images of generation 0.
        new: images of generation 1, darker ones unless `dark` is False.
        seed: of the pixels and labels.
        names: file names, used in turn; None for plain ones.
        stored: False leaves the cache empty, as where the pictures are gone.
        dark: makes the new images darker.
    """
    rng = np.random.default_rng(seed)
    count = old + new
    pixels = rng.integers(60, 250, (count, SIDE, SIDE, 3)).astype(np.uint8)
    if dark:
        pixels[old:] //= 3
    shas = [hashlib.sha256(f"{seed} {index}".encode()).hexdigest() for index in range(count)]
    cache = Cache.open(Card(("a",), (SIDE, SIDE), "0-255", "stretch", "area").spec, folder / "cache")
    if stored:
        with cache.writer() as writer:
            for sha, picture in zip(shas, pixels, strict=True):
                writer.add(sha, picture, checksum(picture))
    thumbs = pixels.mean(-1).reshape(count, 8, SIDE // 8, 8, SIDE // 8).mean((2, 4)).astype(np.uint8).reshape(count, 64)
    labels = np.arange(count) % len(classes)
    rows = {
        "sha256": shas,
        "path": [
            str(folder / "in" / (names[index % len(names)] if names else f"{index}.png")) for index in range(count)
        ],
        "label": [classes[label] for label in labels],
        "source": ["in"] * count,
        "origin": [0] * old + [1] * new,
        "side": ["val" if index // len(classes) % 2 else "train" for index in range(count)],
        "width": [100] * old + [140] * new,
        "height": [100] * count,
        "bytes": [1] * count,
        "mtime_ns": [1] * count,
        "format": ["PNG"] * count,
        "phash": [0] * count,
        "offset": [0] * count,
        "length": [-1] * count,
        "coding": [""] * count,
        "member": [""] * count,
        "extra": [""] * count,
        "thumb": [thumb.tobytes() for thumb in thumbs],
        "seen": [False] * count,
        "replaced": [""] * count,
        "stamp": [0] * count,
    }
    return Manifest.from_table(ordered(pa.table(rows, schema())), tuple(classes))


def made_answers(manifest: Manifest, accuracy: float, new_accuracy: float, seed: int) -> Answers:
    """Returns answers to the validation images that are right at about these shares of old and new ones."""
    rng = np.random.default_rng(seed)
    rows = manifest.val_rows()
    labels, origins, classes = manifest.labels[rows], manifest.origins[rows], len(manifest.classes)
    right = rng.random(len(rows)) < np.where(origins == 0, accuracy, new_accuracy)
    chosen = np.where(right, labels, (labels + 1 + rng.integers(0, max(classes - 1, 1), len(rows))) % classes)
    probabilities = rng.random((len(rows), classes)) / classes
    probabilities[np.arange(len(rows)), chosen] += rng.uniform(1, 9, len(rows))
    probabilities /= probabilities.sum(1, keepdims=True)
    return answers_from(SINGLE_LABEL, probabilities, labels, origins, manifest.sha256s[rows], manifest.classes)


def scores_of(answers: Answers) -> dict:
    """Returns the scores of answers, with the probabilities that are kept of them."""
    probabilities = np.full((len(answers), len(answers.classes)), 1e-6)
    np.put_along_axis(probabilities, answers.top, answers.top_scores, axis=1)
    return score(
        SINGLE_LABEL,
        probabilities,
        answers.labels,
        origins=answers.origins,
        generation=1,
        classes=answers.classes,
    )


def write_run(path: Path, manifest: Manifest, before: Answers | None, after: Answers, **changes) -> runs.Run:
    """Writes a finished run of generation 1 with two epochs; `changes` replace fields of its record."""
    path.mkdir(parents=True)
    lines = []
    for epoch in (1, 2):
        scores = scores_of(after)
        shares = {"origins": {"old": 0.6, "new": 0.4}, "classes": dict.fromkeys(manifest.classes, 0.1)}
        facts = {"lr": 1e-3 / epoch, "accuracy": 0.4 + epoch / 5, "loss": 2.0 / epoch, "images_per_second": 100.0}
        lines.append({"epoch": epoch, "step": 10 * epoch, **facts, **scores, "shares": shares})
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    manifest.write(path / "images.parquet")
    (path / "quarantine.csv").write_text(
        "path,label,reason\nbad/<b>&.jpg,a,it is empty\nx.jpg,a,the same image also has the label b\n"
    )
    if before is not None:
        answers_file.write(path / "answers" / "before.parquet", before)
    answers_file.write(path / "answers" / "after.parquet", after)
    record = RunRecord(
        kresume="0.2.0",
        status="accepted",
        created="2026-01-02T03:04:05+00:00",
        command="kresume train --from ckpt.keras --add new/",
        generation=1,
        parent=ParentRecord("../ckpt.keras", "keras", 100, "d" * 64),
        given={},
        options={"add": ["new/"], "cache": f"{manifest.paths(np.array([0]))[0].partition('/in/')[0]}/cache"},
        seed=0,
        backend="tensorflow",
        fingerprint={"python": "3.11", "packages": {"keras": "3.15"}, "cpu": "a CPU", "devices": 1, "device": "cpu"},
        card=Card(manifest.classes, (SIDE, SIDE), "0-255", "stretch", "area"),
        loss=Loss("sparse_categorical_crossentropy", False, 0.0, ""),
        optimizer=SavedOptimizer("AdamW", {}, 0),
        rate=RatePlan(1e-2, 1e-3, "cosine", 2, 20, 0.0, "--lr"),
        amount=Amount(2, 20, 32, (10, 20), "--epochs"),
        iterations=100,
        variables={},
        base_step=100,
        images={"total": len(manifest), "added": int((manifest.origins == 1).sum()), "duplicates": 3, "quarantined": 1},
        manifest=manifest.digest(),
        dropped=(),
        not_used=0,
        before=None if before is None else scores_of(before),
        plan=WORDS,
        restored="52 of 52 variables",
        merged={
            "leaks": [["in/1.png", "in/2.png", "validates"]],
            "leaks_count": 1,
            "conflicts": [],
            "conflicts_count": 0,
            "relabels": [["old/b/7.png", "b", "a"]],
            "relabels_count": 1,
        },
        result=Result(20, "last", scores_of(after)),
        finished="2026-01-02T03:14:05+00:00",
    )
    run = runs.Run(path, replace(record, **changes))
    atomic.write_json(path / runs.RECORD, run.record.as_dict())
    for event in (
        {"event": "started", "step": 0},
        {"event": "stopped", "step": 15, "reason": "SIGTERM after step 15"},
        {"event": "continued", "step": 15},
        {"event": "finished", "step": 20},
    ):
        run.event(event.pop("event"), **event)
    return run
