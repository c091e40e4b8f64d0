"""Says which data of the caller begin anew after an interruption.

notes = at_first(call, stream)                  # lines for a training that begins
note = after_restart(records, call, stream)     # for one that continues: training data; empty if they go on
note = of_validation(call)                      # the same for validation data
"""

from __future__ import annotations

from collections.abc import Mapping
from types import GeneratorType
from typing import Any

import keras

from kresume.drop_in import caches
from kresume.drop_in.fit_call import FitCall
from kresume.drop_in.generator_state import changed_by_generators
from kresume.drop_in.stream import Stream
from kresume.drop_in.user_map import calls_python, changes_variables

SHUFFLING = ("RandomSampler", "WeightedRandomSampler", "SubsetRandomSampler")
"""Samplers of a torch `DataLoader` that draw from a generator of torch."""


def at_first(call: FitCall | None, stream: Stream | None) -> list[str]:
    """Returns notes on what a continuation of this training will not continue."""
    unknown = [] if stream is not None else ["the backup does not record the order of the data (data= adds it)"]
    return [*unknown, *filter(None, [of_validation(call)])]


def after_restart(records: Mapping[str, Any], call: FitCall | None, stream: Stream | None) -> str:
    """Returns a note if the training data do not go on as they would have; else empty.

    Args:
        records: the records of the backup.
        call: the running `fit`, None if it was not found.
        stream: the data of `data=`, which go on; None if the data are the user's own.
    """
    if call is None or stream is not None:
        return ""
    return (
        _drawn_before(call)
        or _begin_again(records, call)
        or _shuffled_by_keras(records, call)
        or (_generators_begin(call.x, "the data") if _is_later(records, call) else "")
        or _go_on_otherwise(call)
    )


def of_validation(call: FitCall | None) -> str:
    """Returns a note if validation after an interruption sees other data than it would have; else empty."""
    if call is None:
        return ""
    if call.validations.in_part:
        return (
            "validation_steps draws a part of data that cache() keeps behind a shuffle, so validation may see other pictures "
            "when training is continued (cache before the shuffle, or validate on all of them)"
        )
    if call.one_pass and caches.is_shared(call.x, call.validations.data):
        return (
            "training and validation are parts of what cache() keeps behind a shuffle, and with steps_per_epoch either fills "
            "it, so both may see other pictures when training is continued (cache before the shuffle, or no steps_per_epoch)"
        )
    if not isinstance(call.validations.data, GeneratorType):
        return _generators_begin(call.validations.data, "the validation data")
    return (
        "the validation data are a generator, which begins at its first batch again when training is continued, so validation "
        "sees other pictures then (a tf.data.Dataset, a keras.utils.PyDataset and kresume.image_dataset go on)"
    )


def _drawn_before(call: FitCall) -> str:
    """Returns a note if this process drew from data that cannot go back to an earlier order; else empty."""
    hooks = [getattr(type(call.x), name, None) for name in ("on_epoch_begin", "on_epoch_end")]
    own_hooks = isinstance(call.x, keras.utils.PyDataset) and any(
        not getattr(hook, "__module__", "keras.").startswith("keras.") for hook in hooks
    )
    if not call.earlier.drawn_before or not (own_hooks or caches.has_shuffle(call.x)):
        return ""
    return (
        "this process drew from the same data before, which therefore go on in another order than in a training that was not "
        "interrupted: in an interrupted epoch some come twice and others not (a new process continues exactly; so does data=)"
    )


def _begin_again(records: Mapping[str, Any], call: FitCall) -> str:
    """Returns a note if `fit` cannot go on in its data where the backup was; else empty.

    With `steps_per_epoch` Keras draws all epochs from one iterator. Of data without a known length it is not known which
    batches come again, so none are skipped.
    """
    if not call.one_pass or records.get("drawn") is not None:
        return ""
    return (
        "with steps_per_epoch and data of unknown length fit begins at the data's first batch again, as Keras does, so batches "
        "that were trained may come again (kresume.resumable continues behind them)"
    )


def _shuffled_by_keras(records: Mapping[str, Any], call: FitCall) -> str:
    """Returns a note if Keras shuffles a `PyDataset` in an order that cannot be drawn again; else empty."""
    adapter = call.iterator.data_adapter
    if not (isinstance(call.x, keras.utils.PyDataset) and adapter.shuffle and adapter.num_batches is not None):
        return ""
    if "generators" in records and not call.one_pass:
        return ""
    return (
        "fit shuffles the PyDataset (its default), and batches follow in another order than they would have (shuffle=False, or "
        "no steps_per_epoch, continues exactly)"
    )


def _is_later(records: Mapping[str, Any], call: FitCall) -> bool:
    """Tests whether an iterator of the data ended before the backup."""
    return int(records.get("passes") or 1) > 1 if call.one_pass else int(records["epoch"]) > call.first


def _generators_begin(data: Any, called: str) -> str:
    """Returns a note if generators of a `tf.data.Dataset` go on in what they keep over epochs; else empty."""
    names = changed_by_generators(data)
    if not names:
        return ""
    return (
        f"the generator of {called} changes {', '.join(names)}, which no backup holds: when training is continued that begins "
        "anew, so other data may follow (let it draw from np.random, or from the epoch)"
    )


def _go_on_otherwise(call: FitCall) -> str:
    """Returns a note if the data draw from a state that no backup holds; else empty."""
    if call.draws.unknown:
        return (
            "the data open a dataset that no function of theirs names, and what that shuffles with a seed goes on in another "
            "order (name it in the function that returns it)"
        )
    if changes_variables(call.x):
        return (
            "a map of the data changes a variable (Keras's random layers count their calls), which begins anew, so other "
            "pictures follow (map= of kresume.image_dataset continues exactly)"
        )
    if calls_python(call.x):
        return (
            "a function of the data calls Python code (tf.numpy_function or tf.py_function): what that draws at random begins "
            "anew (map= of kresume.image_dataset gives it a seed)"
        )
    if _draws_from_torch(call.x):
        return (
            "the DataLoader shuffles by a generator of torch, whose state no backup holds, so batches follow in another order "
            "(kresume.image_dataset and kresume.resumable continue exactly)"
        )
    return ""


def _draws_from_torch(data: Any) -> bool:
    """Tests whether a torch `DataLoader` draws its order from a generator of torch."""
    samplers = [getattr(data, "sampler", None), getattr(getattr(data, "batch_sampler", None), "sampler", None)]
    return any(base.__name__ in SHUFFLING for sampler in samplers for base in type(sampler).__mro__)
