"""Scores of a model in memory: before the first step, after each epoch, and for `kresume eval`.

scorer = LiveScorer(model, source, manifest, card, loss, batch_size=32, generation=2)
scores = scorer.score(reporter, "scoring")
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from kresume.checkpoints.state import Card
from kresume.evaluation.score import predict_all, score
from kresume.images import conventions, pipeline
from kresume.images.manifest import Manifest
from kresume.models.averages import averaged
from kresume.progress import Reporter

if TYPE_CHECKING:
    from kresume.models.losses import LossChoice


class LiveScorer:
    """Predicts a manifest's images once each and scores the predictions.

    Args:
        model: a built model, compiled or not. Averaged weights are used where its optimizer keeps them.
        source: rows -> `(n, height, width, 3) uint8`.
        manifest: the images.
        card: the pixels that the model eats, and its classes.
        loss: what its outputs are.
        batch_size: images per prediction; the last batch is padded, the padding dropped.
        generation: origins below it are old.
    """

    def __init__(
        self,
        model: Any,
        source: Callable[[np.ndarray], np.ndarray],
        manifest: Manifest,
        card: Card,
        loss: LossChoice,
        batch_size: int,
        generation: int,
    ) -> None:
        self.model = model
        self.source = source
        self.manifest = manifest
        self.card = card
        self.loss = loss
        self.batch_size = batch_size
        self.generation = generation

    def probabilities(self, rows: np.ndarray, advance: Callable[[int], None] = lambda count: None) -> np.ndarray:
        """Predicts these rows, `(len(rows), classes) float64`."""
        batches = pipeline.scoring_batches(
            self.source, rows, self.batch_size, conventions.to_model_function(self.card.pixels)
        )
        with averaged(self.model):
            return predict_all(self.model.predict_on_batch, batches, self.loss.outputs, advance=advance)

    def accuracy(self, rows: np.ndarray) -> float:
        """The share of these rows that is predicted right."""
        return float((self.probabilities(rows).argmax(axis=-1) == self.manifest.labels[rows]).mean())

    def score(
        self,
        reporter: Reporter,
        label: str,
        rows: np.ndarray | None = None,
        poll: Callable[[], None] = lambda: None,
    ) -> dict[str, Any]:
        """Scores the validation images, or these rows.

        Args:
            reporter: shown a bar if it takes long.
            label: the bar's words.
            rows: which images; default the validation side.
            poll: called after each batch; may raise to give up.
        """
        rows = self.manifest.val_rows() if rows is None else rows
        with reporter.progress(label, len(rows), "images") as advance:

            def step(count: int) -> None:
                advance(count)
                poll()

            probabilities = self.probabilities(rows, step)
        return score(
            probabilities,
            self.manifest.labels[rows],
            origins=self.manifest.origins[rows],
            generation=self.generation,
            classes=self.card.classes,
        )
