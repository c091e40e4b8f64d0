"""Runs Keras's own `fit` from any step; loses no step and repeats none.

    fit(model, dataset_from, boundaries=(21, 42, 63), callbacks=[scorer, early_stopping], keeper=keeper)

The result does not depend on this structure: a run trained here without interruption equals a plain `model.fit` on the
same data bit for bit, and so does a run that was killed and continued. Keras's private training loops are not
re-implemented; a callback shortens the first epoch of a process instead. `fit` runs once per process, and again after
images changed between two epochs, because the dataset has already prefetched old images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from kresume.backend import live_state
from kresume.errors import CheckpointError
from kresume.images.tf_data import for_fit
from kresume.models import match_groups, match_slots, slots, structure
from kresume.options.given import to_train
from kresume.spelling import counted
from kresume.training.loop.callbacks import Cutter, Keeper
from kresume.values.state import TrainState


class BegunOnce(keras.callbacks.CallbackList):  # type: ignore[misc]  # keras is untyped
    """A callback list that begins and ends training once, over several calls of `fit`.

    It hands on the logs of a step without reading them.
    """

    keeper: Keeper
    _begun = False
    _computing: Any = None

    def on_train_begin(self, logs: Any = None) -> None:
        """Calls the callbacks, the first time only."""
        if not self._begun:
            self._begun = True
            super().on_train_begin(logs)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Waits for the step before this one, and calls the callbacks.

        Keras's list reads all values of the logs, which waits for this step: the device would stand still until Python gives
        it the next one. Waiting for the step before bounds how far Python is ahead.
        """
        live_state.wait_for(self._computing)
        self._computing = (logs or {}).get("loss")
        for callback in self.callbacks:
            callback.on_train_batch_end(batch, logs=logs)

    def on_train_end(self, logs: Any = None) -> None:
        """Calls the callbacks, unless `fit` ends only because the images changed."""
        if not self.keeper.images_changed:
            super().on_train_end(logs)


def build(model: keras.Model, images: tuple[int, ...], labels: tuple[int, ...], label_dtype: str) -> None:
    """Creates every variable of a compiled model: weights, metrics, optimizer slots.

    Args:
        model: the compiled model.
        images: the shape of a batch as the model expects it, `(batch, height, width, 3)` for example.
        labels: the shape of its labels.
        label_dtype: `"int32"` for indices, `"float32"` for rows of probabilities.
    """
    x, y = keras.KerasTensor(images, "float32"), keras.KerasTensor(labels, label_dtype)
    if isinstance(model, keras.Sequential) or not isinstance(model, keras.src.models.Functional):
        model._symbolic_build(data_batch=(x, y))
        return
    # As `_symbolic_build`, but without its pass through the built layers, which takes seconds for a large model.
    predicted = keras.KerasTensor((images[0], *model.output_shape[1:]), model.outputs[0].dtype)
    symbolic = keras.src.backend.compute_output_spec
    symbolic(model.compute_metrics, x, y, predicted, sample_weight=None)
    symbolic(model._compute_loss, x, y, predicted, sample_weight=None, training=False)
    model.optimizer.build(model.trainable_variables)
    model._post_build()


def groups_of(state: TrainState) -> dict[str, list[np.ndarray]]:
    """Groups a snapshot's arrays by name prefix, in index order."""
    groups: dict[str, list[np.ndarray]] = {"trainable": [], "non_trainable": [], "optimizer": [], "metrics": []}
    for name in sorted(state.arrays, key=lambda name: (name.rpartition("/")[0], int(name.rpartition("/")[2]))):
        groups.setdefault(name.rpartition("/")[0], []).append(state.arrays[name])
    return groups


def build_from_spec(model: keras.Model, spec: Any | None) -> None:
    """Creates every variable of a compiled model that `fit` would create at its first step.

    Args:
        model: compiled, its layers built.
        spec: the `element_spec` of the dataset; None if unknown, then metrics cannot be created.
    """
    if spec is not None:
        batch = keras.tree.map_structure(lambda leaf: keras.KerasTensor(leaf.shape, leaf.dtype.name), spec)
        model._symbolic_build(data_batch=batch)
    elif model.optimizer is not None and not model.optimizer.built:  # a GAN may have two of its own, and none here
        model.optimizer.build(model.trainable_variables)


def assign_state(
    model: keras.Model,
    state: TrainState,
    *,
    metrics: bool = True,
    same_weights: bool = True,
    way_on: str = "",
) -> list[str]:
    """Assigns a snapshot to a compiled and built model.

    Weights are matched by their position in the model, slots by the weight that they belong to. A variable's path is
    unstable: auto-generated names differ between processes, and slot paths depend on how the optimizer was built. An
    index is unstable too: freezing layers changes it.

    Args:
        model: compiled and built.
        state: the snapshot.
        metrics: True checks the model's metrics against the snapshot. They are not assigned here, because `fit` resets
            them when an epoch begins; the keeper assigns them. False if the position is between epochs, when the
            metrics need not be built yet.
        same_weights: True requires that the same weights train as in the snapshot. False ignores slots of weights that
            are frozen now, and starts slots of weights that were frozen then fresh.
        way_on: the advice in an error if the model differs; empty for that of a run.

    Returns:
        Notes for the user: slots that were ignored, and slots that start fresh.

    Raises:
        CheckpointError: a variable has no array, an array has no variable, or a shape differs.
    """
    way_on = way_on or f"extend the run with `{to_train(from_='RUN', model='...')}`"
    variables, arrays = live_state.variables_of(model), groups_of(state)
    if metrics:
        _check(model, "metrics", variables["metrics"], arrays["metrics"], way_on)
    recorded = structure.RECORD in state.records
    if not recorded and same_weights:  # written by an earlier version; the model is built from the run's own record
        for group in ("trainable", "non_trainable", "optimizer"):
            _check(model, group, variables[group], arrays[group], way_on)
            live_state.assign(variables[group], arrays[group])
        live_state.renew_constants(model)
        live_state.assign_random(arrays.get(live_state.RANDOM, ()))
        return []
    names = match_groups.match_weights(model, state)
    optimizer = model.optimizer
    found = match_groups.match_optimizer(model, optimizer, state, names) if optimizer is not None else None
    trained = {f"trainable/{index}" for index in range(len(arrays["trainable"]))}
    now = {names.get(id(variable)) for variable in model.trainable_variables}
    _check_weights(model, names, state, recorded, way_on)
    if same_weights and trained != now:
        raise CheckpointError(
            f"other weights train in this model than in the snapshot ({len(now)} and {len(trained)}): something was frozen or "
            f"unfrozen since the run began; restore the code of the model, or {way_on}"
        )
    told: list[str] = []
    if found is not None:
        slot_names = _check_slots(model, found, state, trained, names, way_on, new_rate=not same_weights)
        names = {**names, **slot_names}
    pairs = [
        (variable, state.arrays[names[id(variable)]])
        for group in ("trainable", "non_trainable", "optimizer")
        for variable in variables[group]
        if id(variable) in names
    ]
    for variable, array in pairs:
        _check_shape(variable, array)
    live_state.assign(*zip(*pairs, strict=True)) if pairs else None
    live_state.renew_constants(model)
    live_state.assign_random(arrays.get(live_state.RANDOM, ()))
    if found is not None:
        restored = {id(variable) for variable, _ in pairs}
        counts = match_slots.counts(model.optimizer, state, names)
        fresh = slots.begin_fresh(model.optimizer, restored, counts)
        told += (
            [f"slots of {', '.join(fresh[:3])}{', ...' * (len(fresh) > 3)} start fresh (frozen before)"]
            if fresh
            else []
        )
        thawed = len(now - trained)
        if thawed and not fresh and not same_weights:
            told.append(f"{counted(thawed, 'weight', 'was', 'were')} frozen when it was saved, and can train now")
        left = len(found.left_out)
        told += [f"{left:,} slots of weights that are frozen now are left out"] if left else []
    return told


def _check(model: keras.Model, group: str, wanted: Sequence[Any], found: Sequence[np.ndarray], way_on: str) -> None:
    if len(wanted) != len(found):
        raise CheckpointError(
            f"the snapshot holds {len(found)} {group} variables, this model has {len(wanted)}: the code of the "
            f"model changed since the run began; restore that code, or {way_on}"
        )
    for variable, array in zip(wanted, found, strict=True):
        _check_shape(variable, array)


def _check_shape(variable: Any, array: np.ndarray) -> None:
    if tuple(variable.shape) != array.shape:
        raise CheckpointError(
            f"{variable.path} has the shape {tuple(variable.shape)} in this model and {array.shape} in the snapshot: the code "
            "of the model changed since the run began"
        )


def _check_weights(
    model: keras.Model, names: Mapping[int, str], state: TrainState, recorded: bool, way_on: str
) -> None:
    saved = [name for name in state.arrays if name.partition("/")[0] in structure.GROUPS]
    if len(model.variables) != len(saved):
        raise CheckpointError(
            f"the snapshot holds {len(saved)} weights and seed states, this model has {len(model.variables)}: the code of the "
            f"model changed since the run began; restore that code, or {way_on}"
        )
    lost = [variable.path for variable in model.variables if id(variable) not in names]
    if lost and not recorded:
        raise CheckpointError(
            f"{state.source} was written by an earlier version, which did not record which array is which weight, and "
            f"something was frozen, so that several choices fit: finish with that version, or {way_on}"
        )
    if lost:
        raise CheckpointError(
            f"the snapshot has no array for {lost[0]} ({len(lost)} weights of {len(saved)} are not in it): the code of the "
            f"model changed since the run began; restore that code, or {way_on}"
        )


def _check_slots(
    model: keras.Model,
    found: match_slots.Matched,
    state: TrainState,
    trained: set[str],
    weights: Mapping[int, str],
    way_on: str,
    *,
    new_rate: bool,
) -> Mapping[int, str]:
    """Checks the matched optimizer variables and returns their array names.

    A slot may be missing only if its weight did not train in the snapshot; the rate only if `new_rate`: a script may now
    compile a schedule instead of a number, or the other way round.
    """
    kinds = state.records.get(structure.RECORD, {}).get("optimizer", ())
    rates = {f"optimizer/{index}" for index, (kind, *_) in enumerate(kinds) if new_rate and kind == match_slots.RATE}
    taken = {*found.names.values(), *found.left_out, *rates}
    over = [name for name in state.arrays if name.startswith("optimizer/") and name not in taken]
    lost = [
        slot
        for slot in slots.describe(model.optimizer)
        if id(slot.variable) not in found.names
        and (slot.weight is None or weights[id(slot.weight)] in trained)
        and not (new_rate and slot.kind == match_slots.RATE)
    ]
    if lost or over:
        count = sum(name.startswith("optimizer/") for name in state.arrays)
        first = (
            f"it has none for {lost[0].variable.path}"
            if lost
            else f"{len(over)} of the snapshot's have no variable in the model"
        )
        raise CheckpointError(
            f"the snapshot holds {count} optimizer variables, this model has "
            f"{len(live_state.optimizer_variables(model.optimizer))}, and {first}: the optimizer changed since the run began; "
            f"restore that code, or {way_on}"
        )
    return found.names


def _rate_once_per_step(optimizer: Any) -> None:
    """Makes the optimizer compute a scheduled rate once per update.

    AdamW reads the rate again for every variable that it decays. Each read traces and runs the schedule's operations: a
    fifth of the time to the first step of MobileNetV2. The value is the same, because `iterations` increases at the end
    of an update.
    """
    inner = live_state.inner(optimizer)
    if "apply" in vars(inner):
        return
    apply, current = inner.apply, inner._get_current_learning_rate

    def apply_once(*arguments: Any, **options: Any) -> Any:
        rate = current()
        inner._get_current_learning_rate = lambda: rate
        try:
            return apply(*arguments, **options)
        finally:
            inner._get_current_learning_rate = current

    inner.apply = apply_once


def prepare(optimizer: Any) -> None:
    """Prepares a new optimizer for training.

    Keras overwrites the weights with their averages when `fit` ends. Snapshots hold both; the averages are applied when the
    result is written.
    """
    _rate_once_per_step(optimizer)
    optimizer.finalize_variable_values = lambda variables: None


def fit(
    model: keras.Model,
    dataset_from: Callable[[int], Any],
    *,
    boundaries: Sequence[int],
    callbacks: Sequence[Any],
    keeper: Keeper,
) -> None:
    """Trains from `keeper.progress` to the last boundary, or until a callback stops training.

    Args:
        model: compiled and built, with the state of that position.
        dataset_from: returns the endless dataset that begins at a step; called again after the images changed.
        boundaries: the step at which each epoch ends; entries after the current epoch may change.
        callbacks: narrator, scorer and Keras's callbacks; their state is in every snapshot.
        keeper: runs last in the list.

    Raises:
        Stopped: a signal requested it; the snapshot is on disk.
        TrainingError: the loss is no longer a number.
    """
    progress = keeper.progress
    if progress.done:
        return
    keeper.others = callbacks
    everything = BegunOnce(
        [Cutter(boundaries, progress.step), *callbacks, keeper],
        add_history=True,
        model=model,
        epochs=len(boundaries),
        steps=None,
    )
    everything.keeper = keeper
    prepare(model.optimizer)
    model.stop_training = False
    everything.on_train_begin()
    if progress.phase == "scoring":
        keeper.give_metrics_back()
        everything.on_epoch_end(progress.epoch, dict(model.get_metrics_result()))
    while not progress.done:
        keeper.images_changed = False
        lengths = [end - begin for begin, end in zip((0, *boundaries), boundaries, strict=False)]
        with for_fit(dataset_from(progress.step)) as batches:
            model.fit(
                batches,
                initial_epoch=progress.epoch,
                epochs=len(boundaries),
                steps_per_epoch=max(lengths),
                callbacks=everything,
                verbose=0,
                shuffle=False,
            )
