"""Draws pictures of shapes and smooth photos, and writes them into class folders."""

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("circle", "square", "stripes")


def draw(label: str, seed: int, size: int = 20) -> np.ndarray:
    """Draws a noisy picture of a shape, `(size, size, 3) uint8`; each seed gives other bytes."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:size, :size]
    centre = size / 2 + rng.uniform(-2, 2, 2)
    if label == "circle":
        shape = (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < (size / 3) ** 2
    elif label == "square":
        shape = (abs(rows - centre[0]) < size / 4) & (abs(columns - centre[1]) < size / 4)
    else:
        shape = (columns + rng.integers(4)) % 4 < 2
    picture = np.where(shape[..., None], 200, 40) + rng.integers(-30, 30, (size, size, 3))
    return np.clip(picture, 0, 255).astype(np.uint8)


def write_pictures(folder: Path, count: int, first_seed: int, classes: tuple[str, ...] = CLASSES) -> Path:
    """Writes `count` PNG files for each class."""
    for place, label in enumerate(classes):
        (folder / label).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            seed = first_seed + 1000 * place + index
            Image.fromarray(draw(label, seed)).save(folder / label / f"{seed}.png")
    return folder


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
