"""Scores a model in memory, during training and for `kresume eval`.

    scorer = LiveScorer(model, source, manifest, card, loss, batch_size=32, generation=2)
    scores, answers = scorer.score(reporter, "scoring")

Training scores before the first step and after each epoch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from kresume.backend import hosts
from kresume.backend.prediction import predict
from kresume.errors import ImagesError
from kresume.evaluation.answers import Answers, answers_from
from kresume.evaluation.score import predict_all, score
from kresume.images import inputs, pipeline
from kresume.images.manifest import Manifest
from kresume.images.reader import PictureReader
from kresume.models.averages import averaged
from kresume.models.statistics import Statistics, compute_statistics, used
from kresume.reporter import Reporter
from kresume.tasks.one_class import as_shares
from kresume.tasks.task import Task
from kresume.values.card import Card

if TYPE_CHECKING:
    from kresume.models.losses import LossChoice


class LiveScorer:
    """Predicts each image of a manifest once and scores the predictions.

    Args:
        model: a built model, compiled or not. Averaged weights are used if its optimizer keeps them, and `statistics`
            in place of moving averages.
        source: reads the pictures.
        manifest: the images.
        card: the model card.
        loss: names the task, and tells if the model gives logits.
        batch_size: images per prediction; the last batch is padded and its padding ignored.
        generation: images with a lower origin are old.
        optimizer: keeps the averages of a model that is not compiled; None for the model's own.
    """

    def __init__(
        self,
        model: Any,
        source: PictureReader,
        manifest: Manifest,
        card: Card,
        loss: LossChoice,
        batch_size: int,
        generation: int,
        optimizer: Any = None,
    ) -> None:
        self.model = model
        self.source = source
        self.manifest = manifest
        self.card = card
        self.loss = loss
        self.batch_size = batch_size
        self.generation = generation
        self.optimizer = optimizer
        self.statistics: Statistics = {}

    @property
    def task(self) -> Task:
        """Returns the task that judges the predictions."""
        return self.loss.head.task

    def probabilities(
        self,
        rows: np.ndarray,
        advance: Callable[[int], None] = lambda count: None,
        reader: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> np.ndarray:
        """Predicts these rows, `(len(rows), classes) float64`; 0 for a class that the model has no output for."""
        batches = pipeline.scoring_batches(
            reader or self.source,
            rows,
            self.batch_size,
            inputs.to_input(self.card.pixels, self.card.input),
            hosts.this(),
        )
        with averaged(self.model, self.optimizer), used(self.model, self.statistics):
            found = as_shares(predict_all(partial(predict, self.model), batches, self.loss.head, advance=advance))
        missing = len(self.card.classes) - found.shape[1]  # classes that the model has no output for yet
        return np.pad(found, ((0, 0), (0, missing))) if missing > 0 else found

    def recompute(
        self, reader: PictureReader, rows: np.ndarray, advance: Callable[[int], None] = lambda count: None
    ) -> Statistics:
        """Recomputes the statistics of batch normalisation, with which this scorer predicts from now on.

        Args:
            reader: reads the training images.
            rows: the images to use; a file that cannot be read is left out.
            advance: called with the number of images after each batch.

        Returns:
            The statistics; empty if the model has no batch normalisation that trains.
        """
        to_model = inputs.to_input(self.card.pixels, self.card.input)
        batches = pipeline.full_batches(reader, rows, self.batch_size, to_model, hosts.this())
        with averaged(self.model, self.optimizer):
            self.statistics = compute_statistics(self.model, batches, advance)
        return self.statistics

    def score(
        self,
        reporter: Reporter,
        label: str,
        rows: np.ndarray | None = None,
        poll: Callable[[], None] = lambda: None,
        on_broken: Callable[[int, str], None] | None = None,
    ) -> tuple[dict[str, Any], Answers]:
        """Scores the validation images, or these rows.

        Args:
            reporter: shows a progress bar if scoring takes long.
            label: the text of the bar.
            rows: the images; default the validation split.
            poll: called after each batch; may raise to stop.
            on_broken: called with the row of each unreadable file and the reason; the scores are then those of the
                other images. If None, an unreadable file raises an error.

        Returns:
            The scores as `kresume.evaluation.score.score` returns them, and the answers that they are computed from.

        Raises:
            ImagesError: a file cannot be read, or none can.
        """
        rows = self.manifest.val_rows() if rows is None else rows
        broken: dict[int, str] = {}

        def readable(wanted: np.ndarray) -> np.ndarray:
            pictures, wrong = self.source.attempt(wanted)
            broken.update((int(wanted[index]), reason) for index, reason in wrong.items())
            return pictures

        with reporter.progress(label, len(rows), "images") as advance:

            def step(count: int) -> None:
                advance(count)
                poll()

            probabilities = self.probabilities(rows, step, readable if on_broken is not None else None)
        broken = {row: reason for each in hosts.gathered(list(broken.items())) for row, reason in each}
        if on_broken is not None and broken:
            for row, reason in broken.items():
                on_broken(row, reason)
            kept = ~np.isin(rows, list(broken))
            if not kept.any():
                raise ImagesError(
                    "no validation image can be read any more: is the drive still there? Restore it and run again"
                )
            rows, probabilities = rows[kept], probabilities[kept]
        labels, origins, classes = self.manifest.labels[rows], self.manifest.origins[rows], self.card.classes
        scores = score(self.task, probabilities, labels, origins=origins, generation=self.generation, classes=classes)
        return scores, answers_from(self.task, probabilities, labels, origins, self.manifest.sha256s[rows], classes)
