"""Turns rows of the manifest into batches for the model, through tf.data.

    data = training_dataset(reader, rows, labels, order, start_step=16431, pixels=to_model, augment=augment)
    for images, count in scoring_batches(reader, rows, batch_size=32, pixels=to_model): ...

A training dataset is endless and starts at any step in the same time. TensorFlow runs it on the CPU under either
backend.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np

from kresume.backend.hosts import ALONE, Process
from kresume.errors import ImagesError
from kresume.images.augment import Augment
from kresume.images.order import Order
from kresume.images.tf_data import READERS, THREADS, array_of, without_autotuner
from kresume.images.variation import Varied
from kresume.images.waiting import BatchTimes

Reader = Callable[[np.ndarray], np.ndarray]
T = TypeVar("T")
Broken = Callable[[int, str], None]
"""Called once per manifest row whose file cannot be read, with the row and the reason."""
Failed = Callable[[ImagesError], None]
"""Called with the error that ends the reading: TensorFlow raises one of its own in place of it."""
AHEAD = 2
"""Batches that are read while the model predicts the one before."""
NONE_LEFT = "no training image can be read any more: check that their disk is available, and run again"


def training_dataset(
    reader: Reader,
    rows: np.ndarray,
    labels: np.ndarray,
    order: Order,
    *,
    start_step: int,
    image_size: tuple[int, int],
    pixels: Callable[[Any], Any],
    augment: Augment | None,
    targets: Callable[[Any], Any] | None = None,
    input_shape: tuple[int, ...] | None = None,
    on_broken: Broken | None = None,
    on_failed: Failed | None = None,
    varied: Varied | None = None,
    times: BatchTimes | None = None,
    process: Process = ALONE,
) -> Any:
    """Creates the endless dataset of training batches from a step on.

    Args:
        reader: rows of the manifest -> `(n, height, width, 3) uint8`.
        rows: the manifest's training rows; `order` gives indices into them.
        labels: `(len(rows),) int32`.
        order: the order of the images.
        start_step: the first batch.
        image_size: `(height, width)`.
        pixels: from `inputs.to_input`: converts pictures to the model's input values.
        augment: from `augmenter`, or None.
        targets: converts the labels of a batch to the targets of the loss; None keeps them.
        input_shape: the shape of one picture as the model expects it; None for `(height, width, 3)`.
        on_broken: if given, the next image of the order replaces an unreadable one, and this is called. If None, an
            unreadable file raises an error.
        on_failed: called with the error if no image can be read.
        varied: if given, replaces half of the pictures by the same pictures resized with another interpolation.
        times: if given, notes when each batch is ready.
        process: which process this is; it reads its share of each batch.

    Returns:
        A `tf.data.Dataset` of `(images (batch, *input_shape) float32, targets)`.
    """
    import tensorflow as tf

    share = process.share(order.batch_size)
    batch = share.stop - share.start

    stand_in = None if on_broken is None else StandIn(reader, rows, order, on_broken, on_failed)

    def read(step: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        position, indices = int(step) * order.batch_size + share.start, order.batch(int(step))[share]
        if stand_in is None:
            pictures = reader(rows[indices])
        else:
            pictures, indices = stand_in(position, indices)
        if varied is not None:
            pictures = varied(rows[indices], position, pictures)
        return pictures, labels[indices].astype(np.int32)

    start = (order.batch_size, share.start)
    finish = _finisher(batch, start, image_size, pixels, input_shape or (*image_size, 3), augment, targets, times)

    def load(step: Any) -> Any:
        images, targets = tf.numpy_function(read, [step], [tf.uint8, tf.int32], stateful=False)
        return step, tf.ensure_shape(images, (batch, *image_size, 3)), tf.ensure_shape(targets, (batch,))

    steps = tf.data.Dataset.range(start_step, np.iinfo(np.int64).max)
    data = steps.map(load, num_parallel_calls=READERS, deterministic=True)
    data = data.map(finish, num_parallel_calls=THREADS, deterministic=True)
    return without_autotuner(data.prefetch(4))


@lru_cache(maxsize=4)
def _finisher(
    batch: int,
    start: tuple[int, int],
    image_size: tuple[int, int],
    pixels: Callable[[Any], Any],
    input_shape: tuple[int, ...],
    augment: Augment | None,
    to_targets: Callable[[Any], Any] | None,
    times: BatchTimes | None,
) -> Any:
    """Returns the traced function that converts (step, pictures, labels) to the model's inputs.

    `start` is the size of the whole batch, and where in it the share of this process starts.

    Cached: tracing augmentation layers takes seconds, and images that arrive during a run cause a new dataset each
    time.
    """
    import tensorflow as tf

    def finish(step: Any, images: Any, targets: Any) -> Any:
        images = tf.cast(images, tf.float32)
        if to_targets is not None:
            targets = to_targets(targets)
        if augment is not None:
            images, targets = augment(images, targets, step * start[0] + start[1])
        images = tf.ensure_shape(pixels(images), (batch, *input_shape))
        if times is None:
            return images, targets
        with tf.control_dependencies([images]), tf.control_dependencies([times.note(step)]):
            return tf.identity(images), targets

    signature = [
        tf.TensorSpec([], tf.int64),
        tf.TensorSpec([batch, *image_size, 3], tf.uint8),
        tf.TensorSpec([batch], tf.int32),
    ]
    return tf.function(finish, input_signature=signature, autograph=False)


class StandIn:
    """Reads batches and replaces unreadable images by the next readable ones of the order.

    Args:
        reader: a `PictureReader`.
        rows: the manifest's training rows.
        order: gives indices into them.
        on_broken: called once per unreadable row.
        on_failed: called with the error if none is readable.
    """

    def __init__(
        self, reader: Any, rows: np.ndarray, order: Order, on_broken: Broken, on_failed: Failed | None = None
    ) -> None:
        self._reader = reader
        self._rows = rows
        self._order = order
        self._on_broken = on_broken
        self._on_failed = on_failed
        self._broken: set[int] = set()
        self._lock = threading.Lock()

    def __call__(self, position: int, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the pictures of a batch and the indices of the images they show.

        Raises:
            ImagesError: no image of a whole epoch can be read.
        """
        pictures, wrong = self._reader.attempt(self._rows[indices])
        if not wrong:
            return pictures, indices
        indices = indices.copy()
        for index, reason in sorted(wrong.items()):
            self._say(int(self._rows[indices[index]]), reason)
            indices[index], pictures[index] = self._next(position + index + 1)
        return pictures, indices

    def _next(self, position: int) -> tuple[int, np.ndarray]:
        for offset in range(self._order.n):
            index = int(self._order.take(position + offset, 1)[0])
            row = int(self._rows[index])
            if row in self._broken:
                continue
            pictures, wrong = self._reader.attempt(np.array([row]))
            if not wrong:
                return index, pictures[0]
            self._say(row, wrong[0])
        error = ImagesError(NONE_LEFT)
        if self._on_failed is not None:
            self._on_failed(error)
        raise error

    def _say(self, row: int, reason: str) -> None:
        with self._lock:
            fresh = row not in self._broken
            self._broken.add(row)
        if fresh:
            self._on_broken(row, reason)


def scoring_batches(
    reader: Reader, rows: np.ndarray, batch_size: int, pixels: Callable[[Any], Any], process: Process = ALONE
) -> Iterator[tuple[np.ndarray, int]]:
    """Yields batches of one static shape that contain each row once; of each, the share of this process.

    Yields:
        `(model input (batch, ...) float32, count)`; entries from `count` on repeat the last image and must be ignored.
    """

    def read(start: int) -> tuple[np.ndarray, int]:
        part = rows[start : start + batch_size]
        padded = np.concatenate([part, np.full(batch_size - len(part), part[-1])])
        return array_of(pixels(reader(padded[process.share(batch_size)]))), len(part)

    return _ahead(read, range(0, len(rows), batch_size))


def full_batches(
    reader: Any, rows: np.ndarray, batch_size: int, pixels: Callable[[Any], Any], process: Process = ALONE
) -> Iterator[np.ndarray]:
    """Yields batches of one static shape for a pass that measures; of each, the share of this process.

    The next image that can be read replaces one that cannot, the same one whatever the number of processes. The last batch is
    filled from the beginning of `rows`, so no image counts far more often than another.

    Args:
        reader: a `PictureReader`.
        rows: rows of the manifest.
        batch_size: images per batch.
        pixels: from `inputs.to_input`.
        process: which process this is.

    Yields:
        Model input, `(share, ...) float32`.

    Raises:
        ImagesError: none of the images can be read.
    """
    wanted = -(-len(rows) // batch_size) * batch_size
    filled = np.resize(rows, wanted)
    broken = set[int]()

    def after(place: int) -> np.ndarray:
        for row in np.roll(rows, -place - 1).tolist():
            if row not in broken:
                pictures, wrong = reader.attempt(np.array([row]))
                if not wrong:
                    return np.asarray(pictures[0])
                broken.add(row)
        raise ImagesError(NONE_LEFT)

    def read(start: int) -> np.ndarray:
        part = filled[start : start + batch_size][process.share(batch_size)]
        pictures, wrong = reader.attempt(part)
        broken.update(part[sorted(wrong)].tolist())
        for index in sorted(wrong):
            pictures[index] = after(start + process.share(batch_size).start + index)
        return array_of(pixels(pictures))

    return _ahead(read, range(0, wanted, batch_size))


def _ahead(read: Callable[[int], T], starts: Iterable[int]) -> Iterator[T]:
    """Yields `read(start)` of each, in order; a thread reads the next ones while the caller uses one."""
    pool = ThreadPoolExecutor(1, thread_name_prefix="kresume-score")
    coming: deque[Future[T]] = deque()
    try:
        for start in starts:
            coming.append(pool.submit(read, start))
            if len(coming) > AHEAD:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
