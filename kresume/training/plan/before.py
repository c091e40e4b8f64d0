"""Scores the parent before the first step.

before = score_parent(loaded, data, held, reporter)
before.scores, before.answers         # both None for a new model
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from kresume.evaluation.caches import open_cache
from kresume.images.reader import PictureReader
from kresume.options.settings import Settings
from kresume.reporter import Reporter
from kresume.training.plan.draft import Before, Data, Loaded


def score_parent(loaded: Loaded, data: Data, held: Settings, reporter: Reporter) -> Before:
    """Scores the parent on the validation images; there is nothing to score for a new model."""
    if loaded.parent is None:
        return Before()
    if loaded.growth is not None and loaded.growth.replaces:  # its classes and images are no longer there to score it
        from kresume.models.statistics import stored

        known = stored(loaded.live.model, loaded.parent.state) if held.bn_stats == "recomputed" else {}
        return Before(statistics=known)
    from kresume.evaluation.live import LiveScorer

    reader = _reader(loaded, data, held)
    scorer = LiveScorer(
        loaded.live.model,
        reader,
        data.gathered.manifest,
        data.card,
        loaded.answers,
        held.batch_size,
        loaded.generation,
        optimizer=loaded.live.optimizer,
    )
    if held.bn_stats == "recomputed":
        scorer.statistics = _statistics_of_parent(scorer, loaded, reader, held.seed)
    scores, answers = scorer.score(reporter, "scoring the parent")
    return Before(scores, answers if len(answers) else None, scorer.statistics)


def _reader(loaded: Loaded, data: Data, held: Settings) -> PictureReader:
    """Returns a reader of the pictures as the parent was trained on them, however this run resizes."""
    from kresume.models.shapes import takes_any_size

    spec, card = data.reader.spec, loaded.parent.card if loaded.parent is not None else None
    if card is None:
        return data.reader
    spec = replace(spec, resize=card.resize, interpolation=card.interpolation)
    if takes_any_size(loaded.live.model):
        spec = replace(spec, height=card.image_size[0], width=card.image_size[1])
    if spec == data.reader.spec:
        return data.reader
    return PictureReader(data.gathered.manifest, spec, open_cache(spec, held.cache, None, writes=False))


def _statistics_of_parent(scorer: Any, loaded: Loaded, reader: PictureReader, seed: int) -> Mapping[int, np.ndarray]:
    """Returns the statistics to score the parent with; empty for its moving averages.

    Those of its own result, if it is a run of ours. An interrupted training has none: they are recomputed from its images.
    """
    from kresume.models.statistics import sample_rows, stored

    parent, manifest = loaded.parent, reader.manifest
    if parent is None:
        return {}
    found = stored(loaded.live.model, parent.state)
    if found or not parent.interrupted:
        return found
    rows = manifest.train_rows()
    old = rows[manifest.origins[rows] < loaded.generation]
    if not len(old):
        return {}
    recomputed: Mapping[int, np.ndarray] = scorer.recompute(reader, sample_rows(old, seed))
    return recomputed
