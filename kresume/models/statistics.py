"""Recomputes the statistics of batch normalisation from training images, without changing a weight.

    found = compute_statistics(model, batches)        # one pass; the model is as before
    with used(model, found):
        model.predict_on_batch(images)                # the moving averages are back afterwards

Keras normalises by moving averages when a model predicts. They trail the weights: with momentum 0.99 by some hundred
steps. After a short training they describe a model that no longer exists. Statistics of the present weights, averaged
over batches of training images, close this gap: "precise batch normalisation" (Wu and Johnson 2021,
https://arxiv.org/abs/2105.07576, section 3).

The pass predicts, so dropout and augmentation inside the model are off, as they are when the statistics are used. Only
layers that train are recomputed: a layer with `trainable=False` trains with its moving averages and keeps them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import keras
import numpy as np

from kresume.backend import hosts, live_state
from kresume.backend.prediction import predict
from kresume.errors import ImagesError
from kresume.images.order import permutation
from kresume.models import match_groups
from kresume.options.settings import MOST_STATISTICS_IMAGES
from kresume.values.state import TrainState

GROUP = "statistics"
"""Name of their arrays in a snapshot, and of the record that says which variable each belongs to."""
KEPT = "_kresume_by_batch"
"""Attribute of a model that keeps the function which predicts with the statistics of each batch."""
LITTLE_LEFT = 0.01
"""Moving averages of which so much is still their initial value are as good as others."""
Statistics = Mapping[int, np.ndarray]
"""Mean or variance by the index of its moving average among the model's non-trainable variables."""


def normalised_layers(model: keras.Model) -> list[Any]:
    """Returns the batch normalisation layers whose statistics are recomputed, in the model's order."""
    found = [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization)]
    return [layer for layer in found if layer.trainable and layer.built and not layer.renorm]


def without_beginning(model: keras.Model, steps: int | None) -> Statistics:
    """Returns the moving averages of a short training less what is left of their initial values.

    An average that began with zeros (a mean) or ones (a variance) is still `momentum ** steps` of that. Adam corrects its
    moments in the same way (Kingma and Ba 2015, https://arxiv.org/abs/1412.6980).

    Args:
        model: with the moving averages that Keras has kept.
        steps: how many the training had; None if unknown.

    Returns:
        Mean and variance of each layer; empty if little is left of the initial values, or if the averages did not begin with
        those.
    """
    layers = normalised_layers(model)
    shares = [layer.momentum**steps for layer in layers] if steps else []
    if not any(share > LITTLE_LEFT for share in shares):
        return {}
    result = {}
    for number, (place, variable) in enumerate(_moving(model, layers).items()):
        share, began = shares[number // 2], number % 2  # each layer's mean began with 0, its variance with 1
        array = np.array(live_state.host_array(variable.value))
        result[place] = ((array - share * began) / (1 - share)).astype(array.dtype)
        if began and (result[place] < 0).any():
            return {}  # it began with other values: those of a pretrained network, or of an earlier training
    return result


def other_running(model: keras.Model) -> list[str]:
    """Returns the names of trained layers with other running statistics, which stay as they are."""
    named = (keras.layers.SpectralNormalization,)
    return [
        layer.name
        for layer in model._flatten_layers()
        if layer.trainable and (isinstance(layer, named) or getattr(layer, "renorm", False))
    ]


def sample_rows(rows: np.ndarray, seed: int) -> np.ndarray:
    """Selects images to recompute statistics from outside of an epoch, the same ones each time.

    Args:
        rows: `(n,)` the training images to select from.
        seed: of the run.
    """
    chosen: np.ndarray = rows[permutation(seed, 0, len(rows))[:MOST_STATISTICS_IMAGES]]
    return chosen


def _moving(model: keras.Model, layers: Iterable[Any]) -> dict[int, Any]:
    """Returns moving mean and variance of each layer, by index among the non-trainable variables."""
    places = {id(variable): place for place, variable in enumerate(model.non_trainable_variables)}
    return {
        places[id(variable)]: variable for layer in layers for variable in (layer.moving_mean, layer.moving_variance)
    }


def _read(variables: Iterable[Any]) -> list[np.ndarray]:
    return [np.array(live_state.host_array(variable.value)) for variable in variables]


def compute_statistics(
    model: keras.Model, batches: Iterable[Any], advance: Callable[[int], None] = lambda count: None
) -> Statistics:
    """Averages mean and variance of every batch normalisation layer over batches.

    The variance is that of all images together: the mean of the batches' variances plus the variance of their means.

    Args:
        model: built; all its variables are as before afterwards.
        batches: inputs of the model, `(batch, ...)`; equal shapes compile once.
        advance: called with the number of images after each batch.

    Returns:
        Mean and variance of each layer; empty if no batch normalisation trains.

    Raises:
        ImagesError: there is no batch.
    """
    layers = normalised_layers(model)
    if not layers:
        return {}
    moving = _moving(model, layers)
    variables = list(moving.values())
    kept = _read(variables)
    sums: list[np.ndarray] = [np.zeros(array.shape, np.float64) for array in kept]
    squares = [np.zeros(array.shape, np.float64) for array in kept[::2]]
    images = 0
    with live_state.putting_back(lambda: live_state.assign(variables, kept)), _answering_by_batch(model, layers):
        live_state.assign(variables, [np.zeros_like(array) for array in kept])  # one that is not finite would stay so
        for batch in batches:
            predict(model, batch)
            count = len(batch)
            found = [array.astype(np.float64) for array in _read(variables)]
            sums = [total + count * array for total, array in zip(sums, found, strict=True)]
            squares = [total + count * mean**2 for total, mean in zip(squares, found[::2], strict=True)]
            images += count
            advance(count * hosts.this().count)
    if not images:
        raise ImagesError("there is no image to recompute the statistics of batch normalisation from")
    result: list[np.ndarray] = []
    for place, square in enumerate(squares):
        mean, variance = sums[2 * place] / images, sums[2 * place + 1] / images
        spread = np.maximum(square / images - mean**2, 0.0)
        result += [mean.astype(kept[2 * place].dtype), (variance + spread).astype(kept[2 * place + 1].dtype)]
    return dict(zip(moving, result, strict=True))


@contextmanager
def _answering_by_batch(model: keras.Model, layers: Sequence[Any]) -> Iterator[None]:
    """Makes the model predict with the statistics of each batch, and leave those in the layers' variables.

    The functions that Keras has compiled stay. A function of its own is traced in the first of these blocks and kept with the
    model.
    """
    compiled, momenta = model.predict_function, [layer.momentum for layer in layers]
    which = [len(model.trainable_variables), *(id(layer) for layer in layers)]  # several devices fix the state's layout
    traced: tuple[list[int], Any] = getattr(model, KEPT, ([], None))
    step = model.predict_step
    calls: dict[int, int] = {}

    def begin(*arguments: Any) -> Any:
        calls.clear()
        return step(*arguments)

    def normalise(layer: Any, inputs: Any, training: Any = None, mask: Any = None) -> Any:
        # Called at tracing. A layer that stands in several places of the model gets the mean over them.
        before = calls.get(id(layer), 0)
        calls[id(layer)] = before + 1
        layer.momentum = before / (before + 1)
        return type(layer).call(layer, inputs, training=True, mask=mask)

    model.predict_function = traced[1] if traced[0] == which else None
    model.predict_step = begin
    for layer in layers:
        layer.call = partial(normalise, layer)
    try:
        yield
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            del layer.call
            layer.momentum = momentum
        del model.predict_step
        object.__setattr__(model, KEPT, (which, model.predict_function))  # nothing that Keras should track
        model.predict_function = compiled


def assign_statistics(model: keras.Model, statistics: Statistics) -> None:
    """Assigns statistics to the layers for good, for a model that only predicts."""
    variables = model.non_trainable_variables
    live_state.assign([variables[place] for place in statistics], list(statistics.values()))


@contextmanager
def used(model: keras.Model, statistics: Statistics) -> Iterator[None]:
    """Replaces moving averages by statistics during a block; does nothing without statistics."""
    variables = model.non_trainable_variables
    kept = dict(zip(statistics, _read(variables[place] for place in statistics), strict=True))
    assign_statistics(model, statistics)
    with live_state.putting_back(lambda: assign_statistics(model, kept)):
        yield


def stored(model: keras.Model, state: TrainState) -> Statistics:
    """Returns the statistics that a snapshot holds, for this model; empty if it holds none.

    A snapshot that was taken with the scores of an epoch holds them beside Keras's moving averages.
    """
    if not state.records.get(GROUP):
        return {}
    arrays = {
        f"non_trainable/{place}": state.arrays[f"{GROUP}/{index}"] for index, place in enumerate(state.records[GROUP])
    }
    names = match_groups.match_weights(model, state)
    return {
        place: arrays[names[id(variable)]]
        for place, variable in enumerate(model.non_trainable_variables)
        if names.get(id(variable)) in arrays
    }


def use_stored(model: keras.Model, state: TrainState) -> None:
    """Assigns the statistics of a snapshot for good; does nothing for a checkpoint that holds none."""
    assign_statistics(model, stored(model, state))


def recompute_statistics(model: keras.Model, data: Any, *, images: int = 1024) -> int:
    """Recomputes the statistics of batch normalisation for a model that any `fit` has trained.

    Call it before `evaluate`, `predict`, `save` or `export`. Weights, optimizer and random state stay as they are; training can
    go on afterwards. If the optimizer keeps averages of the weights, call it after they were swapped in.

    Args:
        model: built and trained.
        data: the training data as `fit` takes them: a `tf.data.Dataset`, a `PyDataset`, a generator or an array; targets and
            sample weights are not used.
        images: how many images are used.

    Returns:
        The number of layers that were recomputed; 0 if the model has no batch normalisation that trains.

    Raises:
        ImagesError: the data are empty.
    """
    found = compute_statistics(model, _batches(data, images))
    assign_statistics(model, found)
    return len(found) // 2


def _batches(data: Any, images: int, size: int = 32) -> Iterator[Any]:
    """Yields the inputs of a user's data until enough images were seen."""
    if isinstance(data, np.ndarray):
        parts: Iterable[Any] = (data[start : start + size] for start in range(0, len(data), size))
    elif isinstance(data, keras.utils.PyDataset):
        parts = map(data.__getitem__, range(len(data)))
    else:
        parts = data
    seen = 0
    for part in parts:
        inputs = part[0] if isinstance(part, (tuple, list)) else part
        yield live_state.host_array(inputs)  # JAX takes no tensor of TensorFlow
        seen += len(inputs)
        if seen >= images:
            return
