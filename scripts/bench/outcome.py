"""Measures how good the models are that recipes give, story by story.

    python scripts/bench/outcome.py classes ../shared/data/signdigits [--seeds 3]

`small`: a finished parent, 75 % more pictures of the same classes. `large`: five times as many more. `camera`: the parent
saw one camera, most new pictures are of another. `classes`: three new classes. `gone`: the same, but the old pictures are
gone. `digits`: 1,297 digits of other people added to 500. `weekly`, `weekly-digits`: the new pictures of `large` and
`digits` come in six weeks, and each week extends the run of the week before; `weekly-few`: so does a sixth of all pictures.
Takes about half an hour each on 2 cores; see `stories.py`.

`interrupted` (about 10 minutes): a small network with batch normalisation and Adam at a
constant 2e-3 is killed after 8 of 12 epochs on `old/`; `kresume train --from its-backup --add new/` trains 6 more
epochs with each recipe. Accuracy on the validation images, which choose the default, and on `eval/`, which no choice has
seen; mean and spread (standard deviation) over seeds. Differences under one point are noise.
"""

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pairs
import stories

SIZE = 48

MODEL = f"""
import keras
L = keras.layers

def build(num_classes=10, image_size=({SIZE}, {SIZE})):
    body = []
    for filters in (16, 32, 64):
        body += [L.Conv2D(filters, 3, strides=2, use_bias=False), L.BatchNormalization(momentum=0.9), L.ReLU()]
    head = [L.GlobalAveragePooling2D(), L.Dropout(0.2), L.Dense(num_classes, activation="softmax")]
    model = keras.Sequential([keras.Input((*image_size, 3)), L.Rescaling(1 / 127.5, -1), *body, *head])
    model.compile(keras.optimizers.Adam(2e-3), "sparse_categorical_crossentropy")
    return model
"""

KILLED = """
import os, sys, keras
sys.path.insert(0, sys.argv[1])
from small import build
keras.utils.set_random_seed(int(sys.argv[4]))
data = keras.utils.image_dataset_from_directory(
    sys.argv[2], image_size=(48, 48), batch_size=32, seed=int(sys.argv[4]), interpolation="area", verbose=False)
model = build()
class Die(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 8:
            os.kill(os.getpid(), 9)
model.fit(data, epochs=12, verbose=0, callbacks=[keras.callbacks.BackupAndRestore(sys.argv[3]), Die()])
"""

TRAIN = """
import json, sys
from kresume.training.plan import rate
share, backup, unseen, arguments = json.loads(sys.argv[1])
if share is not None:
    rate.COOLDOWN_SHARE = share
import kresume
run = kresume.resume(backup, **arguments)
print(kresume.evaluate(run, data=unseen).scores["all"]["accuracy"])
"""

STORIES = [
    "interrupted",
    "small",
    "large",
    "camera",
    "classes",
    "gone",
    "digits",
    "weekly",
    "weekly-few",
    "weekly-digits",
]
RECIPES: dict[str, tuple[float | None, dict[str, Any]]] = {
    "keep": (None, {"lr_schedule": "keep"}),
    "rewarm-cosine to 0.3x": (None, {"lr_schedule": "rewarm-cosine", "lr": 6e-4}),
    "rewarm-cosine to 1x": (None, {"lr_schedule": "rewarm-cosine", "lr": 2e-3}),
    **{f"cooldown over the last {share:.0%}": (share, {"lr_schedule": "cooldown"}) for share in (0.2, 0.3, 0.5, 1.0)},
}


def python(code: str, *arguments: object, exit_codes: Sequence[int] = (0,)) -> str:
    """Runs Python code in its own process and returns its output."""
    command = [sys.executable, "-W", "ignore", "-c", code, *arguments]
    return pairs.run(command, {"TF_CPP_MIN_LOG_LEVEL": "3"}, exit_codes)[1]


def interrupted(data: Path, seeds: int) -> None:
    """Prints the table of the story of an interrupted parent."""
    found: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["KRESUME_CACHE"] = str(folder / "cache")
        (folder / "small.py").write_text(MODEL)
        for seed in range(seeds):
            backup = folder / f"backup-{seed}"
            python(KILLED, folder, data / "old", backup, seed, exit_codes=(-signal.SIGKILL,))
            for recipe, (share, options) in RECIPES.items():
                out = folder / f"{seed}-{len(found)}"
                arguments = {
                    "model": f"{folder}/small.py:build", "optimizer": "adam", "epochs": 6, "data": [str(data / "old")],
                    "add": [str(data / "new")], "image_size": str(SIZE), "seed": seed, "val_split": 0.15, "out": str(out),
                    "quiet": True, **options,
                }  # fmt: skip
                unseen = float(python(TRAIN, json.dumps([share, str(backup), str(data / "eval"), arguments])))
                after = json.loads((out / "evaluation.json").read_text())["after"]["all"]["accuracy"]
                found.setdefault(recipe, []).append((100 * after, 100 * unseen))
                print(f"seed {seed}, {recipe}: {100 * after:.1f}, {100 * unseen:.1f}", file=sys.stderr)
                shutil.rmtree(out)
    print("| recipe | validation | another day |\n|---|---|---|")
    for recipe, rows in found.items():
        (val, unseen), (val_spread, unseen_spread) = np.mean(rows, axis=0), np.std(rows, axis=0)
        print(f"| {recipe} | {val:.1f} ± {val_spread:.1f} % | {unseen:.1f} ± {unseen_spread:.1f} % |")


def extended(story: str, data: Path, seeds: int, kept: Path | None, recipes: str) -> None:
    """Prints the table of a story that extends a finished parent; seeds whose rows the file `kept` has are not run again."""
    done: dict[int, list[dict[str, Any]]] = {}
    for line in kept.read_text().splitlines() if kept is not None and kept.exists() else ():
        done |= {int(seed): rows for seed, rows in json.loads(line).items()}
    found: dict[tuple[str, float], list[dict[str, float]]] = {}
    for seed in range(seeds):
        if seed not in done:
            done[seed] = _rows(story, data, seed, recipes)
            if kept is not None:
                with kept.open("a") as file:
                    file.write(json.dumps({seed: done[seed]}) + "\n")
        for row in done[seed]:
            found.setdefault((row.pop("recipe"), row.pop("share")), []).append(row)
    columns = list(next(iter(found.values()))[0])
    print(f"| recipe | compute | {' | '.join(columns)} |\n|---|---|{'---|' * len(columns)}")
    for (recipe, share), rows in found.items():
        cells = []
        for column in columns:
            values = [100 * row[column] for row in rows]
            cells.append(f"{np.mean(values):.1f} ± {np.std(values):.1f} %")
        print(f"| {recipe} | {f'{share:.0%}' if share else '-'} | {' | '.join(cells)} |")


def _rows(story: str, data: Path, seed: int, recipes: str) -> list[dict[str, Any]]:
    """Returns what each recipe gives with one seed."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["KRESUME_CACHE"] = str(folder / "cache")
        stories.share_out(story, data, folder)
        day = "" if story.endswith("digits") else str(data / "eval")
        (folder / "plan.json").write_text(
            json.dumps({"story": story, "folder": name, "seed": seed, "another day": day, "recipes": recipes})
        )
        command = [sys.executable, "-W", "ignore", str(Path(stories.__file__)), str(folder / "plan.json")]
        for line in pairs.run(command, {"TF_CPP_MIN_LOG_LEVEL": "3"})[1].splitlines():
            rows.append(json.loads(line))
            print(f"seed {seed}: {line}", file=sys.stderr)
    return rows


def main() -> None:
    """Prints the table of a story."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("story", choices=STORIES)
    parser.add_argument("data", type=Path, help="a folder with `old/`, `new/` and `eval/`, each with class folders")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--kept", type=Path, help="a file that keeps the rows of each seed: given again, only others are run"
    )
    parser.add_argument(
        "--recipes", default="", help="a regular expression: only the recipes whose names match are run"
    )
    asked = parser.parse_args()
    if asked.story == "interrupted":
        interrupted(asked.data.resolve(), asked.seeds)
    else:
        extended(asked.story, asked.data.resolve(), asked.seeds, asked.kept, asked.recipes)


if __name__ == "__main__":
    main()
