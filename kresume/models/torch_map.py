"""Maps a PyTorch state dict and its optimizer's moments onto a Keras model.

    state, how = to_model(model, optimizer, read_checkpoint("resnet18.pth"))     # a TrainState of the layout "mapped"

`restore` calls it for state dicts.

A layer with its module's name is matched by name (`layer1.0.conv1` is `layer1_0_conv1`), others by order and shape. An
uncertain match is an error. Fitting shapes prove little: another stride gives another function of the same variables.
So training accepts a mapping only after the model was right on labelled old images.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kresume.backend import live_state
from kresume.errors import RestoreError, UsageError
from kresume.models import structure, torch_rewritten
from kresume.models.torch_layout import Conversion, convert
from kresume.models.torch_order import in_order
from kresume.models.torch_units import COUNTER, Module, Unit, keras_units, pair, torch_modules
from kresume.spelling import option
from kresume.staging.output import output_file
from kresume.storage import atomic, one_file, yaml_text
from kresume.values.state import TrainState

SHORTCUT = re.compile(r"(^|[._])(downsample|shortcut|skip|identity|residual)([._\d]|$)", re.IGNORECASE)
TORCH_EPSILON = 1e-5
SLOTS = {
    "SGD": {"momentums": "momentum_buffer"},
    "Adam": {"_momentums": "exp_avg", "_velocities": "exp_avg_sq", "_velocity_hats": "max_exp_avg_sq"},
}
SLOTS["AdamW"] = SLOTS["Adam"]


@dataclass(frozen=True)
class Proposal:
    """A mapping, and the layers for which it is uncertain.

    Attributes:
        conversions: `LABEL/ROLE` -> source and conversion.
        ways: number of layers matched by `"map"`, `"name"`, `"order"` and `"shape"`.
        unsure: (label, shape, names of the modules that fit) of each layer for which several modules fit.
    """

    conversions: Mapping[str, Conversion]
    ways: Mapping[str, int]
    unsure: tuple[tuple[str, str, tuple[str, ...]], ...]


def to_model(
    model: keras.Model,
    optimizer: Any | None,
    state: TrainState,
    *,
    map_file: str | None = None,
    map_out: str | None = None,
) -> tuple[TrainState, str]:
    """Converts a state dict into the model's own layout.

    Args:
        model: built.
        optimizer: built on the model, of the class of the file's optimizer; None for the weights alone.
        state: of the layout `"torch"`.
        map_file: a YAML file whose entries take precedence over what is found.
        map_out: file to write the whole mapping to, even if it is uncertain.

    Returns:
        The state in the layout `"mapped"` (arrays without a variable keep their names), and one line for the user.

    Raises:
        RestoreError: several arrays fit a layer, and neither name nor order decides.
        UsageError: the map file names something that does not exist, or an entry does not fit.
    """
    weights = {name: array for name, array in state.arrays.items() if not name.startswith("optimizer/")}
    modules = torch_modules(weights)
    stacked = any("in_proj_weight" in module.arrays or re.search(r"(^|\.)qkv$", module.name) for module in modules)
    units = keras_units(model, stacked=stacked)
    given = _read_map(map_file, units, weights) if map_file is not None else {}
    proposal = _propose(modules, units, weights, given, bool(state.records.get("ordered", True)))
    if map_out is not None:
        with output_file(map_out) as path:
            _write_map(path, proposal, state.source)
    if proposal.unsure:
        message, rows = _uncertain(proposal, state.source)
        reason = torch_rewritten.explain(weights)
        raise RestoreError(f"{message}; {reason}" if reason else message, rows)
    variables = {f"{unit.label}/{role}": variable for unit in units for role, variable in unit.variables.items()}
    sources = {id(variables[label]): conversion for label, conversion in proposal.conversions.items()}
    arrays, records = _arrays(model, optimizer, state, sources)
    ways = ", ".join(f"{count} by {way}" for way, count in proposal.ways.items() if count)
    return replace(
        state, layout="mapped", arrays=arrays, records={**state.records, **records}
    ), f"PyTorch's layers matched: {ways or 'none'}{_epsilons(units)}"


def _epsilons(units: Sequence[Unit]) -> str:
    """Returns a note if batch normalization has another epsilon than PyTorch's default.

    No array shows the difference.
    """
    others = {unit.epsilon for unit in units if "moving_mean" in unit.variables} - {TORCH_EPSILON}
    if not others:
        return ""
    return (
        f" (note: BatchNormalization has epsilon={min(filter(None, others), default=0):g} here, PyTorch's default is "
        f"{TORCH_EPSILON:g})"
    )


def _propose(
    modules: Sequence[Module],
    units: Sequence[Unit],
    arrays: Mapping[str, np.ndarray],
    given: Mapping[str, Conversion],
    ordered: bool,
) -> Proposal:
    conversions = dict(given)
    ways = {"map": len({label.rpartition("/")[0] for label in given}), "name": 0, "order": 0, "shape": 0}
    taken = {conversion.source for conversion in given.values()}
    left_units = [unit for unit in units if not any(f"{unit.label}/{role}" in given for role in unit.variables)]
    left_modules = [module for module in modules if not taken & set(module.arrays.values())]

    def settle(way: str, pairs: Sequence[tuple[Module, Unit]]) -> None:
        nonlocal left_units, left_modules
        for module, unit in pairs:
            found = pair(module, unit, arrays)
            if found is None:  # cannot happen: every caller has checked
                raise ValueError(f"{module.name} does not fit {unit.label}")
            conversions.update({f"{unit.label}/{role}": conversion for role, conversion in found.items()})
        ways[way] += len(pairs)
        done = {id(thing) for both in pairs for thing in both}
        left_units = [unit for unit in left_units if id(unit) not in done]
        left_modules = [module for module in left_modules if id(module) not in done]

    settle("name", _by_name(left_modules, left_units, arrays))
    # Units and modules that fit nothing are left over; `restore` lists them as missing or unused.
    fits = {
        (id(module), id(unit))
        for module in left_modules
        for unit in left_units
        if pair(module, unit, arrays) is not None
    }
    left_units = [unit for unit in left_units if any((id(module), id(unit)) in fits for module in left_modules)]
    left_modules = [module for module in left_modules if any((id(module), id(unit)) in fits for unit in left_units)]
    settle("order", _by_order(left_modules, left_units, fits, ordered))
    while pairs := _by_shape(left_modules, left_units, fits):
        settle("shape", pairs)
    unsure = []
    for unit in left_units:
        others = tuple(module.name for module in left_modules if (id(module), id(unit)) in fits)
        if others:
            shape = str(tuple(next(iter(unit.variables.values())).shape))
            unsure.append((unit.label, shape, others))
            first = next(module for module in left_modules if module.name == others[0])
            conversions.update(
                {f"{unit.label}/{role}": conversion for role, conversion in (pair(first, unit, arrays) or {}).items()}
            )
    return Proposal(conversions, ways, tuple(unsure))


def _by_name(
    modules: Sequence[Module], units: Sequence[Unit], arrays: Mapping[str, np.ndarray]
) -> list[tuple[Module, Unit]]:
    def plain(name: str) -> str:
        return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")

    theirs: dict[str, list[Module]] = {}
    for module in modules:
        theirs.setdefault(plain(module.name), []).append(module)
    pairs = []
    for unit in units:
        found = theirs.get(plain(unit.label), [])
        same = sum(plain(other.label) == plain(unit.label) for other in units)
        if len(found) == same == 1 and pair(found[0], unit, arrays) is not None:
            pairs.append((found[0], unit))
    return pairs


def _by_order(
    modules: Sequence[Module], units: Sequence[Unit], fits: set[tuple[int, int]], ordered: bool
) -> list[tuple[Module, Unit]]:
    """Pairs all modules and units one by one, if every pair fits.

    Shortcuts and loose parameters are paired separately: a state dict lists them elsewhere than the model's graph.
    """
    apart = any(unit.shortcut for unit in units) and any(SHORTCUT.search(module.name) for module in modules)
    rows: dict[tuple[bool, bool], tuple[list[Module], list[Unit]]] = {}
    for module in modules:
        key = (apart and bool(SHORTCUT.search(module.name)), "value" in module.arrays)
        rows.setdefault(key, ([], []))[0].append(module)
    for unit in units:
        rows.setdefault((apart and unit.shortcut, "value" in unit.variables), ([], []))[1].append(unit)
    if any(len(theirs) != len(mine) for theirs, mine in rows.values()):
        return []
    if not ordered:
        rows = {key: (in_order(theirs, mine, fits) or [], mine) for key, (theirs, mine) in rows.items()}
        if any(len(theirs) != len(mine) for theirs, mine in rows.values()):
            return []
    pairs = [both for theirs, mine in rows.values() for both in zip(theirs, mine, strict=True)]
    return pairs if all((id(module), id(unit)) in fits for module, unit in pairs) else []


def _by_shape(
    modules: Sequence[Module], units: Sequence[Unit], fits: set[tuple[int, int]]
) -> list[tuple[Module, Unit]]:
    """Pairs modules and units that fit nothing but each other."""
    pairs = []
    for unit in units:
        candidates = [module for module in modules if (id(module), id(unit)) in fits]
        if len(candidates) == 1 and sum((id(candidates[0]), id(other)) in fits for other in units) == 1:
            pairs.append((candidates[0], unit))
    return pairs


def _uncertain(proposal: Proposal, source: str) -> tuple[str, list[tuple[str, ...]]]:
    rows: list[tuple[str, ...]] = [
        (label, shape, " or ".join(others), "several fit") for label, shape, others in proposal.unsure
    ]
    label, _, others = proposal.unsure[0]
    return (
        f"{source}: it is uncertain which array belongs to which layer for {len(rows):,} layers, the first is {label}, which "
        f"{' and '.join(others[:2])} fit; nothing was restored: name the layers in {option('model')} like the modules "
        f"({re.sub(r'[.]', '_', others[0])}), or write the mapping with {option('map-out', 'FILE')}, correct it and give it "
        f"with {option('map', 'FILE')}",
        rows,
    )


def _arrays(
    model: keras.Model, optimizer: Any | None, state: TrainState, sources: Mapping[int, Conversion]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Returns the arrays by the model's group and index, and records about the moments.

    Arrays without a variable follow under their own names. The records hold the number of moments that were `left_out`
    because their weights are frozen here, the names of those that are `unstarted` because their parameters have made no
    step yet, and the variables that weight decay leaves out, `undecayed`.
    """
    arrays: dict[str, np.ndarray] = {}
    used: set[str] = set()
    groups = {"trainable": model.trainable_variables, "non_trainable": model.non_trainable_variables}
    for group, variables in groups.items():
        for index, variable in enumerate(variables):
            conversion = sources.get(id(variable))
            array = (
                convert(state.arrays[conversion.source], conversion, tuple(variable.shape))
                if conversion is not None
                else None
            )
            if conversion is not None and array is not None:
                arrays[f"{group}/{index}"] = array
                used.add(conversion.source)
    unstarted: list[str] = []
    trained = {id(variable) for variable in model.trainable_variables}
    frozen = {conversion.source for key, conversion in sources.items() if key not in trained}
    frozen -= {conversion.source for key, conversion in sources.items() if key in trained}
    left_out = 0
    if optimizer is not None:
        arrays |= _moments(model, optimizer, state, sources, used, unstarted)
    for name, array in state.arrays.items():
        moment = name.startswith("optimizer/")
        if moment and name.removeprefix("optimizer/").rpartition("/")[0] in frozen:
            left_out += optimizer is not None
            continue
        if name not in used and name.rpartition(".")[2] != COUNTER and not (moment and optimizer is None):
            arrays[name.replace("optimizer/", "optimizer of ", 1)] = array
    without = set(state.records.get("undecayed", ()))
    addresses = structure.address_of(model) if without else {}
    undecayed = [
        addresses[id(variable)].name
        for variable in (model.weights if without else ())
        if (found := sources.get(id(variable))) is not None and found.source in without
    ]
    return arrays, {"left_out": left_out, "unstarted": unstarted, "undecayed": undecayed}


def _moments(
    model: keras.Model,
    optimizer: Any,
    state: TrainState,
    sources: Mapping[int, Conversion],
    used: set[str],
    unstarted: list[str],
) -> dict[str, np.ndarray]:
    inner = live_state.inner(optimizer)
    index_of = {id(variable): index for index, variable in enumerate(optimizer.variables)}
    arrays = {
        # PyTorch's SGD does not count its updates; Keras's momentum does not depend on the count.
        f"optimizer/{index_of[id(inner._iterations)]}": np.asarray(state.step or 0, np.int64)
    }
    scale = np.float32(state.records["scale"])
    for attribute, slot in SLOTS.get(type(inner).__name__, {}).items():
        for variable, moment in zip(model.trainable_variables, getattr(inner, attribute, None) or (), strict=False):
            conversion = sources.get(id(variable))
            if conversion is None or moment is None:
                continue
            name = f"optimizer/{conversion.source}/{slot}"
            stored = state.arrays.get(name)
            if stored is None and conversion.source not in state.records["trained"]:
                continue  # it was frozen and is trainable now: `restore` reports it
            if stored is None:
                unstarted.append(f"optimizer/{index_of[id(moment)]}")
                # PyTorch creates moments at a parameter's first gradient; until then they count as zero.
                array: np.ndarray | None = np.zeros(tuple(moment.shape), np.float32)
            else:
                array = convert(stored, conversion, tuple(moment.shape))
                used.add(name)
            if array is not None:
                arrays[f"optimizer/{index_of[id(moment)]}"] = (
                    array if scale == 1 else (array * scale).astype(array.dtype)
                )
    return arrays


def _read_map(file: str, units: Sequence[Unit], arrays: Mapping[str, np.ndarray]) -> dict[str, Conversion]:
    """Reads a map file and checks its entries against model and state dict.

    Raises:
        UsageError: the file is no map, or an entry does not fit; the message suggests the nearest name.
    """
    given = option("map", file)
    if not one_file.is_file(file):
        raise UsageError(f"{given}: the file does not exist")
    try:
        value = yaml_text.read(one_file.read_text(file), given)
    except UnicodeDecodeError as error:
        raise UsageError(f"{given}: this is not text in UTF-8 ({error})") from error
    if not isinstance(value, Mapping):
        raise UsageError(f"{given}: expected entries such as `conv2d/kernel: {{from: features.0.weight}}`")
    wanted = {f"{unit.label}/{role}": (unit, role) for unit in units for role in unit.variables}
    conversions = {}
    for label, entry in value.items():
        if label not in wanted:
            raise UsageError(f"{given}: the model has no {label}{_near(str(label), wanted)}")
        unit, role = wanted[label]
        source, kind, part = unit.wants[role]
        default = Conversion(source, kind, part, None if role == "bias" else unit.flatten)
        try:
            conversion = Conversion.from_dict({"from": entry} if isinstance(entry, str) else entry, default)
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(
                f"{given}: {label}: {error}: give from: NAME, and as:, part:, flatten: where needed"
            ) from error
        if conversion.source not in arrays:
            raise UsageError(
                f"{given}: {label}: the state dict has no {conversion.source}{_near(conversion.source, arrays)}"
            )
        shape, array = tuple(unit.variables[role].shape), arrays[conversion.source]
        if convert(array, conversion, shape) is None:
            raise UsageError(
                f"{given}: {label} has the shape {shape}; {conversion.source} with the shape {tuple(array.shape)} does "
                f"not become that as {conversion.kind}"
            )
        conversions[str(label)] = conversion
    return conversions


def _near(name: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(name, list(known), 1, 0.3)
    return f": did you mean {near[0]}?" if near else ""


def _write_map(path: Path, proposal: Proposal, source: str) -> None:
    import yaml

    others = {label: names for label, _, names in proposal.unsure}
    lines = [
        f"# Where each variable of the model is in {Path(source).name}. Correct it and give it with {option('map')}."
    ]
    for label, conversion in proposal.conversions.items():
        unsure = others.get(label.rpartition("/")[0])
        entry = yaml.safe_dump(conversion.as_dict(), default_flow_style=True, sort_keys=False, width=1000).strip()
        lines.append(f"{label}: {entry}" + (f"  # uncertain: {' or '.join(unsure)}" if unsure else ""))
    atomic.write_text(path, "\n".join(lines) + "\n")
