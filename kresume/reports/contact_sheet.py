"""Draws a contact sheet: training images and their augmented versions.

    draw_sheet(manifest, spec, augmenter("strong", seed=0), Path("out.png"))

Each row shows one image: first as it is, then augmented.
"""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kresume.backend import selection
from kresume.errors import UsageError
from kresume.images.augment import Augment, augmenter
from kresume.images.manifest import Manifest
from kresume.images.order import permutation
from kresume.images.reader import PictureReader
from kresume.images.tf_data import without_autotuner
from kresume.options.resolve import parse_image_size
from kresume.options.settings import SHEET_SIZE, settings_of
from kresume.options.table import TrainConfig
from kresume.reports.data import Scanned
from kresume.staging.output import output_file
from kresume.staging.run_at import run_at
from kresume.storage import atomic
from kresume.tasks import single_label
from kresume.tasks.single_label import SINGLE_LABEL
from kresume.values.decode_spec import DecodeSpec

MIXES = ("mixup", "cutmix", "rand_augment", "erase")
ROWS, MOST_ROWS, VERSIONS = 8, 20, 7
GAP, TEXT = 4, 14
"""Pixels between pictures, and height of a line of text in pixels."""


def draw_sheet(
    manifest: Manifest, spec: DecodeSpec, augment: Augment | None, path: Path, *, rows: int | None = None, seed: int = 0
) -> int:
    """Draws training images and their augmented versions as training would use them.

    Args:
        manifest: the images; shows as many classes as there are rows for.
        spec: the model's image size.
        augment: from `augmenter`; None draws only the original images.
        path: a `.png` file.
        rows: number of images; by default one per class, at least `ROWS` and at most `MOST_ROWS`.
        seed: selects the images.

    Returns:
        The number of images drawn.
    """
    chosen = _choose(manifest, rows or min(max(ROWS, len(manifest.classes)), MOST_ROWS), seed)
    pictures = PictureReader(manifest, spec, None)(chosen)
    versions = [pictures, *_augmented(pictures, manifest.labels[chosen], len(manifest.classes), augment)]
    scale = max(1, 96 // max(spec.height, spec.width))
    height, width = spec.height * scale, spec.width * scale
    columns = len(versions)
    sheet = np.full((len(chosen) * (height + GAP + TEXT), columns * (width + GAP) + GAP, 3), 255, np.uint8)
    for column, batch in enumerate(versions):
        for row, picture in enumerate(batch):
            top, left = row * (height + GAP + TEXT) + TEXT, column * (width + GAP) + GAP
            sheet[top : top + height, left : left + width] = picture.repeat(scale, axis=0).repeat(scale, axis=1)
    names = [manifest.classes[label] for label in manifest.labels[chosen]]
    _write(sheet, names, height + GAP + TEXT, width + GAP if augment is not None else None, path)
    return len(chosen)


def _choose(manifest: Manifest, count: int, seed: int) -> np.ndarray:
    """Selects training rows, one of every class in turn."""
    rows = manifest.train_rows()
    rows = rows[permutation(seed, 0, len(rows))]
    labels = manifest.labels[rows]
    # Number of earlier rows of the same class: sorting by it takes the first row of every class, then the second, ...
    turn = np.array(
        [np.count_nonzero(labels[:index] == label) for index, label in enumerate(labels[: 64 * count])], int
    )
    order = np.lexsort((labels[: len(turn)], turn))
    chosen: np.ndarray = rows[order[:count]]
    return chosen


def _augmented(pictures: np.ndarray, labels: np.ndarray, classes: int, augment: Augment | None) -> list[np.ndarray]:
    if augment is None:
        return []
    import tensorflow as tf

    images = tf.constant(pictures.astype(np.float32))
    targets = SINGLE_LABEL.graph_targets(labels, single_label.ROWS, max(classes, 2))
    # Inside tf.data, as in training: there Keras's layers use TensorFlow operations under either backend.
    positions = tf.data.Dataset.range(0, VERSIONS * len(pictures), len(pictures))
    signature = [tf.TensorSpec([], tf.int64)]
    once = tf.function(
        lambda position: augment(images, targets, position)[0], input_signature=signature, autograph=False
    )
    batches = without_autotuner(positions.map(once))
    return [np.clip(np.round(batch.numpy()), 0, 255).astype(np.uint8) for batch in batches]


FONTS = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "LiberationSans-Regular.ttf", "Arial.ttf", "arial.ttf")
"""Fonts with the letters of most languages, by the names under which systems have them."""


def _font_for(names: Sequence[str]) -> tuple[Any, list[str]]:
    """Returns a font, and the names in letters that it has: Pillow's own has those of English alone."""
    from PIL import ImageFont

    own = ImageFont.load_default()
    if all(name.isascii() for name in names):
        return own, list(names)
    for file in FONTS:
        try:
            return ImageFont.truetype(file, 11), list(names)
        except OSError:  # this system does not have it
            continue
    plain = (
        unicodedata.normalize("NFKD", name).replace("ß", "ss").encode("ascii", "ignore").decode() for name in names
    )
    return own, [name or "?" for name in plain]


def _write(sheet: np.ndarray, names: list[str], step: int, augmented_from: int | None, path: Path) -> None:
    from PIL import Image, ImageDraw

    image = Image.fromarray(sheet)
    pen = ImageDraw.Draw(image)
    pen.font, shown = _font_for(names)
    for row, name in enumerate(shown):
        pen.text((GAP, row * step), name, fill=(0, 0, 0))
    if augmented_from is not None:
        pen.text((augmented_from + GAP, 0), "augmented, as in training", fill=(0, 0, 0))
    with atomic.new_file(path) as temporary:
        image.save(temporary, "PNG")


def sheet_of(scanned: Scanned, options: Mapping[str, Any], path: str) -> int:
    """Draws the contact sheet of a run (with its options) or of images.

    Args:
        scanned: the images.
        options: `image_size`, `augment`, `mixup`, `cutmix`, `rand_augment`, `erase`; override the run's; None if not
            given.
        path: a `.png` file.

    Raises:
        UsageError: an option is invalid, or the file is not a `.png`.
        RunError: its address cannot be written.
    """
    if not path.lower().endswith(".png"):
        raise UsageError(f"--sheet {path}: give a file that ends in .png")
    if "keras" not in sys.modules:
        selection.select(None)
    known: dict[str, Any] = {}
    spec = DecodeSpec(SHEET_SIZE, SHEET_SIZE)
    if len(scanned.sources) == 1 and (run := run_at(scanned.sources[0])) is not None:
        record = run.record
        known, spec = dict(record.options), record.card.spec
    asked = {**known, **{name: value for name, value in options.items() if value is not None}}
    if options.get("image_size"):
        height, width = parse_image_size(options["image_size"])
        spec = DecodeSpec(height, width, spec.resize, spec.interpolation)
    settings = settings_of(TrainConfig(**{name: asked.get(name) for name in (*MIXES, "augment", "seed")}))
    augment = augmenter(settings.augment, settings.seed, *(getattr(settings, name) for name in MIXES))
    with output_file(path) as local:
        return draw_sheet(scanned.manifest, spec, augment, local)
