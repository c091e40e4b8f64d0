"""Grows the head of a classifier: old rows and their slots are kept, new rows start from the data.

    head = find_head(model)
    wider, wider_head = build_wider(model, head, 10, ...)
    rows = new_rows(head, features, count=3, kind="imprinted", seed=0)
    optimizer = fill(model, optimizer, wider, saved, rows)

A "row" is what belongs to one class: a column of the kernel, `(features, classes)`, and an entry of the bias. An imprinted
row is the mean of its class's features, scaled to the norm of the old rows (Qi et al. 2018, https://arxiv.org/abs/1712.07136).
Features are not negative behind a ReLU, so every class shares a large common part: as they are, imprinted rows would win on
every picture (measured: the old classes fall from 87 to 0 % before the first step). So the mean over all classes is taken off,
and the bias is such that on it the new row scores as much as the old ones do on average.

A model with one sigmoid output becomes one with a softmax: its row w becomes -w/2 and w/2, which gives the same two
probabilities.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from kresume.backend import live_state
from kresume.errors import ModelError
from kresume.models import optimizers, own_counts, slots, structure
from kresume.models.averages import averaged, pairs_of
from kresume.models.head import HeadLayer, not_grown
from kresume.models.outputs import answers, output_count
from kresume.models.statistics import Statistics, used
from kresume.values.state import SavedOptimizer

SMALL = 0.1
"""Norm of a random row in norms of the old ones."""
ALIKE = 0.01
"""Greatest difference of two probabilities that arithmetic of half precision explains."""

Chances = Callable[[np.ndarray], np.ndarray]
"""Turns outputs `(images, outputs)` into probabilities `(images, classes)`."""


@dataclass(frozen=True)
class Rows:
    """Rows of new classes.

    Attributes:
        kernel: `(features, new classes) float64`.
        bias: `(new classes,) float64`.
    """

    kernel: np.ndarray
    bias: np.ndarray


def mean_features(
    model: keras.Model,
    head: HeadLayer,
    batches: Iterable[tuple[Any, int]],
    labels: np.ndarray,
    classes: int,
    statistics: Statistics,
    advance: Callable[[int], None] = lambda count: None,
    optimizer: Any = None,
) -> np.ndarray:
    """Averages the values at the head's input by class.

    Args:
        model: the model.
        head: its head.
        batches: padded inputs of the model, each with the number of its rows that are images.
        labels: the class of each image, from 0, in the order of the batches.
        classes: how many classes there are.
        statistics: those of batch normalisation to predict with; empty for the moving averages.
        advance: called with the number of images after each batch.
        optimizer: keeps the averages (EMA) to predict with; None without any.

    Returns:
        `(classes, features) float64`; NaN for a class without an image.
    """
    seen: list[np.ndarray] = []
    layer, call = head.layer, type(head.layer).call

    def watch(inputs: Any, *arguments: Any, **options: Any) -> Any:
        seen.append(live_state.host_array(inputs))
        return call(layer, inputs, *arguments, **options)

    sums, counts = np.zeros((classes, 0)), np.zeros(classes)
    layer.call = watch
    try:
        with averaged(model, optimizer), used(model, statistics):
            done = 0
            for images, count in batches:
                seen.clear()
                model(keras.ops.convert_to_tensor(images), training=False)
                features = _by_image(seen[-1], layer)[:count]
                sums = sums if sums.shape[1] else np.zeros((classes, features.shape[1]))
                np.add.at(sums, labels[done : done + count], features)
                np.add.at(counts, labels[done : done + count], 1.0)
                done += count
                advance(count)
    finally:
        del layer.call
    return np.asarray(np.where(counts[:, None] > 0, sums / np.maximum(counts, 1.0)[:, None], np.nan))


def _by_image(values: np.ndarray, layer: Any) -> np.ndarray:
    """Averages features over positions, `(images, features) float64`."""
    values = np.asarray(values, np.float64)
    if getattr(layer, "data_format", None) == "channels_first":
        values = np.moveaxis(values, 1, -1)
    return np.asarray(values.reshape(len(values), -1, values.shape[-1]).mean(axis=1))


def new_rows(head: HeadLayer, features: np.ndarray | None, count: int, seed: int) -> Rows:
    """Makes the rows of new classes.

    Args:
        head: the head that has the old rows.
        features: mean features of every class, the new ones last, `(classes, features)`; None for random rows. If all
            are new, an average picture scores 0.
        count: how many classes are new.
        seed: of random rows.
    """
    old = _as_softmax(_columns(head.kernel))
    norm = float(np.linalg.norm(old, axis=0).mean())
    if features is None:
        directions = np.random.default_rng(seed).normal(size=(count, len(old)))
        return Rows(SMALL * norm * _unit(directions).T, np.zeros(count))
    common = np.nanmean(features, axis=0)
    rows = norm * _unit(features[-count:] - common).T
    bias = np.zeros(count) if head.bias is None else -common @ rows
    if head.bias is not None and len(features) > count:
        bias = (_as_softmax(_columns(head.bias))[0] + common @ old).mean() - common @ rows
    return Rows(rows, bias)


def _unit(directions: np.ndarray) -> np.ndarray:
    """Scales each row to the norm 1; zeros stay."""
    lengths = np.linalg.norm(directions, axis=1, keepdims=True)
    return np.asarray(directions / np.where(lengths > 0, lengths, 1.0))


def _columns(variable: Any) -> np.ndarray:
    array = np.asarray(live_state.host_array(variable.value), np.float64)
    return array.reshape(-1, array.shape[-1])


def _as_softmax(array: np.ndarray, *, signed: bool = True) -> np.ndarray:
    """Converts the row of one sigmoid output to those of two outputs; returns more outputs unchanged.

    Args:
        array: `(..., outputs)`.
        signed: False for sizes, which both outputs share.
    """
    if array.shape[-1] != 1:
        return array
    return np.concatenate([-array, array] if signed else [array, array], axis=-1)


def fill(
    model: keras.Model,
    optimizer: Any,
    head: HeadLayer,
    wider: keras.Model,
    wider_head: HeadLayer,
    saved: SavedOptimizer,
    rows: Rows,
    *,
    replaces: bool = False,
) -> Any:
    """Copies every variable into a wider model, and its slots into a new optimizer.

    Args:
        model: the model.
        optimizer: built on its trainable variables.
        head: its head.
        wider: the same architecture with more outputs.
        wider_head: its head.
        saved: class and config of the optimizer.
        rows: the new rows.
        replaces: True drops the old rows: the new head has the new ones alone.

    Returns:
        The optimizer of `wider`, built. The slots of the new rows start fresh; their averages (EMA) start at the rows.
    """
    _copy(model, head, wider, rows, replaces=replaces)
    grown = optimizers.make_optimizer(saved, 1e-3)
    grown.build(wider.trainable_variables)
    begun = [
        (slot.variable, np.array(live_state.host_array(slot.variable.value)))
        for slot in slots.describe(grown)
        if replaces and (slot.weight is wider_head.kernel or slot.weight is wider_head.bias) and slot.weight is not None
    ]
    slots.carry(optimizer, grown, (lambda *_: None) if replaces else _fitted)
    if replaces:
        live_state.assign([variable for variable, _ in begun], [array for _, array in begun])
        own = {id(each) for each in (wider_head.kernel, wider_head.bias) if each is not None}
        weights = live_state.inner(grown)._trainable_variables
        fresh = {index: own_counts.count_of(grown) for index, weight in enumerate(weights) if id(weight) in own}
        own_counts.begin(grown, own_counts.counts_of(grown) | fresh)
    _begin_averages(grown, wider_head, len(rows.bias))
    return grown


def _copy(model: keras.Model, head: HeadLayer, wider: keras.Model, rows: Rows, *, replaces: bool = False) -> None:
    """Copies every variable into a wider model, with new rows in the head; see `fill`."""
    targets = {address.position: identity for identity, address in structure.address_of(wider).items()}
    live = {id(variable): variable for variable in wider.variables}
    own = {id(each) for each in (head.kernel, head.bias) if each is not None}
    addresses = structure.address_of(model)

    def value_of(variable: Any, target: Any) -> np.ndarray:
        old = np.array(live_state.host_array(variable.value))
        if id(variable) not in own:
            return old
        new = rows.kernel if variable is head.kernel else rows.bias
        if replaces:
            return np.asarray(new.reshape(target.shape).astype(old.dtype))
        both = _as_softmax(old) * (0.5 if old.shape[-1] == 1 else 1.0)
        new = new.reshape(*target.shape[:-1], -1).astype(old.dtype)
        return np.concatenate([both, new], axis=-1).astype(old.dtype)

    for variable in model.variables:
        target = live[targets[addresses[id(variable)].position]]
        target.assign(value_of(variable, target))
    live_state.renew_constants(wider)


def check_answers(model: keras.Model, head: HeadLayer, wider: keras.Model, chances: Sequence[Chances]) -> None:
    """Raises if two outputs in place of one answer differently.

    Operations behind the head, such as a number that is added, act on one output otherwise than on a pair.

    Args:
        model: the model with one output.
        head: its head.
        wider: the same architecture with more outputs; it takes the model's weights.
        chances: what turns the outputs of either into probabilities of classes.

    Raises:
        ModelError: the answers to generated pictures differ.
    """
    features, new = int(head.kernel.shape[-2]), output_count(wider) - 2
    _copy(model, head, wider, Rows(np.zeros((features, new)), np.zeros(new)))
    given = [values for values in map(answers, (model, wider)) if values is not None and np.isfinite(values).all()]
    if len(given) < 2:
        return  # generated pictures show nothing
    one, pair = (make(values)[:, :2] for make, values in zip(chances, given, strict=True))
    sums = pair.sum(axis=1)
    if np.abs(one[:, 1] - pair[:, 1] / np.where(sums > 0, sums, 1.0)).max() > ALIKE:
        raise ModelError(not_grown(f"passes further operations behind the layer {head.layer.name}"))


def _fitted(meaning: str, value: np.ndarray, fresh: np.ndarray) -> np.ndarray | None:
    """Puts the slots of the old rows before fresh ones; None for a slot whose meaning is unknown."""
    if value.shape[-1:] == (1,) and fresh.shape[-1] > 1:
        if meaning in slots.SIGNED:
            value = _as_softmax(value) * (0.5 if meaning == slots.AVERAGES else 1.0)
        elif meaning in slots.SIZES:
            value = _as_softmax(value, signed=False)
        else:
            return None
    result = fresh.copy()
    result[tuple(slice(0, size) for size in value.shape)] = value
    return result


def _begin_averages(optimizer: Any, head: HeadLayer, count: int) -> None:
    """Starts the averages (EMA) of new rows at the rows."""
    if not live_state.inner(optimizer).use_ema:
        return
    own = {id(each) for each in (head.kernel, head.bias) if each is not None}
    for weight, average in pairs_of(optimizer):
        if id(weight) in own:
            value, mean = (np.array(live_state.host_array(each.value)) for each in (weight, average))
            mean[..., -count:] = value[..., -count:]
            average.assign(mean)
