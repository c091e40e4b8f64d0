"""Measures the whole job: `kresume train` against a plain Keras script, from process start to end.

    python scripts/bench/job.py [--cells small-cold phone-decoded ...] [--backend jax]

Takes about 40 minutes on 2 cores (8 more on the first run for the pictures, kept in --work); --quick about 5.

Both load the same `.keras` file (MobileNetV2 at 96 pixels, compiled with Adam), read twice as many old as new JPEGs,
train 3 epochs in batches of 32 with a tenth held out, and save. The plain script is what a competent user writes:
`load_model`, `image_dataset_from_directory` for both folders, `concatenate`, `cache`, `shuffle`, `prefetch`, `fit` with
validation, `save`. Small pictures are 320x240, those of a phone 4000x3000, smooth and without noise. `cold`: nothing
was decoded before. `decoded`: an earlier training has decoded the old pictures into kresume's cache. The plain script
has no such cache and does the same work in both cases. The files are dropped from the page cache before each process.
To reach: 0.9 on new small pictures, 0.5 where most pictures of a phone were decoded before.
"""

import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import pairs

SIZE, BATCH, EPOCHS, CLASSES = 96, 32, 3, 10
KINDS = {"small": ((240, 320), 600), "phone": ((3000, 4000), 200)}
"""Height and width, and how many old pictures; half as many new ones."""
CELLS = [f"{kind}-{state}" for kind in KINDS for state in ("cold", "decoded")]

PLAIN = """
import sys
import keras
import tensorflow as tf
parent, old, new, out, size, batch, epochs = *sys.argv[1:5], *map(int, sys.argv[5:8])
def read(folder):
    return keras.utils.image_dataset_from_directory(
        folder, image_size=(size, size), batch_size=None, seed=0, validation_split=0.1, subset="both", verbose=False)
(train, val), (more, more_val) = read(old), read(new)
train, val = train.concatenate(more).cache(), val.concatenate(more_val).cache()
train = train.shuffle(2000, seed=0).batch(batch, drop_remainder=True).prefetch(tf.data.AUTOTUNE)
val = val.batch(batch).prefetch(tf.data.AUTOTUNE)
model = keras.models.load_model(parent)
model.optimizer.learning_rate = 1e-4
model.fit(train, validation_data=val, epochs=epochs, verbose=0)
model.save(out)
"""
PARENT = """
import sys
import keras
import numpy as np
size, classes = int(sys.argv[2]), int(sys.argv[3])
keras.utils.set_random_seed(0)
inputs = keras.Input((size, size, 3))
scaled = keras.layers.Rescaling(1 / 127.5, offset=-1)(inputs)
model = keras.applications.MobileNetV2(input_tensor=scaled, weights=None, classes=classes)
model.compile(keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy", metrics=["accuracy"])
model.train_on_batch(np.zeros((2, size, size, 3), "float32"), np.array([0, 1]))
model.save(sys.argv[1])
"""


def write_pictures(folder: Path, count: int, size: tuple[int, int], first: int) -> None:
    """Writes JPEGs of smooth colours, the same for the same numbers; keeps existing files."""
    from PIL import Image

    for index in range(first, first + count):
        path = folder / str(index % CLASSES) / f"{index:05d}.jpg"
        if path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(index)
        coarse = rng.integers(0, 256, (12, 16, 3)).astype(np.uint8)
        image = Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC)
        image.save(path.with_suffix(".part"), "JPEG", quality=90)
        path.with_suffix(".part").rename(path)


def main() -> None:
    """Prints the table."""
    made = pairs.parser(__doc__, "one pair of each cell on a tenth of the pictures")
    made.add_argument("--backend", default="tensorflow", choices=["tensorflow", "jax"])
    made.add_argument("--cells", nargs="+", default=CELLS, choices=CELLS)
    made.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "kresume-bench-job")
    asked = pairs.parse(made)
    busy, rows = pairs.Busy(), []
    environment = {"KERAS_BACKEND": asked.backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    share = 10 if asked.quick else 1
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, text in (("plain.py", PLAIN), ("parent.py", PARENT)):
            (folder / file).write_text(text)
        parent = folder / "parent.keras"
        pairs.run([sys.executable, folder / "parent.py", parent, SIZE, CLASSES], environment)
        for cell in asked.cells:
            kind, _, state = cell.partition("-")
            size, count = KINDS[kind][0], KINDS[kind][1] // share
            pictures = asked.work / f"{kind}-{count}"
            pairs.note(f"{cell}: {count} old and {count // 2} new pictures in {pictures}")
            write_pictures(pictures / "old", count, size, 0)
            write_pictures(pictures / "new", count // 2, size, count)
            train = [sys.executable, "-m", "kresume", "train", "--from", parent, "--data", pictures / "old"]
            filled = folder / f"cache-{cell}"
            if state == "decoded":
                before = [*train, "--steps", 1, "--lr", "1e-4", "--out", folder / f"before-{cell}"]
                pairs.run(before, {**environment, "KRESUME_CACHE": str(filled)})
            number = iter(range(10**6))

            def ours(train=train, filled=filled, pictures=pictures, number=number, cell=cell) -> float:
                turn = next(number)
                cache = folder / f"{filled.name}-{turn}"
                if filled.exists():
                    shutil.copytree(filled, cache)
                pairs.forget(pictures)
                options = ["--add", pictures / "new", "--epochs", EPOCHS, "--batch-size", BATCH, "--lr", "1e-4"]
                out = folder / f"run-{cell}-{turn}"
                seconds, _ = pairs.run([*train, *options, "--out", out], {**environment, "KRESUME_CACHE": str(cache)})
                shutil.rmtree(out)
                shutil.rmtree(cache)
                return seconds

            def theirs(pictures=pictures) -> float:
                pairs.forget(pictures)
                words = [parent, pictures / "old", pictures / "new", folder / "plain.keras", SIZE, BATCH, EPOCHS]
                return pairs.run([sys.executable, folder / "plain.py", *words], environment)[0]

            measured = pairs.measure(asked, ours, theirs, busy)
            own, plain = pairs.medians(measured)
            named = f"{kind}, {size[1]}x{size[0]}, {count} old and {count // 2} new"
            decoded = "the old ones" if state == "decoded" else "none"
            rows.append([named, decoded, asked.backend, f"{plain:.1f}", f"{own:.1f}", pairs.ratio(measured)])
            pairs.note(f"{cell}: {pairs.ratio(measured)}")
    columns = ["pictures", "decoded before", "backend", "plain script, s", "kresume train, s", "ratio (quartiles)"]
    pairs.table(columns, rows, busy)


if __name__ == "__main__":
    main()
