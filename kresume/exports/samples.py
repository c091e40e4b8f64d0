"""Selects the images that an export is compared on, with the model's own predictions.

with gather_samples(loaded, data=[], limit=256, reporter=reporter) as samples:
    samples.reference            # (n, classes) by the model in memory, through the pipeline that training used
    samples.inputs("bytes")      # the same images in the form that a runtime expects
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kresume.errors import ImagesError
from kresume.evaluation.score import predict_all
from kresume.images import pipeline
from kresume.images.collect import name_numbers
from kresume.images.decode import as_served, decode
from kresume.images.inputs import to_input
from kresume.images.manifest import Manifest
from kresume.images.reader import as_files
from kresume.images.sources import list_images
from kresume.images.sources.found import Found
from kresume.images.sources.records import check_features
from kresume.models.load import Loaded
from kresume.reporter import Reporter
from kresume.runtimes.signatures import Input
from kresume.spelling import option
from kresume.storage.locations import read_range
from kresume.tasks.single_label import SINGLE_LABEL
from kresume.tasks.task import Task
from kresume.values.decode_spec import DecodeSpec
from kresume.values.input_layout import RGB, InputLayout

LIMIT = 256
GENERATED = 32
BATCH = 32


@dataclass(frozen=True)
class Samples:
    """Images with the model's own predictions.

    Attributes:
        files: their paths.
        labels: `(n,)` class indices, -1 if unknown.
        classes: the class names, in the order of `reference`.
        pictures: `(n, height, width, 3) uint8`, decoded as for training.
        reference: `(n, classes) float64`: the model's probabilities.
        outputs: `(n, outputs) float64`: the raw outputs of the model's own forward pass.
        folder: holds `pictures.npy`, and `values.npy`: the model's inputs, `float32`.
        origin: what the images are, in words.
        layout: how the model takes an image.
        task: judges the predictions.
    """

    files: tuple[str, ...]
    labels: np.ndarray
    classes: tuple[str, ...]
    pictures: np.ndarray
    reference: np.ndarray
    outputs: np.ndarray
    folder: Path
    origin: str
    layout: InputLayout = RGB
    task: Task = SINGLE_LABEL

    @property
    def answers(self) -> np.ndarray:
        """Returns the classes that the model predicts, as indices."""
        return self.task.answers(self.reference)

    def sent(self, given: Input, *pixels: str) -> dict[str, Any]:
        """Returns the request fields for a signature: files, or arrays of its shape and dtype.

        Args:
            given: the signature's input.
            pixels: the pixel conventions of the numbers that clients send; the arrays of several are concatenated.
        """
        if given.kind == "bytes":
            return {"files": list(self.files)}
        layout = given.layout(self.pictures.shape[1:3], self.layout)
        conventions = pixels if given.kind == "values" else ("0-255",)
        parts = [np.asarray(to_input(each, layout)(self.pictures)) for each in conventions]
        dtype = given.dtype if given.dtype in {"uint8", "float16", "float64"} else "float32"
        path = self.folder / f"sent-{given.name.replace('/', '-')}.npy"
        np.save(path, np.concatenate(parts).astype(dtype))
        return {"array": str(path)}

    def inputs(self, kind: str) -> dict[str, Any]:
        """Returns the request fields for a runtime that expects `"bytes"`, `"pictures"` or `"values"`."""
        return {"files": list(self.files)} if kind == "bytes" else {"array": str(self.folder / f"{kind}.npy")}


@contextmanager
def gather_samples(
    loaded: Loaded,
    data: Sequence[str],
    reporter: Reporter,
    features: Mapping[str, str] | None = None,
    limit: int = LIMIT,
) -> Iterator[Samples]:
    """Selects images and runs the model on them.

    Uses the images of `data`, else the run's validation images, else its training images; for a bare checkpoint without
    `data` generated images. They are evenly spread, at most `limit`. The folder with the arrays is deleted afterwards.

    Args:
        loaded: the model.
        data: folders with images, one folder per class.
        reporter: prints which images were left out.
        features: names of TFRecord features by role, if they are not the usual ones.
        limit: the largest number of images.

    Yields:
        The images and the model's predictions.

    Raises:
        ImagesError: there are images, but none is usable; the message says why.
    """
    with tempfile.TemporaryDirectory(prefix="kresume-") as name:
        folder = Path(name)
        chosen, labels, origin = _choose(loaded, data, features, reporter, folder)
        files = list(chosen)
        spread = np.unique(np.linspace(0, len(files) - 1, min(limit, len(files))).astype(int))
        kept: list[int] = []
        pictures: list[np.ndarray] = []
        reasons: dict[str, str] = {}
        anew: list[str] = []
        for index in spread:
            outcome = _read(files[index], loaded.spec)
            if isinstance(outcome, str):
                reasons[files[index].name] = outcome
                continue
            picture, encoded = outcome
            kept.append(int(index))
            pictures.append(picture)
            if encoded is not None:
                anew.append(files[index].name)
                copy = folder / f"encoded-{index:06d}.png"
                copy.write_bytes(encoded)
                files[index] = Found(str(copy), files[index].label, str(copy), len(encoded), 0)
        if anew:
            reporter.say(
                f"{len(anew):,} of {len(spread):,} pictures to compare on are sent as PNG, because TensorFlow cannot decode "
                f"their format ({anew[0]}): clients of a served model must convert such pictures too"
            )
        if reasons:
            path, reason = next(iter(reasons.items()))
            reporter.say(f"left out: {len(reasons):,} of {len(spread):,} pictures to compare on; {path}: {reason}")
        if not kept:
            path, reason = next(iter(reasons.items()))
            raise ImagesError(
                f"all {len(spread):,} pictures ({origin}) are unusable to verify the export, the first is {path}: {reason}; "
                f"give others with {option('data', 'PATH')}"
            )
        stack = np.stack(pictures)
        to_model = to_input(loaded.card.pixels, loaded.card.input)
        batches = pipeline.scoring_batches(lambda rows: stack[rows], np.arange(len(stack)), BATCH, to_model)
        outputs = predict_all(loaded.model.predict_on_batch, batches, None)
        reference = loaded.loss.head.probabilities(outputs)
        np.save(folder / "pictures.npy", stack)
        np.save(folder / "values.npy", np.asarray(to_model(stack), np.float32))
        yield Samples(
            tuple(as_files([files[index] for index in kept], folder)),
            np.asarray(labels)[kept],
            loaded.card.classes,
            stack,
            reference,
            outputs,
            folder,
            origin,
            loaded.card.input,
            loaded.loss.head.task,
        )


def _choose(
    loaded: Loaded, data: Sequence[str], features: Mapping[str, str] | None, reporter: Reporter, folder: Path
) -> tuple[Sequence[Found], np.ndarray, str]:
    if data:
        listing = list_images(list(data), reporter, features, classes=loaded.card.classes)
        check_features(features, [listing])
        index_of = {name: index for index, name in enumerate(loaded.card.classes)}
        listed = name_numbers(listing, loaded.card.classes)
        labels = np.array([index_of.get(found.label, -1) for found in listed])
        return list(listed), labels, f"images of {', '.join(data)}"
    if loaded.run is not None:
        manifest = Manifest.read(loaded.run.manifest)
        rows = manifest.val_rows()
        origin = "validation images"
        if not len(rows):
            rows, origin = manifest.train_rows(), "training images (the run has none to validate)"
        return manifest.found(rows), manifest.labels[rows], origin
    made = [Found(path, "", path, 0, 0) for path in _generate(folder, loaded.spec)]
    return made, np.full(GENERATED, -1), f"generated pictures ({option('data', 'PATH')} gives real ones)"


def _read(found: Found, spec: DecodeSpec) -> tuple[np.ndarray, bytes | None] | str:
    """Reads and decodes an image.

    Returns:
        `(image, encoded)`, or a text that says why the image is unusable. `encoded` is another file of the image if a
        served model could not decode its own, else None.
    """
    try:
        content = read_range(found.path, found.offset, found.length, found.coding)
    except (OSError, EOFError) as error:
        return f"it cannot be read ({error})"
    except ImagesError as error:
        return str(error)
    try:
        encoded = as_served(content, spec)
        return decode(content, spec), None if encoded is content else encoded
    except ImagesError as error:
        return str(error)


def _generate(folder: Path, spec: DecodeSpec) -> list[str]:
    """Writes soft coloured noise as PNG files, the same each time."""
    from PIL import Image

    random = np.random.default_rng(0)
    paths = []
    for index in range(GENERATED):
        small = random.integers(0, 256, (4 + index % 5, 4 + index % 3, 3), dtype=np.uint8)
        path = folder / f"generated-{index:02d}.png"
        size = (spec.width + 7 * (index % 4), spec.height + 5 * (index % 3))
        Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(path)
        paths.append(str(path))
    return paths
