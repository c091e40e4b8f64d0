"""Restores a checkpoint into a live model: every variable is accounted for, or nothing is assigned.

    restoration = restore(model, state, optimizer=optimizer)
    print(restoration.summary)       # 28 of 28 variables (14 weights, 14 optimizer), step 16,431; ...

Each variable has one of three outcomes: *restored*; *not in this format* (seed states and metrics in foreign formats, a
loss scale that the writer's precision did not need: they start fresh); *missing*, which is an error with a table. Variables
are matched by the format's own structure, never by the auto-generated paths alone: those shift from process to process.
What the structure leaves over on both sides meets by shape, with a message, where only one pairing is possible.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from kresume.checkpoints.state import TrainState
from kresume.errors import RestoreError
from kresume.models import match_graph, match_layers, slots

RESTORED, NOT_IN_FORMAT, MISSING, SHAPE, UNUSED = (
    "restored", "not in this format", "missing", "another shape", "not in the model",
)  # fmt: skip

METRICS = ("metrics/", "compile_metrics/")
"""Where files of Keras 2 keep the state of metrics, which start fresh."""


@dataclass(frozen=True)
class Restoration:
    """What became of every variable.

    Attributes:
        rows: (variable, shape in the model, shape in the checkpoint, outcome), in the model's order.
        summary: one line for a person.
    """

    rows: tuple[tuple[str, str, str, str], ...]
    summary: str


@dataclass(frozen=True)
class _Target:
    """A live variable that wants a value."""

    variable: Any
    group: str
    index: int

    @property
    def is_rate(self) -> bool:
        return self.group == "optimizer" and str(self.variable.path).rpartition("/")[2] == "learning_rate"

    @property
    def is_seed(self) -> bool:
        return str(self.variable.path).rpartition("/")[2].startswith("seed_generator_state")


def restore(model: keras.Model, state: TrainState, *, optimizer: Any | None, partial: bool = False) -> Restoration:
    """Assigns a checkpoint's arrays to a model and an optimizer.

    Args:
        model: built.
        state: what was read.
        optimizer: built on the model's trainable variables, its rate in the form in which it was saved; None restores
            the weights alone.
        partial: assign what matches although something is missing.

    Raises:
        RestoreError: a variable is missing, has another shape, or an array of the file found no variable. Nothing was
            assigned. The error carries the table.
    """
    targets = _targets(model, optimizer)
    notes: list[str] = []
    names = _match(model, optimizer, state, targets, notes)
    scale = {id(variable) for variable in slots.scale_variables(optimizer)} if optimizer is not None else set()
    rows: list[tuple[str, str, str, str]] = []
    ready: list[tuple[Any, np.ndarray]] = []
    wrong: list[tuple[str, str, str, str]] = []
    for target in targets:
        name = names.get(id(target.variable))
        label = target.variable.path
        wanted = _shape(target.variable.shape)
        if name is None:
            fresh = (target.is_seed and state.layout != "groups") or target.is_rate or id(target.variable) in scale
            row = (label, wanted, "-", NOT_IN_FORMAT if fresh else MISSING)
        elif tuple(state.arrays[name].shape) != tuple(target.variable.shape):
            row = (label, wanted, _shape(state.arrays[name].shape), SHAPE)
        else:
            row = (label, wanted, _shape(state.arrays[name].shape), RESTORED)
            ready.append((target.variable, _converted(state.arrays[name], target.variable, label)))
        rows.append(row)
        if row[3] in {MISSING, SHAPE}:
            wrong.append(row)
    unused = [(f"({name})", "-", _shape(state.arrays[name].shape), UNUSED) for name in _unused(state, names, optimizer)]
    if (wrong or unused) and not partial:
        raise RestoreError(_message(state, wrong, unused), [*rows, *unused])
    for variable, array in ready:
        variable.assign(_unshared(array))
    return Restoration((*rows, *unused), "; ".join([_summary(state, targets, rows, unused, scale), *notes]))


ALIGNED = 64
"""A host buffer that begins at a multiple of so many bytes may become a variable itself, on a CPU; another one is copied."""


def _unshared(array: np.ndarray) -> np.ndarray:
    """The array in a buffer that no variable will share with it: JAX would give it away with the variable later."""
    return np.array(array, copy=True) if array.ctypes.data % ALIGNED == 0 else array


def _targets(model: keras.Model, optimizer: Any | None) -> list[_Target]:
    groups = {
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
    """The array in the variable's type: counters and seeds differ between backends (int64, int32, uint32).

    Raises:
        RestoreError: a whole number does not fit.
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


def _match(model: Any, optimizer: Any, state: TrainState, targets: list[_Target], notes: list[str]) -> dict[int, str]:
    """`id(variable)` -> name of its array, for every variable that finds one; what a person should know goes to `notes`."""
    if state.layout == "graph":
        return match_graph.match(model, optimizer, state, targets)
    if state.layout in {"groups", "mapped"}:
        names = {id(target.variable): f"{target.group}/{target.index}" for target in targets}
        names = {key: name for key, name in names.items() if name in state.arrays}
        scaled = state.optimizer is not None and state.optimizer.loss_scale
        if optimizer is not None and state.layout == "groups" and scaled != bool(slots.scale_variables(optimizer)):
            names |= slots.match(optimizer, state)  # the same optimizer, with loss scaling around it on one side only
        return names
    if state.layout == "keras":
        names = {id(variable): name for variable, name in keras_names(model) if name in state.arrays}
    else:
        names, said = match_layers.match(model, state)
        notes += said
    if optimizer is not None:
        names |= slots.match(optimizer, state)
    return names | _by_shape(state, targets, names, optimizer, notes)


def _by_shape(
    state: TrainState, targets: list[_Target], names: Mapping[int, str], optimizer: Any, notes: list[str]
) -> dict[int, str]:
    """Pairs the weights that the structure left over, if every one of them has a shape of its own, in file and model alike."""
    left = [
        target
        for target in targets
        if target.group != "optimizer" and id(target.variable) not in names and not target.is_seed
    ]
    unused = _unused(state, names, optimizer)
    over = {tuple(state.arrays[name].shape): name for name in unused}
    wanted = {tuple(target.variable.shape): target for target in left}
    if not left or len(over) != len(unused) or len(wanted) != len(left) or over.keys() != wanted.keys():
        return {}
    pairs = {id(target.variable): over[shape] for shape, target in wanted.items()}
    shown = ", ".join(f"{pairs[id(target.variable)]} is {target.variable.path}" for target in left[:3])
    notes.append(f"{len(left)} matched by shape alone ({shown}{', ...' if len(left) > 3 else ''})")
    return pairs


def saved_weights(model: keras.Model, state: TrainState) -> list[np.ndarray]:
    """The trainable weights that a file of the layout `"keras"` holds, in the model's order; zeros where it has none."""
    names = {id(variable): name for variable, name in keras_names(model)}
    return [
        state.arrays.get(names.get(id(variable), ""), np.zeros(tuple(variable.shape), "float32"))
        for variable in model.trainable_variables
    ]


def keras_names(model: keras.Model) -> list[tuple[Any, str]]:
    """Each variable of a model with the HDF5 path at which Keras's saving library keeps it.

    Keras's own walk is run with a store that records instead of writing, so that its rules (class names in order, containers,
    shared layers once) need not be repeated here. A private function: used here alone, pinned by a test.
    """
    from keras.src.saving import saving_lib

    found: list[tuple[Any, str]] = []

    class Entry(dict[str, Any]):
        def __init__(self, path: str) -> None:
            super().__init__()
            self.path = path

        def __setitem__(self, key: str, value: Any) -> None:
            found.append((value, f"{self.path}/vars/{key}".lstrip("/")))

    class Recorder(saving_lib.H5IOStore):  # type: ignore[misc]  # keras is untyped
        def __init__(self) -> None:
            """Opens no file."""

        def make(self, path: str, metadata: Any = None) -> Entry:
            return Entry(path)

        def __bool__(self) -> bool:
            return True

    saving_lib._save_state(model, Recorder(), None, inner_path="", visited_saveables=set())
    return [(value, path) for value, path in found if isinstance(value, keras.Variable)]


def _unused(state: TrainState, names: Mapping[int, str], optimizer: Any | None) -> list[str]:
    """Arrays of the file that found no variable, apart from what is known to have none."""
    taken = set(names.values())
    left = [name for name in state.arrays if name not in taken]
    if state.layout == "groups":
        if optimizer is not None and state.optimizer is not None and state.optimizer.loss_scale:
            left = [name for name in left if name not in slots.superfluous(optimizer, state)]
        groups = {"trainable", "non_trainable", *(("optimizer",) if optimizer is not None else ())}
        return [name for name in left if name.partition("/")[0] in groups]
    if state.layout == "mapped":
        return left
    if state.layout == "graph":
        return match_graph.unused(left, optimizer)
    extra = slots.superfluous(optimizer, state)
    if state.layout == "keras":
        return [name for name in left if name not in extra and "/vars/" in f"/{name}" and not name.startswith(METRICS)]
    return [name for name in left if name not in extra]


def _message(state: TrainState, wrong: list[tuple[str, str, str, str]], unused: list[tuple[str, str, str, str]]) -> str:
    ways = "give the --model that the checkpoint was made with, or go on with what fits by --partial"
    if wrong:
        label, wanted, found, outcome = wrong[0]
        what = (
            f"{label} has the shape {wanted} in the model and {found} in the checkpoint"
            if outcome == SHAPE
            else f"{label} {wanted} is not in the checkpoint"
        )
        more = f" (and {len(wrong) + len(unused) - 1:,} more)" if len(wrong) + len(unused) > 1 else ""
        return f"{state.source} does not fit the model: {what}{more}; nothing was restored: {ways}"
    return (
        f"{state.source} holds {len(unused):,} arrays that the model has no variable for, the first is "
        f"{unused[0][0].strip('()')} {unused[0][2]}; nothing was restored: {ways}"
    )


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
        text += f"; --partial: fresh {', '.join(lost) or 'nothing'}; unused {len(unused)}"
    return text
