"""Measures whether the average of a parent's and its child's weights is better than the child (WiSE: Wortsman et al. 2022).

    python scripts/bench/average.py ../shared/data/signdigits [--seeds 2]

Takes about 3 minutes on 2 cores. A parent is trained on `old/` for 20 epochs and extended with `new/` by default. Its weights
and the child's are mixed in plain Keras, statistics of batch normalisation recomputed. Accuracy on the child's validation
images and on `eval/`.
"""

import argparse
import os
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

SIZE = 48
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)


def pictures(folder: Path, most: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Reads class folders: pictures `(n, 48, 48, 3) float32` and labels."""
    found, labels = [], []
    for label, each in enumerate(sorted(path for path in folder.iterdir() if path.is_dir())):
        for file in sorted(each.iterdir())[:most]:
            picture = ImageOps.exif_transpose(Image.open(file)).convert("RGB")
            found.append(np.asarray(picture.resize((SIZE, SIZE), Image.Resampling.BOX)))
            labels.append(label)
    return np.stack(found).astype("float32"), np.array(labels)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--seeds", type=int, default=2)
    asked = parser.parse_args()
    data = asked.data.resolve()
    import keras

    import kresume
    from kresume.images.manifest import Manifest
    from kresume.images.reader import PictureReader

    unseen, trained = pictures(data / "eval"), pictures(data / "old", 30)[0]
    rows: dict[float, list[list[float]]] = {share: [] for share in SHARES}
    with tempfile.TemporaryDirectory() as name:
        os.environ["KRESUME_CACHE"] = f"{name}/cache"
        for seed in range(asked.seeds):
            paths = [f"{name}/parent-{seed}", f"{name}/child-{seed}"]
            options = {"seed": seed, "quiet": True}
            kresume.resume(None, data=[str(data / "old")], epochs=20, image_size=SIZE, out=paths[0], **options)
            run = kresume.resume(paths[0], add=[str(data / "new")], out=paths[1], **options)
            manifest = Manifest.read(run.manifest)
            chosen = manifest.val_rows()
            images = PictureReader(manifest, run.record.card.spec, None)(chosen).astype("float32")
            labels, new = manifest.labels[chosen], manifest.origins[chosen] == run.generation
            parent, child, mixed = (keras.models.load_model(f"{path}/model.keras") for path in (*paths, paths[1]))
            for share in SHARES:
                for target, one, other in zip(mixed.weights, parent.weights, child.weights, strict=True):
                    target.assign((1 - share) * one + share * other)
                kresume.recompute_statistics(mixed, trained)
                right = mixed.predict(images, verbose=0).argmax(1) == labels
                day = mixed.predict(unseen[0], verbose=0).argmax(1) == unseen[1]
                rows[share].append([100 * each.mean() for each in (right, right[~new], right[new], day)])
    print("| share of the child | validation | old | new | another day |\n|---|---|---|---|---|")
    for share, found in rows.items():
        cells = [
            f"{mean:.1f} ± {spread:.1f} %" for mean, spread in zip(np.mean(found, 0), np.std(found, 0), strict=True)
        ]
        print(f"| {share:g} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
