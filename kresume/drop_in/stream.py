"""Makes datasets that resume at any batch in a user's own `fit`.

    data = kresume.resumable(lambda position: my_dataset_from(position), steps_per_epoch=500)
    model.fit(data, epochs=20, callbacks=[kresume.BackupAndRestore("backup/", data=data)])

A `tf.data.Dataset` starts from its beginning each time it is iterated, and `fit` iterates it once per epoch. The
datasets made here start where their `Stream` points. By default a stream advances by one epoch each time an epoch was
read to its end. `BackupAndRestore` moves it to the current epoch and batch of the training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from kresume.errors import UsageError
from kresume.images.tf_data import without_autotuner

ATTRIBUTE = "kresume_stream"
"""Attribute of a dataset that holds its stream."""


class Stream:
    """The epoch and batch at which a dataset starts when it is next iterated.

    Args:
        steps_per_epoch: batches per epoch.

    Attributes:
        epoch: the epoch that starts next, counted from 0.
        batch: the first batch to read of that epoch.
        element_spec: the structure of a batch, as tf.data describes it.
        recount: resets the dataset's cardinality to `longest()`; called after the length of an epoch changed.
    """

    def __init__(self, steps_per_epoch: int) -> None:
        if steps_per_epoch < 1:
            raise UsageError(f"steps_per_epoch={steps_per_epoch}: give at least 1")
        self._steps_per_epoch = steps_per_epoch
        self.epoch = 0
        self.batch = 0
        self.element_spec: Any = None
        self.recount: Callable[[], None] = lambda: None
        self._followed = False

    @property
    def is_followed(self) -> bool:
        """Returns True while a caller sets the start of each epoch."""
        return self._followed

    def steps(self, epoch: int) -> int:
        """Returns the number of batches of an epoch."""
        return self._steps_per_epoch

    def longest(self) -> int:
        """Returns the most batches that `fit` may request in one epoch from now on."""
        return self._steps_per_epoch

    def same_list(self, epoch: int, other: int) -> bool:
        """Returns True if two epochs are read of one list, which is known."""
        return True

    def step(self, epoch: int, batch: int) -> int:
        """Returns the number of batches before this one, over all epochs."""
        return epoch * self._steps_per_epoch + batch

    def seek(self, epoch: int, batch: int) -> None:
        """Starts the next iteration at a batch.

        From now on the caller sets the start of each epoch.
        """
        self.epoch, self.batch = epoch, batch
        self._followed = True

    def release(self, epoch: int) -> None:
        """Returns to advancing by itself, from the start of an epoch."""
        self.epoch, self.batch, self._followed = epoch, 0, False
        self.recount()

    def read(self, batches_from: Callable[[int, int], Iterator[Any]]) -> Iterator[tuple[tuple[int, int], Any]]:
        """Yields the batches from the current position to the end of the epoch.

        Args:
            batches_from: returns the batches from (epoch, batch) on.

        Yields:
            `((epoch, number of batches left after this one), batch)`.

        Raises:
            UsageError: the data ended before the epoch did.
        """
        epoch, batch = self.epoch, self.batch
        count = self.steps(epoch) - batch
        source = batches_from(epoch, batch)
        for number in range(count):
            item = next(source, None)
            if item is None:
                raise UsageError(
                    f"the data ended after {number} of the {count} batches left in epoch {epoch + 1}: steps_per_epoch is "
                    "too large for the dataset, or the dataset does not start at the requested position"
                )
            yield (epoch, count - number - 1), item

    def drawn(self, epoch: int, left: int) -> None:
        """Advances to the next epoch after the last batch of one.

        Called for each batch that is drawn; does nothing while a caller sets the start of each epoch.
        """
        if left == 0 and not self._followed:
            self.epoch, self.batch = epoch + 1, 0

    def identity(self) -> dict[str, Any]:
        """Returns everything that determines the batches, as JSON.

        Streams of equal identity give equal batches at equal positions.
        """
        return {"steps_per_epoch": self._steps_per_epoch}

    def save(self, folder: Path) -> None:
        """Writes the files that `adopt` needs; this class needs none.

        The user's code defines its batches.
        """

    def adopt(self, folder: Path, identity: Mapping[str, Any], epoch: int, batch: int, on_new_data: str) -> str:
        """Restores the stream of an interrupted training.

        Args:
            folder: the folder that `save` wrote to.
            identity: the saved identity.
            epoch: the current epoch of the training.
            batch: the next batch of it.
            on_new_data: `"next-epoch"` or `"error"`.

        Returns:
            A note for the user, or an empty string.

        Raises:
            UsageError: the data changed in a way that cannot be continued.
        """
        if dict(identity) != self.identity():
            raise UsageError(
                f"the interrupted training had {identity.get('steps_per_epoch')} steps per epoch, this one has "
                f"{self._steps_per_epoch}: give the same, or another backup folder to start again"
            )
        return ""


def stream_in(data: Any) -> Stream | None:
    """Returns the stream of a dataset of kresume, None for other data."""
    stream = getattr(_source(data), ATTRIBUTE, None)
    return stream if isinstance(stream, Stream) else None


def stream_of(data: Any) -> Stream:
    """Returns the stream of a dataset, also through `map` and `prefetch`.

    Raises:
        UsageError: the dataset has no stream.
    """
    stream = stream_in(data)
    if stream is None:
        raise UsageError(
            f"data= is a {type(data).__name__} whose position cannot be set: give the dataset that kresume.image_dataset or "
            "kresume.resumable returned, and put further steps into the function that is given to resumable"
        )
    return stream


def reason_not_followed(data: Any, stream: Stream) -> str:
    """Returns why `data` does not give a stream's batches in order.

    Empty if it gives them one by one and in order.
    """
    source = _source(data)
    if getattr(source, ATTRIBUTE, None) is stream:
        mixed = _steps(data) and data.options().deterministic is False
        return "a dataset that may change the order (deterministic=False)" if mixed else ""
    if hasattr(source, ATTRIBUTE):
        return "another dataset than data="
    if _inputs(source) and any(_contains(part, stream) for part in _inputs(source)):
        return f"data= after a step that changes its batches or their order ({_kind(source)})"
    return f"a {type(data).__name__} that does not come from data="


ONE_TO_ONE = frozenset({"Map", "ParallelMap", "Prefetch", "Options", "AssertCardinality"})
"""Steps of tf.data that return one batch for each batch, in the same order."""


def _kind(data: Any) -> str:
    return type(data).__name__.strip("_").removesuffix("Dataset")


def _inputs(data: Any) -> list[Any]:
    inputs = getattr(data, "_inputs", None)
    return list(inputs()) if callable(inputs) else []


def _steps(data: Any) -> list[Any]:
    """Returns the one-to-one steps between `data` and its source, the last step first."""
    steps = []
    while not hasattr(data, ATTRIBUTE) and _kind(data) in ONE_TO_ONE and getattr(data, "_deterministic", "") != "false":
        steps.append(data)
        data = _inputs(data)[0]
    return steps


def _source(data: Any) -> Any:
    steps = _steps(data)
    return _inputs(steps[-1])[0] if steps else data


def _contains(data: Any, stream: Stream) -> bool:
    return getattr(data, ATTRIBUTE, None) is stream or any(_contains(part, stream) for part in _inputs(data))


def dataset_of(stream: Stream, batches: Callable[[], Iterator[Any]], spec: Any, finish: Callable[..., Any]) -> Any:
    """Creates a dataset that starts at its stream's position each time it is iterated.

    Args:
        stream: sets where the dataset starts.
        batches: returns one epoch, as `Stream.read` does.
        spec: the structure of the items of `batches`, without the mark.
        finish: `(dataset of (mark, item)) -> dataset of (mark, element)`: the rest of the pipeline; it may read ahead.

    Returns:
        A `tf.data.Dataset` of the elements, which tells `fit` the number of batches of an epoch.
    """
    import tensorflow as tf

    def marked() -> Iterator[Any]:
        for mark, item in batches():
            yield tf.constant(mark, tf.int64), item

    def unmark(mark: Any, element: Any) -> Any:
        # Runs when the consumer draws a batch, not when the pipeline reads ahead: a look at the first batches must not
        # advance the stream.
        def tell(value: Any) -> Any:
            stream.drawn(int(value[0]), int(value[1]))
            return value[1]

        told = tf.numpy_function(tell, [mark], tf.int64)
        with tf.control_dependencies([told]):
            return tf.nest.map_structure(tf.identity, element)

    signature = (tf.TensorSpec([2], tf.int64), spec)
    batches_left = finish(tf.data.Dataset.from_generator(marked, output_signature=signature)).map(unmark)
    stream.element_spec = batches_left.element_spec
    # Without a cardinality, which a generator's dataset lacks, Keras under TensorFlow counts one iteration too many per
    # epoch. `assert_cardinality` fails if an interrupted epoch is shorter. `take(n)` of a dataset of infinite
    # cardinality has cardinality n: `nothing.repeat()` counts as infinite, but adds no element when it is read.
    nothing = tf.data.Dataset.from_generator(lambda: iter(()), output_signature=stream.element_spec)
    endless = without_autotuner(batches_left.concatenate(nothing.repeat()))
    data = endless.take(stream.longest())

    def recount() -> None:
        if int(data.cardinality()) != stream.longest():
            # In place: the user already holds this dataset. Private attribute, used only here, pinned by a test.
            data._variant_tensor_attr = endless.take(stream.longest())._variant_tensor

    setattr(data, ATTRIBUTE, stream)
    stream.recount = recount
    return data


def resumable(dataset_from: Callable[[int], Any], steps_per_epoch: int) -> Any:
    """Makes any tf.data pipeline resume exactly at any batch.

    Args:
        dataset_from: called with a position, the number of batches drawn before; returns a `tf.data.Dataset` of the
            batches from there on, for at least the rest of the epoch. Equal positions must give equal batches: shuffle
            with a seed that depends on the epoch (`position // steps_per_epoch`), not with a stateful generator.
            tf.data's autotuner is turned off for it, because it would delay each epoch's end by up to a minute.
        steps_per_epoch: batches per epoch.

    Returns:
        A `tf.data.Dataset` for `model.fit` and for `kresume.BackupAndRestore(data=...)`.

    Raises:
        UsageError: `steps_per_epoch` is below 1, or `dataset_from` does not return a dataset.
    """
    stream = Stream(steps_per_epoch)
    spec = getattr(dataset_from(0), "element_spec", None)
    if spec is None:
        raise UsageError(
            "resumable needs a function that returns a tf.data.Dataset; tf.data.Dataset.from_generator wraps an iterable"
        )

    def batches() -> Iterator[Any]:
        return stream.read(lambda epoch, batch: iter(without_autotuner(dataset_from(stream.step(epoch, batch)))))

    return dataset_of(stream, batches, spec, lambda data: data.prefetch(2))
