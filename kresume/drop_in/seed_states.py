"""Reads and sets how many orders the `shuffle` steps of tf.data have drawn.

    states = of([x, validation])        # empty where it is enough to count iterators
    before = [state.read() for state in states]
    states[0].set(before[0])            # also in another process

A `shuffle` with a seed draws an order for each of its iterators. TensorFlow makes these late, and several of them where a
pipeline reads a `shuffle` more than once: behind it `repeat` and `concatenate` open the next one where the one before ends, and
a second `shuffle` opens the first when it is drawn from. So nobody can count them from outside. An iterator of the step alone
can be asked for the count: its checkpoint holds it, and is restored with another one. It is never drawn from.

This module reads TensorFlow's own checkpoints of iterators; tests fail if their form changes.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from types import FunctionType, MethodType
from typing import Any

from kresume.drop_in import caches
from kresume.models.introspection import attributes_of, used_by
from kresume.reporter import Reporter

OPENED_AT_ONCE = {
    "AssertCardinalityDataset", "BatchDataset", "CacheDataset", "FilterDataset", "IgnoreErrorsDataset", "MapDataset",
    "OptionsDataset", "PaddedBatchDataset", "ParallelBatchDataset", "ParallelMapDataset", "PrefetchDataset", "SkipDataset",
    "TakeDataset", "UnbatchDataset", "ZipDataset",
}  # fmt: skip
"""Kinds of steps of which an iterator makes one of each input as it is made."""
COUNT = b"epoch_num_random_samples"
"""The name under which a checkpoint holds how many numbers were drawn for seeds."""
BUFFER, SLOT = b":buffer", re.compile(rb":buffer::\d+@@")
"""Names in a checkpoint: of the buffer of a `shuffle`, and of one element in this buffer."""
NUMBERS = 2
"""Numbers that an iterator draws for its seeds."""
IGNORE = 1
"""Tells TensorFlow not to complain of functions with a state, which are not run."""
DEPTH = 4
"""How far functions are followed that refer to functions and collections."""
LOOKED_AT = 1000
"""Values of a collection that are looked at."""
LARGE = 100_000
"""Elements of a buffer from which on a user is told why `fit` waits."""


def of(data: Sequence[Any]) -> list[SeedState] | None:
    """Returns the states of the steps that draw orders; empty where counting the iterators is enough.

    Args:
        data: any data of `fit`.

    Returns:
        None if a state cannot be read.
    """
    if all(map(_is_counted, data)):
        return []
    steps: list[Any] = []
    for each in (step for part in data for step in _drawing(part)):
        if not any(each is known for known in steps):
            steps.append(each)
    try:
        if any(map(_hides_data, data)):
            return None
        return [SeedState(step) for step in steps]
    except Exception:  # another version of TensorFlow may keep its state in another way
        return None


class SeedState:
    """Holds an iterator of a step that draws orders.

    Args:
        step: the dataset that the step returned.
    """

    def __init__(self, step: Any) -> None:
        from tensorflow.python.data.ops.iterator_ops import OwnedIterator

        self._iterator = OwnedIterator(step)
        size = int(caches._constant(getattr(step, "_buffer_size", 0)))
        if size < LARGE:
            saved = self._save()
        else:
            with Reporter().waiting(f"reading the state of shuffle({size:,}), which the data draw from more than once"):
                saved = self._save()
        self._parts = [_Part(part) for part in saved if not SLOT.search(part)]
        for part in self._parts:
            if part.names[0].endswith(BUFFER):
                part.change(b"num_elements", 0)
        self.set(self._count(self._parts) - NUMBERS)

    def read(self) -> int:
        """Returns the count of numbers that were drawn for seeds."""
        return self._count(list(map(_Part, self._save())))

    def set(self, count: int) -> None:
        """Lets the next iterator draw behind a count of numbers."""
        from tensorflow.python.ops import gen_dataset_ops

        for part in self._parts:
            part.change(COUNT, count)
        gen_dataset_ops.deserialize_iterator(self._iterator._iterator_resource, _joined(self._parts))

    def _save(self) -> list[bytes]:
        import tensorflow as tf
        from tensorflow.core.framework.tensor_pb2 import TensorProto
        from tensorflow.python.ops import gen_dataset_ops

        saved = gen_dataset_ops.serialize_iterator(self._iterator._iterator_resource, external_state_policy=IGNORE)
        message = TensorProto.FromString(tf.io.serialize_tensor(saved).numpy())
        return _split(message.tensor_content, message.tensor_shape.dim[0].size)

    def _count(self, parts: Sequence[_Part]) -> int:
        (count,) = (part.values[name] for part in parts for name in part.values if name.endswith(COUNT))
        return count


class _Part:
    """Represents a part of a checkpoint: numbers by name, under the name of a step.

    Args:
        saved: TensorFlow's message.
    """

    def __init__(self, saved: bytes) -> None:
        import tensorflow as tf
        from tensorflow.core.framework.tensor_pb2 import VariantTensorDataProto

        self._message = VariantTensorDataProto.FromString(saved)
        self.names = self._message.metadata.split(b"@@")
        count = len(self.names) - 1
        compressed = tf.io.parse_tensor(self._message.tensors[0].SerializeToString(), tf.variant)
        numbers = tf.raw_ops.UncompressElement(
            compressed=compressed, output_types=[tf.int64] * count, output_shapes=[[]] * count
        )
        self.values: dict[bytes, int] = {
            name: int(number) for name, number in zip(self.names[1:], numbers, strict=True)
        }

    def change(self, ending: bytes, value: int) -> None:
        """Gives the number whose name ends so another value; does nothing if there is none."""
        for name in self.values:
            if name.endswith(ending):
                self.values[name] = value

    def saved(self) -> bytes:
        """Returns TensorFlow's message with the numbers as they are now."""
        import tensorflow as tf
        from tensorflow.core.framework.tensor_pb2 import TensorProto

        numbers = [tf.constant(number, tf.int64) for number in self.values.values()]
        compressed = tf.io.serialize_tensor(tf.raw_ops.CompressElement(components=numbers)).numpy()
        self._message.tensors[0].CopyFrom(TensorProto.FromString(compressed))
        found: bytes = self._message.SerializeToString()
        return found


def _split(content: bytes, count: int) -> list[bytes]:
    """Splits what TensorFlow writes for a row of variants: their lengths as varints, then their messages."""
    sizes, at = [], 0
    for _ in range(count):
        size = shift = 0
        while content[at] >= 128:
            size, shift, at = size | (content[at] & 127) << shift, shift + 7, at + 1
        sizes.append(size | content[at] << shift)
        at += 1
    parts = []
    for size in sizes:
        parts.append(content[at : at + size])
        at += size
    return parts


def _joined(parts: Sequence[_Part]) -> Any:
    """Returns the tensor of a checkpoint."""
    import tensorflow as tf
    from tensorflow.core.framework.tensor_pb2 import TensorProto, VariantTensorDataProto

    message = TensorProto(dtype=tf.variant.as_datatype_enum)
    message.tensor_shape.dim.add(size=len(parts))
    message.variant_val.extend(VariantTensorDataProto.FromString(part.saved()) for part in parts)
    return tf.io.parse_tensor(message.SerializeToString(), tf.variant)


def _draws(step: Any) -> bool:
    """Tests for a step that draws an order, or numbers, for each of its iterators."""
    kind = caches._kind(step)
    return kind == "ShuffleDataset" or (kind == "RandomDataset" and bool(getattr(step, "_rerandomize", False)))


def _drawing(data: Any) -> Iterator[Any]:
    """Yields the steps that draw, also those of datasets that functions of others refer to."""
    if _draws(data) and (caches._constant(data._seed) or caches._constant(data._seed2)):
        yield data
    for part in [*caches._inputs(data), *_of_functions(data)]:
        yield from _drawing(part)


def _is_counted(data: Any) -> bool:
    """Tests whether an iterator of the data makes one for each mention of a `shuffle`, at once."""
    below = [*caches._inputs(data), *_of_functions(data)]
    if next((step for part in below for step in _drawing(part)), None) is None:
        return not (caches._kind(data) == "RandomDataset" and _draws(data)) and not _hides_data(data)
    if caches._kind(data) not in OPENED_AT_ONCE or next(iter(_of_functions(data)), None) is not None:
        return False
    return all(map(_is_counted, caches._inputs(data)))


def functions(data: Any) -> list[Any]:
    """Returns the functions of a step of tf.data, as TensorFlow wraps them."""
    of_step: Callable[[], Any] | None = getattr(data, "_functions", None)
    return list(of_step()) if callable(of_step) and type(data).__module__.startswith("tensorflow.") else []


def _of_functions(data: Any) -> list[Any]:
    """Lists the datasets to which the functions of a step refer."""
    return [value for each in functions(data) for value in _datasets([getattr(each, "_func", None)], DEPTH, set())]


def _datasets(values: Iterable[Any], depth: int, seen: set[int]) -> Iterator[Any]:
    """Yields the datasets among values, and those to which functions among them refer."""
    for value in values:
        if id(value) in seen:
            continue
        seen.add(id(value))
        if hasattr(value, "element_spec") and hasattr(value, "cardinality"):
            yield value
        elif depth:
            yield from _datasets(referred(value), depth - 1, seen)


def referred(value: Any) -> list[Any]:
    """Lists what a function or a collection refers to."""
    if isinstance(value, dict):
        return list(itertools.islice(value.values(), LOOKED_AT))
    if isinstance(value, (list, tuple)):
        return list(value[:LOOKED_AT])
    if isinstance(value, partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, MethodType):
        return [value.__func__, *attributes_of(value.__self__).values()]
    return list(used_by(value).values()) if isinstance(value, FunctionType) else []


def _hides_data(data: Any) -> bool:
    """Tests for a function that refers to datasets which cannot be found."""
    import tensorflow as tf

    for each in functions(data):
        captured = getattr(getattr(each, "function", None), "captured_inputs", ())
        if any(tensor.dtype == tf.variant for tensor in captured) and not _of_functions(data):
            return True
    return any(map(_hides_data, caches._inputs(data)))
