"""Applies a user's function to batches, reproducibly.

The result is a pure function of (seed, epoch, batch).

    data = kresume.image_dataset("old/", map=lambda images, labels: (augment(images, training=True), labels))

A stateful random generator counts its calls: a parallel map then gives different numbers each time, and a resumed
training restarts the count. Here Keras's layers and `keras.random` draw from the position of the batch instead, and a
function with a parameter `seed` gets a seed that depends on that position. Functions that depend on how often they were
called in any other way are refused.
"""

from __future__ import annotations

import inspect
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from kresume.drop_in.stream import ATTRIBUTE
from kresume.errors import UsageError

MAP_SALT = 0x75736572
"""Separates the seeds of user functions from other uses of the seed."""
COUNTING = (
    "Random", "TruncatedNormal", "Parameterized", "Multinomial", "Rng", "SampleDistorted", "Assign",
    "StatefulRandom", "StatefulStandard", "StatefulTruncated", "StatefulUniform",
)  # fmt: skip
"""Prefixes of TensorFlow operations whose result or effect depends on how often they ran."""
PYTHON = ("PyFunc", "EagerPyFunc")
GENERATOR = "GeneratorDataset"
"""The operation of `Dataset.from_generator`; functions that it refers to call the user's generator."""


def mapped(data: Any, function: Callable[..., Any], seed: int, *, training: bool, threads: int) -> Any:
    """Applies a user's function to each element of a dataset.

    Args:
        data: a `tf.data.Dataset` of `(mark, element)`; the mark is two numbers that are unique to the element.
        function: called as `function(images, labels)`, or `function(images)` without labels; also with `seed=` and
            `training=` if it has parameters of these names. A Keras layer is called on the images only.
        seed: the dataset's seed.
        training: True for training images, False for validation images.
        threads: number of elements processed in parallel.

    Returns:
        A `tf.data.Dataset` of `(mark, result of the function)`.

    Raises:
        UsageError: the function raised, or its result depends on how often it was called.
    """
    mark_spec, element_spec = data.element_spec
    function = _of_layer(function)
    names = _parameters(function)

    def call(base: Any, element: Any) -> tuple[Any, int]:
        """Returns the function's result for one element, and how many seeds it drew."""
        extra = {name: value for name, value in (("seed", base), ("training", training)) if name in names}
        with _drawing_from(base) as drawn:
            result = function(*(element if isinstance(element, tuple) else (element,)), **extra)
        return result, len(drawn)

    before = str(np.random.get_state())
    try:
        apply, drawn, reason = _in_graph(call, mark_spec, element_spec, seed, "seed" in names)
    except Exception as error:  # a user's function may raise anything
        if not _is_jax():
            raise UsageError(f"map={_name(function)} failed on {_shapes(element_spec)}: {_reason(error)}") from error
        # Keras functions other than layers compute with JAX here, and cannot be part of a TensorFlow graph.
        apply, drawn, reason = _as_python(call, function, element_spec, seed)
    if not reason and before != str(np.random.get_state()):
        reason = "draws random numbers with numpy"
    if reason:
        raise UsageError(
            f"map={_name(function)} {reason}: a resumed training would see different images. Give the function a parameter "
            "seed and use it with tf.random.stateless_* or tf.image.stateless_random_*, or use Keras's layers"
        )
    if not training and (drawn or "seed" in names) and "training" not in names:
        raise UsageError(
            f"map={_name(function)} draws random numbers, which would change the validation images too: give the "
            "function a parameter training, which is False for validation images"
        )
    return data.map(lambda mark, element: (mark, apply(mark, element)), num_parallel_calls=threads, deterministic=True)


Call = Callable[[Any, Any], tuple[Any, int]]


def _base(seed: int, mark: Any) -> Any:
    """Returns the seed of a position."""
    import tensorflow as tf

    base = tf.constant([seed % 2**31, MAP_SALT], tf.int32)
    for index in range(2):
        base = tf.random.experimental.stateless_fold_in(base, mark[index])
    return base


def _in_graph(
    call: Call, mark_spec: Any, element_spec: Any, seed: int, takes_seed: bool
) -> tuple[Callable[[Any, Any], Any], int, str]:
    """Traces the function; returns it, its number of seeds, and why it is inexact."""
    import tensorflow as tf

    drawn: list[int] = []

    def apply(mark: Any, element: Any) -> Any:
        def inner(*parts: Any) -> Any:
            result, count = call(base, parts if isinstance(element, tuple) else parts[0])
            drawn.append(count)
            return result

        base = _base(seed, mark)
        return tf.function(inner)(*(element if isinstance(element, tuple) else (element,)))

    traced = tf.function(apply, input_signature=[mark_spec, element_spec], autograph=False)
    graph = traced.get_concrete_function().graph
    return traced, max(drawn), _not_exact(graph, takes_seed)


def _as_python(
    call: Call, function: Callable[..., Any], element_spec: Any, seed: int
) -> tuple[Callable[[Any, Any], Any], int, str]:
    """Wraps the function in `tf.numpy_function`; returns the same as `_in_graph`."""
    import keras
    import tensorflow as tf

    def run(base: Any, *parts: Any) -> tuple[list[np.ndarray], Any, int]:
        with keras.device("cpu"):
            copies = [np.array(part) for part in parts]
            result, count = call(base, tf.nest.pack_sequence_as(element_spec, copies))
            flat = [np.asarray(keras.ops.convert_to_numpy(part)) for part in tf.nest.flatten(result)]
        return flat, result, count

    generator = np.random.default_rng(0)
    parts = [
        generator.integers(0, 2, [length or 2 for length in spec.shape]).astype(spec.dtype.as_numpy_dtype)
        for spec in tf.nest.flatten(element_spec)
    ]
    base = np.array([1, 2], np.int32)
    try:
        first, structure, count = run(base, *parts)
        again, _, _ = run(base, *parts)
    except Exception as error:
        raise UsageError(f"map={_name(function)} failed on {_shapes(element_spec)}: {_reason(error)}") from error
    same = all(one.tobytes() == other.tobytes() for one, other in zip(first, again, strict=True))
    grows = any(spec.shape.rank and spec.shape[0] is None for spec in tf.nest.flatten(element_spec))

    def apply(mark: Any, element: Any) -> Any:
        flat = tf.numpy_function(
            lambda base, *given: run(base, *given)[0],
            [_base(seed, mark), *tf.nest.flatten(element)],
            [tf.as_dtype(array.dtype) for array in first],
            stateful=False,
        )
        for part, array in zip(flat, first, strict=True):
            part.set_shape([None, *array.shape[1:]] if grows and array.ndim else array.shape)
        return tf.nest.pack_sequence_as(structure, flat)

    return apply, count, "" if same else "returns different values for the same batch"


def _is_jax() -> bool:
    import keras

    return bool(keras.config.backend() != "tensorflow")


def _of_layer(function: Callable[..., Any]) -> Callable[..., Any]:
    """Converts a Keras layer or Sequential to a function of images and labels."""
    import keras

    if not isinstance(function, keras.layers.Layer):
        return function
    # Layer by layer, because a Sequential does not run inside tf.data under JAX.
    layers = function.layers if isinstance(function, (keras.Sequential, keras.layers.Pipeline)) else [function]

    def apply(images: Any, labels: Any = None, *, training: bool) -> Any:
        for layer in layers:
            takes_training = "training" in _parameters(layer.call)
            images = layer(images, training=training) if takes_training else layer(images)
        return images if labels is None else (images, labels)

    apply.__name__ = type(function).__name__
    return apply


def _parameters(function: Callable[..., Any]) -> set[str]:
    try:
        return set(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # some built-in functions have no signature
        return set()


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__name__", type(function).__name__)


def _shapes(spec: Any) -> str:
    parts = spec if isinstance(spec, tuple) else (spec,)
    return " and ".join(f"{part.dtype.name} {tuple(part.shape)}" for part in parts)


def _reason(error: Exception) -> str:
    """Returns a user function's error in one line, without what frameworks add."""
    text = re.sub(r"\x1b\[\d*m", "", str(error))  # Keras prints in bold
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    wrapped = next((index for index, line in enumerate(lines) if line.startswith("Exception encountered")), None)
    line = lines[-1] if wrapped is None else lines[min(wrapped + 1, len(lines) - 1)]
    name = type(error).__name__
    return line if line.startswith(name) else f"{name}: {line}"


def _not_exact(graph: Any, takes_seed: bool) -> str:
    """Returns why a traced function is not exact; empty if it is.

    Not exact: the result depends on how often the function was called.
    """
    definition = graph.as_graph_def()
    nodes = [*definition.node, *(node for part in definition.library.function for node in part.node_def)]
    for node in nodes:
        if node.op.startswith(COUNTING):
            what = "changes a variable" if node.op.startswith("Assign") else f"draws random numbers with {node.op}"
            return f"{what}, so its result depends on how often it was called"
        if node.op in PYTHON and not takes_seed:
            return "calls Python code (tf.py_function or tf.numpy_function), which may draw random numbers"
    return ""


def changes_variables(data: Any) -> bool:
    """Tests whether a function in a `tf.data.Dataset` changes a variable.

    Keras's random layers and `tf.random.Generator` do.

    Args:
        data: any data of `fit`; only datasets are looked at.
    """
    return _has_operations(data, ("Assign", "Rng"))


def calls_python(data: Any) -> bool:
    """Tests whether a function of a dataset calls Python code, other than kresume's or a generator.

    Args:
        data: any data of `fit`; only datasets are looked at.
    """
    return _has_operations(data, PYTHON)


def _has_operations(data: Any, starts: tuple[str, ...]) -> bool:
    """Tests whether functions of a dataset's steps have such operations.

    Args:
        data: any data of `fit`.
        starts: the beginnings of their names.
    """
    if not (hasattr(data, "_functions") and hasattr(data, "_inputs")) or hasattr(data, ATTRIBUTE):
        return False
    graphs = [getattr(getattr(each, "function", None), "graph", None) for each in data._functions()]
    if any(node.op.startswith(starts) for graph in graphs if graph is not None for node in _nodes(graph)):
        return True
    return any(_has_operations(part, starts) for part in data._inputs())


def _nodes(graph: Any) -> Iterator[Any]:
    """Yields the nodes of a function and of those that it calls, without those that `from_generator` made."""
    definition = graph.as_graph_def()
    bodies = [definition.node, *(part.node_def for part in definition.library.function)]
    made = {value.func.name for body in bodies for node in body if node.op == GENERATOR for value in node.attr.values()}
    yield from definition.node
    for part in definition.library.function:
        if part.signature.name not in made:
            yield from part.node_def


_drawing = threading.local()
"""Holds the seed of the position that this thread traces, and how many seeds were drawn from it."""


@contextmanager
def _drawing_from(base: Any) -> Iterator[list[int]]:
    """Makes Keras's seed generators draw from a position's seed in this thread.

    Every layer and every function of `keras.random` draws from `SeedGenerator.next`. It is replaced only here, and a
    test fails if Keras draws in another way.
    """
    _replace_next()
    count: list[int] = []
    _drawing.base, _drawing.count = base, count
    try:
        yield count
    finally:
        del _drawing.base, _drawing.count


def _replace_next() -> None:
    import keras
    import tensorflow as tf

    kind = keras.random.SeedGenerator
    if hasattr(kind.next, "kresume_original"):
        return
    original = kind.next

    def following(self: Any, ordered: bool = True) -> Any:
        if not hasattr(_drawing, "base"):
            return original(self, ordered)
        _drawing.count.append(1)
        drawn = tf.random.experimental.stateless_fold_in(_drawing.base, len(_drawing.count))
        if isinstance(_drawing.base, np.ndarray):
            return keras.ops.convert_to_tensor(drawn.numpy().view(np.uint32), self.state.dtype)
        return drawn

    following.kresume_original = original  # type: ignore[attr-defined]  # an attribute of a function
    kind.next = following
