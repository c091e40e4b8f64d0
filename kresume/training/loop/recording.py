"""Decides what is recorded of a training beside its snapshots, and where it goes.

sinks = sinks_of(run, config)
keeper.tell = Moments(narrator, writer)
writer.put(samples_of(manifest, reader, run))
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from kresume.images.manifest import Manifest
from kresume.images.order import permutation
from kresume.images.reader import PictureReader
from kresume.options.given import given
from kresume.options.lookup import flag_of
from kresume.options.settings import settings_of
from kresume.options.table import TrainConfig
from kresume.reporter import Moment
from kresume.reports.sinks import Point, Samples, Sink
from kresume.reports.sinks.jsonl import JsonLines
from kresume.reports.sinks.mlflow import MLflow
from kresume.reports.sinks.tensorboard import TensorBoard
from kresume.runs import Run
from kresume.training.loop.narrator import Narrator
from kresume.training.loop.writer import RunWriter

POINT_SECONDS = 2.0
"""Least time between two recorded moments of an epoch."""
SAMPLES = 8
"""Recorded training pictures of each origin."""


def sinks_of(run: Run, config: TrainConfig) -> list[Sink]:
    """Returns the sinks of a run. The first is `metrics.jsonl`, which the others may read.

    Args:
        run: the run on disk.
        config: its options.
    """
    sinks: list[Sink] = [JsonLines(run.metrics)]
    if settings_of(config).tensorboard:
        sinks.append(TensorBoard(run.path / "tensorboard", run.metrics))
    if config.mlflow not in {None, "off"}:
        parameters = {flag_of(name)[2:]: value for name, value in given(config).items()}
        sinks.append(MLflow(run, str(config.mlflow), parameters))
    return sinks


class Moments:
    """Shows the moments of a training, and records some of them.

    Args:
        narrator: shows each.
        writer: records those that are `POINT_SECONDS` apart, with the next line or snapshot.
    """

    def __init__(self, narrator: Narrator, writer: RunWriter) -> None:
        self._narrator = narrator
        self._writer = writer
        self._last = 0.0

    def __call__(self, logs: Mapping[str, Any] | None) -> None:
        """Shows the moment of a step that is done.

        Args:
            logs: Keras's logs of the step.
        """
        moment, now = self._narrator.tell(logs), time.time()
        if now - self._last >= POINT_SECONDS:
            self._last = now
            self._writer.put(Point(moment.done, now, _values(moment)))


def _values(moment: Moment) -> dict[str, float]:
    named = {
        "loss": moment.loss,
        "accuracy": moment.accuracy,
        "lr": moment.rate,
        "images_per_second": moment.images_per_second,
        "waiting_for_images": moment.data_share,
    }
    return {name: value for name, value in named.items() if value is not None}


def samples_of(manifest: Manifest, reader: PictureReader, run: Run) -> Samples:
    """Returns training pictures of each origin, as they were decoded.

    Pictures that cannot be read are left out.

    Args:
        manifest: the images.
        reader: reads them.
        run: names the classes, and says which origin is new.
    """
    rows = manifest.train_rows()
    new = manifest.origins[rows] == run.generation
    pictures = {}
    for group, part in (("old", rows[~new]), ("new", rows[new])):
        chosen = part[permutation(run.record.seed, 0, len(part))[:SAMPLES]] if len(part) else part
        images, broken = reader.attempt(np.sort(chosen))
        pictures[group] = [
            (f"pictures/{index}-{manifest.classes[manifest.labels[row]]}", images[index])
            for index, row in enumerate(np.sort(chosen))
            if index not in broken
        ]
    return Samples(0, pictures)
