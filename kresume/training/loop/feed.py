"""Makes the datasets that feed a run: its caches, readers and augmentation.

feed = Feed(record.card, record.loss, record.seed, settings, limit_bytes, reporter, on_broken)
feed.open(manifest)                       # fills the cache with images that another machine has decoded
dataset = feed.dataset(manifest, order, step=412)
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from kresume.backend import hosts
from kresume.errors import ImagesError, KresumeError
from kresume.evaluation.caches import open_cache
from kresume.images import augment, inputs, pipeline
from kresume.images.cache import Cache
from kresume.images.collect import decode_recorded
from kresume.images.manifest import Manifest
from kresume.images.order import Order
from kresume.images.reader import PictureReader
from kresume.images.variation import Varied, other_spec
from kresume.images.waiting import batch_times
from kresume.options.settings import Settings
from kresume.reporter import Reporter
from kresume.tasks.table import to_targets
from kresume.values.card import Card
from kresume.values.loss import Loss


class Feed:
    """The pictures of a run while one process trains it.

    Args:
        card: the model card.
        loss: the loss that trains.
        seed: of order and augmentation.
        settings: augmentation and cache.
        limit_bytes: `--cache-limit` if it was given.
        reporter: shown what is decoded.
        on_broken: called with (manifest, row, reason) from the threads that read, for a file that can no longer be read.
        writes: False writes nothing to the caches.

    Attributes:
        failed: the error of reading that ended a dataset, None if there is none.
    """

    def __init__(
        self,
        card: Card,
        loss: Loss,
        seed: int,
        settings: Settings,
        limit_bytes: int | None,
        reporter: Reporter,
        on_broken: Callable[[Manifest, int, str], None],
        *,
        writes: bool = True,
    ) -> None:
        self._card = card
        self._seed = seed
        self._reporter = reporter
        self._on_broken = on_broken
        self.failed: ImagesError | None = None
        self._specs = [card.spec, other_spec(card.spec)] if settings.vary_interpolation else [card.spec]
        self._caches = [open_cache(spec, settings.cache, limit_bytes, writes=writes) for spec in self._specs]
        self._readers: list[PictureReader] = []
        self._augment = augment.augmenter(
            settings.augment, seed, settings.mixup, settings.cutmix, settings.rand_augment, settings.erase
        )
        self._to_model = inputs.to_input(card.pixels, card.input)
        self._to_targets = to_targets(loss, len(card.classes))

    @property
    def cache(self) -> Cache | None:
        """Returns the cache of decoded pictures, None if it is off."""
        return self._caches[0]

    def reader(self, manifest: Manifest) -> PictureReader:
        """Returns a reader of these images, as training reads them."""
        if not self._readers or self._readers[0].manifest is not manifest:
            return PictureReader(manifest, self._specs[0], self._caches[0])
        return self._readers[0]

    def open(self, manifest: Manifest) -> None:
        """Decodes images that the caches do not hold. Unreadable ones are reported when they are needed."""
        for spec, cache in zip(self._specs, self._caches, strict=True):
            if not hosts.this().alone:  # where the cache is shared, nothing is left to decode after this
                if cache is not None:
                    decode_recorded(manifest, spec, cache, self._reporter, needs_all=False, process=hosts.this())
                hosts.meet()  # also of a process whose cache is off: all count their meetings alike
                if cache is not None:
                    cache.refresh()
            if cache is not None:
                decode_recorded(manifest, spec, cache, self._reporter, needs_all=False)

    def tell_broken(self, manifest: Manifest, row: int, reason: str) -> None:
        """Says that a file can no longer be read."""
        self._on_broken(manifest, row, reason)

    def tell_failed(self, reason: str) -> None:
        """Keeps the error that ended the reading, without the frames of the thread that read."""
        self.failed = ImagesError(reason)

    @contextlib.contextmanager
    def own_errors(self) -> Iterator[None]:
        """Raises the error of reading in place of TensorFlow's, which has a traceback as its message.

        Raises:
            ImagesError: no training image can be read.
        """
        failed = None
        try:
            yield
        except KresumeError:
            raise
        except Exception:
            if self.failed is None:
                raise
            failed = self.failed
        if failed is not None:  # raised outside of `except`, where TensorFlow's error would keep the iterators
            raise failed

    def dataset(self, manifest: Manifest, order: Order, step: int) -> Any:
        """Returns an endless `tf.data.Dataset` of batches.

        Args:
            manifest: the images.
            order: deals their training rows.
            step: the first batch.
        """
        rows = manifest.train_rows()
        # TensorFlow keeps the functions of earlier datasets, also after the run; weak references let what they read with go.
        self._readers = [
            PictureReader(manifest, spec, cache) for spec, cache in zip(self._specs, self._caches, strict=True)
        ]
        feed, (reader, *others) = weakref.proxy(self), [weakref.proxy(each) for each in self._readers]
        return pipeline.training_dataset(
            reader,
            rows,
            manifest.labels[rows],
            order,
            start_step=step,
            image_size=self._card.image_size,
            pixels=self._to_model,
            input_shape=self._card.input_shape,
            augment=self._augment,
            targets=self._to_targets,
            on_broken=lambda row, reason: feed.tell_broken(reader.manifest, row, reason),
            on_failed=lambda error: feed.tell_failed(str(error)),
            varied=Varied(others[0], self._seed) if others else None,
            times=batch_times(),
            process=hosts.this(),
        )
