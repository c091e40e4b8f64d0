"""Stories of `outcome.py` that extend a finished parent: how pictures are shared out, trained and judged.

    python scripts/bench/stories.py PLAN.json        # one story with one seed; `outcome.py` starts it

A fifth of the pictures of each origin, chosen by content, is judged on and never trained or validated on; where the data have
pictures of another day (`eval/`), these are judged on, too. 100 % of the
compute is a training from scratch on all other pictures to its plateau. Every recipe extends the same parent; its compute is
counted in pictures processed, the parent's own training not included.
"""

import csv
import hashlib
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import kresume

SIZE, BATCH, EPOCHS = 48, 32, 40
BUDGETS = (0.1, 0.25, 0.5)
RECIPES: dict[str, dict[str, Any]] = {
    "default": {},
    "rewarm to 0.3x": {"lr_scale": 0.3},
    "1:1 by origin": {"mix": "1:1"},
    "stays at the decayed rate": {"lr_scale": 0.02, "lr_schedule": "constant"},
}
GROWN: dict[str, dict[str, Any]] = {
    "default without balance": {"balance": "none"},
    "random rows": {"new_rows": "random"},
    "default, --distill 1": {"distill": 1.0},
}
"""Further recipes where classes are new."""
AVERAGED: dict[str, dict[str, Any]] = {
    f"default, --average {share}": {"average": share} for share in ("0.25", "0.5", "auto")
}
GONE: dict[str, dict[str, Any]] = {
    "--new-only": {"new_only": True},
    **{f"--distill {weight:g}": {"distill": weight} for weight in (1.0, 3.0)},
    "--distill 1, 1x": {"distill": 1.0, "lr_scale": 1.0},
    "--distill 1, 0.1x": {"distill": 1.0, "lr_scale": 0.1},
    "--distill 1 --freeze all but the head": {"distill": 1.0, "freeze": ["conv*", "*norm*", "batch*"]},
    "--new-only --freeze all but the head": {"new_only": True, "freeze": ["conv*", "*norm*", "batch*"]},
    **{f"--new-only --average {share}": {"new_only": True, "average": share} for share in ("0.25", "0.5", "auto")},
    **{
        f"--distill 1{name} --average {share}": {"distill": 1.0, "average": share, **rate}
        for name, rate in (("", {}), (", 1x", {"lr_scale": 1.0}))
        for share in ("0.25", "0.5", "auto")
    },
}
"""Recipes without the old images."""
WEEKS = 6
WEEKLY: dict[str, tuple[float | None, float]] = {
    "default": (None, 1.0),
    "0.3x the rate of the week before": (0.3, 0.3),
    "0.3x the rate of the first run": (0.3, 1.0),
    "0.1x the rate of the first run": (0.1, 1.0),
}
"""Recipes of weekly runs: the factor on the first run's rate in the first week (None: the plan decides), and that of each later
week on the one before."""


def pictures(story: str, data: Path) -> Iterator[tuple[str, str, Path | np.ndarray]]:
    """Yields (origin, class, file or grey picture) of a story."""
    if story in {"digits", "weekly-digits"}:
        from sklearn.datasets import load_digits

        found = load_digits()
        for index, (picture, label) in enumerate(zip(found.images, found.target, strict=True)):
            origin = "old" if index < 500 else "new"
            yield origin, str(label), np.repeat(np.repeat(np.uint8(picture * 15.9), 6, 0), 6, 1)
        return
    rows = [row for row in csv.DictReader((data / "manifest.csv").open()) if row["split"] in {"old", "new"}]
    for row in rows:
        origin = row["split"]
        if story == "camera":
            origin = "old" if row["camera"].startswith("Canon") else "new"
        elif story in {"classes", "gone"}:
            origin = "old" if row["class"] in sorted({each["class"] for each in rows})[:7] else "new"
        elif story in {"large", "weekly"}:
            origin = "old" if int(hashlib.sha256(row["path"].encode()).hexdigest(), 16) % 6 == 0 else "new"
        elif story == "weekly-few":
            origin = "new" if int(hashlib.sha256(row["path"].encode()).hexdigest(), 16) % 6 == 0 else "old"
        yield origin, row["class"], data / row["path"]


def share_out(story: str, data: Path, folder: Path) -> None:
    """Writes `old/`, `new/`, `judge-old/` and `judge-new/` with one folder per class."""
    for number, (origin, label, picture) in enumerate(pictures(story, data)):
        content = picture.read_bytes() if isinstance(picture, Path) else picture.tobytes()
        judged = int(hashlib.sha256(content).hexdigest(), 16) % 5 == 0
        target = folder / (f"judge-{origin}" if judged else origin) / label
        target.mkdir(parents=True, exist_ok=True)
        if isinstance(picture, Path):
            shutil.copy(picture, target / picture.name)
        else:
            from PIL import Image

            Image.fromarray(picture).save(target / f"{number}.png")


def weekly(
    parent: Any,
    folder: Path,
    seed: int,
    whole: float,
    common: dict[str, Any],
    judged: Callable[..., float],
    recipes: str,
) -> None:
    """Extends a run week after week with a part of the new pictures, and judges the last.

    Args:
        parent: the run on the old pictures.
        folder: the folder of the story, with `new/`.
        seed: the seed.
        whole: steps of the training from scratch.
        common: arguments of each run.
        judged: prints what a run gives.
        recipes: a regular expression of the names of the recipes.
    """
    files = [file for file in (folder / "new").rglob("*") if file.is_file()]
    for number, file in enumerate(sorted(files, key=lambda file: hashlib.sha256(file.read_bytes()).digest())):
        target = folder / f"week-{number % WEEKS}" / file.parent.name
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target / file.name)
    for name, (first, later) in WEEKLY.items():
        if not re.search(recipes, name):
            continue
        run, peak, done = parent, parent.record.rate.peak, 0
        for week in range(WEEKS):
            peak *= (first or 1.0) if week == 0 else later
            run = kresume.resume(
                str(run.path),
                add=[str(folder / f"week-{week}")],
                out=str(folder / f"run-{seed}" / f"{week}"),
                **({} if first is None else {"lr": peak}),
                **common,
            )
            done += run.record.amount.steps
        judged(name, done / whole, run)
        print(f"{name}: the last rate is {run.record.rate}", file=sys.stderr)
        shutil.rmtree(folder / f"run-{seed}")


def main() -> None:
    """Trains one story with one seed, and prints a line of JSON per result."""
    plan = json.loads(Path(sys.argv[1]).read_text())
    folder, seed = Path(plan["folder"]), int(plan["seed"])

    common = {"image_size": SIZE, "batch_size": BATCH, "seed": seed, "quiet": True, "val_split": 0.15}
    judges = {"old": str(folder / "judge-old"), "new": str(folder / "judge-new")}
    if plan["another day"]:
        judges["another day"] = plan["another day"]

    def judged(name: str, share: float, run: Any) -> float:
        scores = {name: kresume.evaluate(run, data=path).scores["all"]["accuracy"] for name, path in judges.items()}
        after = json.loads((run.path / "evaluation.json").read_text())["after"]["all"]["accuracy"]
        print(json.dumps({"recipe": name, "share": share, "validation": after, **scores}), flush=True)
        return float(run.record.amount.steps)

    old, new = str(folder / "old"), str(folder / "new")
    scratch = kresume.resume(None, data=[old, new], epochs=EPOCHS, out=str(folder / f"scratch-{seed}"), **common)
    steps = judged("from scratch on everything", 1.0, scratch)
    parent = kresume.resume(None, data=[old], epochs=EPOCHS, out=str(folder / f"parent-{seed}"), **common)
    grows = len(list((folder / "new").iterdir())) and not {each.name for each in (folder / "new").iterdir()} <= {
        each.name for each in (folder / "old").iterdir()
    }
    if not grows:
        judged("parent", 0.0, parent)
    if plan["story"].startswith("weekly"):
        weekly(parent, folder, seed, steps, common, judged, plan["recipes"])
        return
    checkpoint = str(parent.path)
    recipes: dict[str, dict[str, Any]] = RECIPES | AVERAGED | (GROWN if grows else {})
    if plan["story"] == "gone":
        checkpoint = str(folder / f"parent-{seed}.keras")
        recipes = GONE
        shutil.copy(parent.model, checkpoint)  # a bare file remembers no images
    chosen = {name: options for name, options in recipes.items() if re.search(plan["recipes"], name)}
    for name, options in chosen.items():
        for budget in BUDGETS:
            out = folder / f"run-{seed}"
            amount: dict[str, Any] = {
                "steps": max(1, round(budget * steps)),
                "out": str(out),
                "grow": bool(grows) or None,
            }
            judged(name, budget, kresume.resume(checkpoint, add=[new], **common, **amount, **options))
            shutil.rmtree(out)


if __name__ == "__main__":
    main()
