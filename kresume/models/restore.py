"""Restores a checkpoint into a live model, completely or not at all.

    restoration = restore(model, state, optimizer=optimizer)
    print(restoration.summary)       # 28 of 28 variables (14 weights, 14 optimizer), step 16,431; ...

Each variable has one of three outcomes: *restored*; *not in this format*, which starts fresh (seed states and metrics
in foreign formats, a loss scale that the writer's precision did not need); *missing*, which is an error with a table.
Variables are matched by the format's own structure, never by auto-generated paths alone: those differ from process to
process. Arrays and variables that the structure leaves over are paired by shape, with a message, if only one pairing is
possible.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from kresume.backend import live_state
from kresume.errors import RestoreError, UsageError
from kresume.models import adapters, match_slots, misfit, own_counts, slots
from kresume.models.layouts import rules_of
from kresume.models.match_slots import Matched
from kresume.models.misfit import MISSING, NOT_IN_FORMAT, RESTORED, SHAPE, UNUSED
from kresume.spelling import option
from kresume.values.state import TrainState


@dataclass(frozen=True)
class Restoration:
    """The outcome of a restore for every variable.

    Attributes:
        rows: (variable, shape in the model, shape in the checkpoint, outcome), in the model's order.
        summary: one line for the user.
        notes: those of its parts that say how arrays were matched.
        undecayed: addresses of what the checkpoint's optimizer leaves out of weight decay, where only matching shows it.
    """

    rows: tuple[tuple[str, str, str, str], ...]
    summary: str
    notes: tuple[str, ...] = ()
    undecayed: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Target:
    """A live variable to restore."""

    variable: Any
    group: str
    index: int

    @property
    def is_rate(self) -> bool:
        return self.group == "optimizer" and str(self.variable.path).rpartition("/")[2] == "learning_rate"

    @property
    def is_seed(self) -> bool:
        return str(self.variable.path).rpartition("/")[2].startswith("seed_generator_state")


def restore(
    model: keras.Model,
    state: TrainState,
    *,
    optimizer: Any | None,
    partial: bool = False,
    map_file: str | None = None,
    map_out: str | None = None,
    same_weights: bool = False,
) -> Restoration:
    """Assigns a checkpoint's arrays to a model and an optimizer.

    Args:
        model: built.
        state: the checkpoint.
        optimizer: built on the model's trainable variables, with its rate in the saved form (a float or a schedule);
            None restores the weights alone.
        partial: True to assign the variables that match even if others are missing.
        map_file: for a PyTorch state dict, a YAML file of the mapping; its entries take precedence over what is found.
        map_out: for a PyTorch state dict, the file to write the whole mapping to.
        same_weights: the user states that the weights trainable now were trainable when the file was written; for
            formats that list an optimizer's slots without their weights.

    Raises:
        UsageError: a map was given for another format, or is invalid.
        RestoreError: a variable is missing or has another shape, or an array of the file has no variable. Nothing was
            assigned. The error carries the table.
    """
    targets = _targets(model, optimizer)
    notes: list[str] = []
    idle = slots.placeholders(optimizer) if optimizer is not None else set()
    if (convert := rules_of(state).convert) is not None:
        state, how = convert(model, optimizer, state, map_file=map_file, map_out=map_out)
        notes.append(how)
    elif map_file is not None or map_out is not None:
        raise UsageError(
            f"{option('map')} and {option('map-out')} are only for PyTorch state dicts; {state.source} is {state.format}"
        )
    rules = rules_of(state)
    state, added = rules.complete(model, optimizer, state)
    notes += [added] * bool(added)
    matched = rules.match(model, optimizer, state, targets, same_weights=same_weights)
    notes += matched.notes
    names = matched.names
    scale = {id(variable) for variable in slots.scale_variables(optimizer)} if optimizer is not None else set()
    targets = [target for target in targets if id(target.variable) in names or id(target.variable) not in idle]
    rows: list[tuple[str, str, str, str]] = []
    ready: list[tuple[Any, np.ndarray]] = []
    wrong: list[tuple[str, str, str, str]] = []
    for target in targets:
        name = names.get(id(target.variable))
        label = target.variable.path
        wanted = _shape(target.variable.shape)
        if name is None:
            fresh = (target.is_seed and not rules.keeps_seeds) or target.is_rate
            fresh = fresh or id(target.variable) in scale or id(target.variable) in matched.fresh
            row = (label, wanted, "-", NOT_IN_FORMAT if fresh else MISSING)
        elif tuple(state.arrays[name].shape) != tuple(target.variable.shape):
            row = (label, wanted, _shape(state.arrays[name].shape), SHAPE)
        else:
            row = (label, wanted, _shape(state.arrays[name].shape), RESTORED)
            ready.append((target.variable, _converted(state.arrays[name], target.variable, label)))
        rows.append(row)
        if row[3] in {MISSING, SHAPE}:
            wrong.append(row)
    spare = matched.left_out | matched.replaced | matched.apart
    over = [name for name in rules.unused(model, optimizer, state, names) if name not in spare]
    unused = [(f"({name})", "-", _shape(state.arrays[name].shape), UNUSED) for name in over]
    if (wrong or unused) and not partial:
        slotless = misfit.slotless_layers(model, optimizer, wrong)
        message = misfit.describe(model, optimizer, state, wrong, unused, matched, slotless)
        raise RestoreError(message, [*rows, *unused], slotless)
    for variable, array in ready:
        variable.assign(_unshared(array))
    adapters.start(model, matched.fresh)
    live_state.renew_constants(model)
    if optimizer is not None:
        late = set(state.records.get("unstarted", ()))
        begun = {id(variable) for variable, _ in ready if names[id(variable)] not in late}
        notes += _begin_fresh(optimizer, state, begun, matched)
    summary = "; ".join([_summary(state, targets, rows, unused, scale), *notes])
    return Restoration((*rows, *unused), summary, matched.notes, tuple(state.records.get("undecayed", ())))


def restore_averages(model: keras.Model, state: TrainState, optimizer: Any) -> None:
    """Assigns only the averages of weights (EMA).

    The average of a weight that did not train is the weight.

    Args:
        model: built, with its weights restored.
        state: the checkpoint.
        optimizer: built on every weight that can train.

    Raises:
        RestoreError: the file's averages are not found, or their weights are not certain.
    """
    matched = rules_of(state).match(model, optimizer, state, _targets(model, optimizer))
    averages = {
        id(slot.variable): (slot.variable, slot.weight)
        for slot in slots.describe(optimizer)
        if slot.kind == slots.AVERAGES and slot.weight is not None
    }
    found = {key: state.arrays[name] for key, name in matched.names.items() if key in averages}
    if matched.unsure or not found:
        raise RestoreError(
            f"{state.source} holds averages of its weights, but "
            + (
                "not which weight each belongs to (layers were frozen)"
                if matched.unsure
                else "none of them fits the model"
            )
            + f": give the model that wrote the checkpoint with {option('model')}"
        )
    for key, (average, weight) in averages.items():
        array = found.get(key, np.array(live_state.host_array(weight.value)))
        if tuple(average.shape) != array.shape:
            raise RestoreError(
                f"{state.source}: the average of {weight.path} has the shape {_shape(array.shape)}, expected "
                f"{_shape(average.shape)}"
            )
        average.assign(_unshared(_converted(array, average, str(weight.path))))


def restore_optimizer(model: keras.Model, state: TrainState) -> str:
    """Restores a compiled model's optimizer as far as possible.

    Slots that are not restored start fresh and count their own steps.

    Args:
        model: compiled, with its weights restored and its optimizer built but unused.
        state: the checkpoint.

    Returns:
        A note on what was not restored; empty if everything was.
    """
    optimizer = model.optimizer
    rules = rules_of(state)
    state, _ = rules.complete(model, optimizer, state)
    matched = rules.match(model, optimizer, state, _targets(model, optimizer))
    own = [(variable, matched.names[id(variable)]) for variable in optimizer.variables if id(variable) in matched.names]
    for variable, name in own:
        variable.assign(_unshared(_converted(state.arrays[name], variable, str(variable.path))))
    said = _begin_fresh(optimizer, state, {id(variable) for variable, _ in own}, matched)
    if matched.unsure:
        said.insert(0, "layers are frozen, and Keras's file does not record which weights its slots belong to")
    return "; ".join(said)


def _begin_fresh(optimizer: Any, state: TrainState, restored: set[int], matched: Matched) -> list[str]:
    """Starts unrestored slots with own step counts; returns notes on them for the user."""
    said = []
    fresh = slots.begin_fresh(optimizer, restored, match_slots.counts(optimizer, state, matched.names))
    counted = type(live_state.inner(optimizer)).__name__ not in own_counts.UNCOUNTED
    if fresh and own_counts.count_of(optimizer) and counted:
        said.append(
            f"the slots of {len(fresh):,} weight{'s' * (len(fresh) > 1)} ({', '.join(fresh[:3])}{', ...' * (len(fresh) > 3)}) "
            "start fresh and count their own steps"
        )
    left = len(matched.left_out) + int(state.records.get("left_out", 0))
    if left:
        said.append(f"{left:,} slots of weights that are frozen now are left out")
    return said


ALIGNED = 64
"""Alignment in bytes from which JAX on a CPU may use a host buffer as the variable itself; it copies any other buffer."""


def _unshared(array: np.ndarray) -> np.ndarray:
    """Copies the array if JAX could alias its buffer.

    Training donates the buffers of variables and would overwrite it.
    """
    return np.array(array, copy=True) if array.ctypes.data % ALIGNED == 0 else array


def _targets(model: keras.Model, optimizer: Any | None) -> list[_Target]:
    groups: dict[str, Any] = {
        "trainable": model.trainable_variables,
        "non_trainable": model.non_trainable_variables,
        "optimizer": optimizer.variables if optimizer is not None else [],
    }
    return [
        _Target(variable, group, index)
        for group, variables in groups.items()
        for index, variable in enumerate(variables)
    ]


def _shape(shape: Any) -> str:
    return str(tuple(int(size) for size in shape))


def _converted(array: np.ndarray, variable: Any, label: str) -> np.ndarray:
    """Converts the array to the variable's dtype.

    Counters and seeds differ between backends (int64, int32, uint32).

    Raises:
        RestoreError: an integer does not fit into the dtype.
    """
    dtype = keras.backend.standardize_dtype(variable.dtype)
    if str(array.dtype) == dtype:
        return array
    if dtype == "bfloat16":
        import ml_dtypes

        return array.astype(ml_dtypes.bfloat16)
    if array.dtype.kind in "iu" and array.size:
        limits = np.iinfo(dtype) if np.dtype(dtype).kind in "iu" else None
        if limits is not None and (int(array.max()) > limits.max or int(array.min()) < limits.min):
            raise RestoreError(f"{label}: the value {int(array.max())} does not fit into {dtype}")
    return array.astype(dtype)


def _summary(
    state: TrainState,
    targets: list[_Target],
    rows: list[tuple[str, str, str, str]],
    unused: list[tuple[str, str, str, str]],
    scale: set[int],
) -> str:
    done = [target for target, row in zip(targets, rows, strict=True) if row[3] == RESTORED]
    weights = sum(target.group != "optimizer" for target in done)
    counted = [target for target, row in zip(targets, rows, strict=True) if row[3] != NOT_IN_FORMAT]
    text = f"{len(done):,} of {len(counted):,} variables ({weights:,} weights, {len(done) - weights:,} optimizer)"
    if state.step is not None:
        text += f", step {state.step:,}"
    seeds = sum(row[3] == NOT_IN_FORMAT and target.is_seed for target, row in zip(targets, rows, strict=True))
    if seeds:
        text += f"; {seeds} seed state{'s' if seeds > 1 else ''} not in this format: fresh"
    if any(row[3] == NOT_IN_FORMAT and id(target.variable) in scale for target, row in zip(targets, rows, strict=True)):
        text += "; the loss scale starts fresh"
    lost = [row[0] for row in rows if row[3] in {MISSING, SHAPE}]
    if lost or unused:
        text += f"; {option('partial', True)}: fresh {', '.join(lost) or 'nothing'}; unused arrays {len(unused)}"
    return text
