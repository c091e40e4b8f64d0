"""Recomputes the statistics of batch normalisation for a snapshot inside an epoch.

The snapshot of an epoch's end holds the statistics with which it was scored. One that was taken on the way holds only Keras's
moving averages, which trail the weights.
"""

from __future__ import annotations

from dataclasses import replace

from kresume.errors import ImagesError
from kresume.images import inputs, pipeline
from kresume.images.reader import PictureReader
from kresume.images.scans import remembered
from kresume.models.load import Loaded
from kresume.reporter import Reporter


def with_statistics(loaded: Loaded, reporter: Reporter) -> Loaded:
    """Gives a loaded model the statistics of its run's training images, if its snapshot holds none.

    Args:
        loaded: of a run that is not finished; any other one is returned as it is.
        reporter: shown progress.

    Returns:
        The same model, and what the user should know.
    """
    from kresume.models.statistics import (
        assign_statistics,
        compute_statistics,
        normalised_layers,
        sample_rows,
        stored,
    )

    run, model = loaded.run, loaded.model
    if run is None or run.finished or run.record.statistics != "recomputed":
        return loaded
    if stored(model, loaded.state) or not normalised_layers(model):
        return loaded
    manifest, card = remembered(run.path), run.record.card
    rows = sample_rows(manifest.train_rows(), run.record.seed)
    reader, to_model = PictureReader(manifest, card.spec, None), inputs.to_input(card.pixels, card.input)
    try:
        with reporter.progress("statistics of batch normalisation", len(rows), "images") as advance:
            batches = pipeline.full_batches(reader, rows, run.record.amount.batch_size, to_model)
            assign_statistics(model, compute_statistics(model, batches, advance))
    except ImagesError as error:
        words = f"its moving averages of batch normalisation, which trail the weights, are used ({error})"
    else:
        words = f"its statistics of batch normalisation are recomputed from {len(rows):,} of its training images"
    return replace(loaded, statistics=words)
