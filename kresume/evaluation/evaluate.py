"""`kresume eval`: how good a run or a checkpoint is on a folder of images.

evaluation = evaluate("runs/2-signs", data=["signdigits/eval"])
evaluation.as_dict()["all"]["accuracy"]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kresume import devices, runs
from kresume.checkpoints.read import read_checkpoint
from kresume.checkpoints.state import Card
from kresume.errors import ImagesError, UsageError
from kresume.images import merging
from kresume.images.cache import Cache
from kresume.images.decode import DecodeSpec
from kresume.images.manifest import Manifest
from kresume.images.prepare import prepare
from kresume.images.reader import PictureReader
from kresume.images.sources import list_images
from kresume.progress import Reporter


@dataclass(frozen=True)
class Evaluation:
    """Scores of one model on one set of images.

    Attributes:
        model: what was scored.
        data: the images.
        scores: `{"all": {...}, "old": {...}, "new": {...}, "classes": {NAME: {...}}}`.
        quarantined: how many files could not be read.
    """

    model: str
    data: tuple[str, ...]
    scores: Mapping[str, Any]
    quarantined: int

    def as_dict(self) -> dict[str, Any]:
        """The JSON form that `eval --json` prints."""
        return {
            **self.scores,
            "model": self.model,
            "data": list(self.data),
            "quarantined": self.quarantined,
        }

    def __str__(self) -> str:
        lines = [f"{self.model} on {', '.join(self.data)}"]
        for name in ("all", "old", "new"):
            subset = self.scores[name]
            if subset["images"]:
                lines.append(
                    f"  {name:<5}{100 * subset['accuracy']:6.1f} %  of {subset['images']:,} images, "
                    f"loss {subset['loss']:.4f}, f1 {subset['f1']:.3f}"
                )
        width = max(len(name) for name in self.scores["classes"])
        for name, facts in self.scores["classes"].items():
            if facts["images"]:
                lines.append(f"  {name:<{width}}  recall {100 * facts['recall']:5.1f} %  of {facts['images']:,}")
        if self.quarantined:
            lines.append(f"  {self.quarantined:,} files could not be read")
        return "\n".join(lines)


def evaluate(
    checkpoint: str | Path | runs.Run,
    data: str | Path | Sequence[str | Path],
    *,
    model: str | None = None,
    classes: Sequence[str] | None = None,
    pixels: str | None = None,
    image_size: tuple[int, int] | None = None,
    batch_size: int = 32,
    backend: str | None = None,
    device: str | None = None,
    cache: str | None = None,
    imports: Sequence[str] = (),
    trust: bool = False,
    reporter: Reporter | None = None,
) -> Evaluation:
    """Scores a run's result or a checkpoint on images, one prediction each.

    Args:
        checkpoint: `RUN`, `RUN@last`, `RUN@best`, `RUN@STEP`, or a checkpoint of any known format.
        data: folders with one folder per class.
        model: the architecture, for a checkpoint without one.
        classes: the names of the outputs in their order, for a checkpoint that does not say them.
        pixels: what the model eats, for a checkpoint that does not say it.
        image_size: `(height, width)` in pixels, for a model that takes any.
        batch_size: images per prediction.
        backend: `"tensorflow"` or `"jax"`.
        device: `"auto"`, `"cpu"`, `"gpu"` or `"tpu"`.
        cache: `"off"`, or where decoded images are kept.
        imports: Python files that register custom objects.
        trust: run the code of the checkpoint's Lambda layers.
        reporter: shown progress.

    Raises:
        KresumeError: as its message says.
    """
    reporter = reporter or Reporter(quiet=True)
    path = str(checkpoint.path if isinstance(checkpoint, runs.Run) else checkpoint)
    sources = [data] if isinstance(data, (str, Path)) else list(data)
    listing = list_images([str(source) for source in sources], reporter)
    run = _run_of(path)
    devices.select(backend or (run.record["backend"] if run else None), device, None, batch_size)
    state = read_checkpoint(path)

    from kresume.evaluation.live import LiveScorer  # imports Keras, which fixes the backend
    from kresume.models import build, restore
    from kresume.models import pixels as conventions
    from kresume.models.losses import choose_loss, output_count

    card = state.card
    names = tuple(classes) if classes else (card.classes if card else listing.classes)
    network = build.build_model(
        model,
        state=state,
        num_classes=len(names),
        image_size=image_size or (card.image_size if card else None),
        imports=imports,
        trust=trust,
    )
    restore.restore(network, state, optimizer=None)
    count = output_count(network)
    if len(names) != (2 if count == 1 else count):
        raise UsageError(
            f"{path} has {count} outputs and does not name them, {', '.join(map(str, sources))} has {len(names)} class "
            "folders: give the names of the outputs in their order with --classes a,b,c"
        )
    listed = merging.name_numbers(listing, names)
    unknown = sorted({found.label for found in listed} - set(names))
    if unknown:
        raise ImagesError(f"class folders that {path} does not know: {', '.join(unknown)}; it knows {', '.join(names)}")
    eats = pixels or (card.pixels if card else conventions.read_convention(network))
    if eats is None:
        raise UsageError(f"{path} does not say what values it eats: give --pixels 0-1, -1-1, 0-255, caffe or torch")
    size = network.input_shape[1:3]
    height, width = (size if all(size) else None) or image_size or (card.image_size if card else None) or (None, None)
    if height is None or width is None:
        raise UsageError(f"{path} takes images of any size: give --image-size N or HxW")
    spec = DecodeSpec(
        int(height), int(width), card.resize if card else "stretch", card.interpolation if card else "area"
    )
    store = None if cache == "off" else Cache.open(spec, Path(cache) if cache and cache != "auto" else None)
    prepared = prepare(listed, spec, store, reporter, known=listing.known)
    merge = merging.merge(None, prepared, None, None, classes=names, val_split=None, generation=0)
    manifest = _with_origins(merge.manifest, run)
    source = PictureReader(manifest, spec, store)
    scorer = LiveScorer(
        network,
        source,
        manifest,
        Card(names, (spec.height, spec.width), eats, spec.resize, spec.interpolation),
        choose_loss(network, saved=state.compiled),
        batch_size,
        run.generation if run else 0,
    )
    scores = scorer.score(reporter, "scoring", rows=np.arange(len(manifest)))
    return Evaluation(
        path, tuple(str(source) for source in sources), scores, len(prepared.quarantine) + len(listing.quarantine)
    )


def _run_of(path: str) -> runs.Run | None:
    plain = path.rpartition("@")[0] if "@" in Path(path).name and not Path(path).exists() else path
    return runs.open_run(plain) if runs.is_run(plain) else None


def _with_origins(manifest: Manifest, run: runs.Run | None) -> Manifest:
    """Origins as the run knows them by content; an image that it never saw counts as new."""
    if run is None:
        return manifest
    known = Manifest.read(run.manifest)
    order = np.argsort(known.sha256s)
    found = np.searchsorted(known.sha256s, manifest.sha256s, sorter=order)
    found = order[np.minimum(found, len(order) - 1)]
    origins = np.where(known.sha256s[found] == manifest.sha256s, known.origins[found], run.generation)
    return manifest.with_origins(origins)
