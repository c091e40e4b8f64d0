"""Writes the plain Keras expression that feeds a model as it was trained.

    feeding_line(card)    # 'keras.utils.image_dataset_from_directory("IMAGES", image_size=(48, 48), interpolation=...)'

For users who continue from `model.keras` without kresume. Keras's loader resizes by `bilinear` by default, which skips
pixels of larger pictures: a model trained on averages of areas then loses up to ten points of accuracy
(docs/run-directory.md).
"""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from kresume.images.conventions import find_affine
from kresume.images.decode import shrinks_some
from kresume.images.folder_names import folder_names
from kresume.images.manifest import Manifest
from kresume.values.card import Card
from kresume.values.input_layout import InputLayout

INTERPOLATIONS = {"kerasarea": "area", "antialias": "area"}
"""Keras's names of interpolations where they differ. Its loader has no antialiasing; `area` comes closest."""
EXCEEDING = frozenset({"bicubic", "lanczos3", "lanczos5", "mitchellcubic"})
"""Interpolations whose kernels have negative weights; kresume keeps their values within 0 to 255."""
PADDED = ("pad_to_aspect_ratio=True",)
RESIZES = {"stretch": (), "crop": ("crop_to_aspect_ratio=True",), "pad": PADDED, "keraspad": PADDED}
MOST_CLASSES = 100
SHRINKS = (
    "averages all pixels of a JPEG, which shrank as it was decoded in training, so some answers differ (kerasarea resizes as "
    "it does)"
)


def line_of(model: Any, card: Card, manifest: Manifest | None, *, short: bool = False) -> str:
    """Writes the expression that feeds a compiled model, with the names of the folders that trained it.

    Args:
        model: the compiled model.
        card: its card.
        manifest: the images that trained it; None if they are unknown.
        short: see `feeding_line`.
    """
    shrinks = manifest is not None and shrinks_some(manifest, card.spec)
    folders = folder_names(manifest) if manifest is not None else {}
    return feeding_line(card, rows=takes_rows(model), short=short, shrinks=shrinks, folders=folders)


def feeding_line(
    card: Card,
    *,
    rows: bool = False,
    short: bool = False,
    shrinks: bool = False,
    folders: Mapping[str, Sequence[str]] | None = None,
) -> str:
    """Writes the expression that reads a folder of pictures as the model expects them.

    The expression needs `keras`, and `tf` if it changes the axes or the type. A comment at its end says if it is only nearly
    the same.

    Args:
        card: the model card.
        rows: True if the model's loss expects labels as rows.
        short: True to write at most the first hundred class names.
        shrinks: True if training read JPEGs that shrank while they were decoded, which Keras's loader cannot do.
        folders: the names of each class's folders, the most frequent first, where they are known (`folder_names`).
    """
    height, width = card.image_size
    sampled = INTERPOLATIONS.get(card.interpolation, card.interpolation)
    words = ['"IMAGES"', f"image_size=({height}, {width})", f'interpolation="{sampled}"']
    words += RESIZES[card.resize]
    words += ['color_mode="grayscale"'] * (card.input.channels == 1)
    words += ['label_mode="categorical"'] * rows
    named = [tuple((folders or {}).get(name, ())) or (name,) for name in card.classes]
    if not _sorted_alike(card.classes, named):
        names = ", ".join(_quoted(each[0]) for each in named[: MOST_CLASSES if short else None])
        more = ", ..." if short and len(card.classes) > MOST_CLASSES else ""
        words.append(f"class_names=[{names}{more}]")
    # Keras's loader gives integers for "nearest", which divide by no float.
    read = 'tf.cast(images, "float32")' if card.interpolation == "nearest" else "images"
    converted = _converted(card.pixels, read)
    values = _arranged("images" if converted == read else converted, card.input, card.image_size)
    mapped = f".map(lambda images, labels: ({values}, labels))" if values != "images" else ""
    pads = "rounds borders another way, so some answers differ (keraspad resizes as it does)"
    others = [pads] if card.resize == "pad" else []
    others += ["leaves the range 0 to 255 at edges"] if card.interpolation in EXCEEDING else []
    others += ["has no antialiasing"] if card.interpolation == "antialias" else []
    others += [SHRINKS] if shrinks else []
    others += [f"takes {' and '.join(map(_quoted, each))} for different classes" for each in named if len(each) > 1][:1]
    near = f"  # nearly: Keras's loader {' and '.join(others)}" if others else ""
    return f"keras.utils.image_dataset_from_directory({', '.join(words)}){mapped}{near}"


def _sorted_alike(classes: Sequence[str], named: Sequence[Sequence[str]]) -> bool:
    """Returns True if Keras, which sorts the names of folders, comes to the order of the classes.

    It has to for the names of the folders and for those of the classes: other pictures may lie in folders of these.
    """
    spelled = [(*each, name) for each, name in zip(named, classes, strict=True)]
    return all(len(each) == 1 for each in named) and all(
        max(one) < min(other) for one, other in itertools.pairwise(spelled)
    )


def _quoted(name: str) -> str:
    """Returns a name as code; letters that look like others are escaped."""
    return repr(name) if unicodedata.is_normalized("NFC", name) else ascii(name)


def takes_rows(model: Any) -> bool:
    """Returns True if a compiled model's loss expects labels as rows, not as indices."""
    loss = getattr(model, "loss", None)
    name = loss if isinstance(loss, str) else getattr(loss, "__name__", type(loss).__name__)
    plain = name.lower().replace("_", "")
    return "categorical" in plain and "sparse" not in plain


def _converted(pixels: str, read: str) -> str:
    convention = find_affine(pixels)
    if convention is not None:
        return convention.python(read)
    return f"{pixels.rpartition(':')[2]}({read})"  # a user's own function, by name


def _arranged(values: str, layout: InputLayout, size: tuple[int, int]) -> str:
    """Extends an expression on `(batch, height, width, channels)` to give another layout."""
    if layout.axes in {"hwc", "hw"}:
        ordered = values
    else:
        axes = layout.axes if "c" in layout.axes else f"{layout.axes}c"
        ordered = f"tf.transpose({values}, (0, {', '.join(str(1 + 'hwc'.index(axis)) for axis in axes)}))"
    if layout.flat:
        return f"tf.reshape({ordered}, (-1, {layout.shape(size)[0]}))"
    if "c" in layout.axes:
        return ordered
    return f"({ordered})[..., 0]" if ordered != "images" else "images[..., 0]"
