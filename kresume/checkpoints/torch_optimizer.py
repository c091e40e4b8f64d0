"""Translates a PyTorch optimizer's state dict: class, settings, rate and slots.

    found = read(checkpoint["optimizer_state_dict"], names, shapes, path)
    found.optimizer                       # SavedOptimizer("AdamW", {"beta_1": 0.9, ...}, 124)
    found.slots["optimizer/fc.weight/exp_avg"]

The state dict names neither the optimizer's class nor its parameters. The settings identify the class, the order
identifies the parameters (https://docs.pytorch.org/docs/stable/generated/torch.optim.Optimizer.state_dict.html). State
that has no equivalent in Keras is reported and refused, not approximated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kresume.checkpoints.choices import Item, choose
from kresume.values.state import SavedOptimizer, SavedRate

SLOTS = {"SGD": ("momentum_buffer",), "Adam": ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")}
MOMENTS = {"SGD": (), "Adam": ("exp_avg", "exp_avg_sq")}
"""Slots that a parameter has together once it was updated."""
SETTINGS = frozenset(
    (
        "params", "param_names", "lr", "weight_decay", "momentum", "dampening", "nesterov", "betas", "eps", "amsgrad",
        "decoupled_weight_decay", "maximize", "foreach", "differentiable", "fused", "capturable", "bias_correction",
        "initial_lr", "swa_lr", "max_lr", "min_lr", "max_momentum", "base_momentum", "lr_scale", "lr_mult", "decay_mult",
    )
)  # fmt: skip
"""Settings of PyTorch's SGD, Adam and AdamW, and those that schedulers and scripts add to their groups."""
OF_OTHERS = {"SGD": frozenset({"caution", "corrected_weight_decay", "eps"}), "Adam": frozenset()}
"""Settings of other classes that look like these, whatever their value: timm's SGDW decouples its decay, its LARS has `eps`."""


@dataclass(frozen=True)
class TorchOptimizer:
    """The content of an optimizer's state dict, in Keras's terms.

    Attributes:
        optimizer: class and settings with Keras's names; None if the file holds no optimizer.
        slots: `optimizer/PARAMETER/SLOT` -> tensor.
        rate: rate of the first group; with a scheduler, the scheduler's initial rate.
        step: number of updates, None if the optimizer does not count them (SGD).
        scale: factor that converts the slots to Keras's: its SGD stores `-rate * momentum_buffer`.
        coupled_decay: weight decay that PyTorch adds to the gradient, which Keras cannot; 0 if none.
        undecayed: parameters of groups without weight decay, where others have one.
        trained: names of the parameters that the optimizer trains.
        cannot_keep: reason why Keras cannot use the state; empty if it can.
        notes: facts for the user.
    """

    optimizer: SavedOptimizer | None = None
    slots: Mapping[str, Any] = field(default_factory=dict)
    rate: SavedRate | None = None
    step: int | None = None
    scale: float = 1.0
    coupled_decay: float = 0.0
    undecayed: tuple[str, ...] = ()
    trained: tuple[str, ...] = ()
    cannot_keep: str = ""
    notes: tuple[str, ...] = ()


def read(
    saved: Any, names: Sequence[str], shapes: Mapping[str, tuple[int, ...]], path: str, *, ordered: bool = True
) -> TorchOptimizer:
    """Reads an optimizer's state dict.

    Args:
        saved: `optimizer.state_dict()`, or None.
        names: the model's parameters in order.
        shapes: the shape of each parameter.
        path: the file, for messages.
        ordered: True if `names` have the order of the model's parameters.
    """
    if not isinstance(saved, Mapping) or not isinstance(saved.get("param_groups"), (list, tuple)):
        return TorchOptimizer()
    groups = [dict(group) for group in saved["param_groups"] if isinstance(group, Mapping)]
    state: Mapping[Any, Any] = saved["state"] if isinstance(saved.get("state"), Mapping) else {}
    if not groups:
        return TorchOptimizer()
    first = groups[0]
    kind, config, scale, reason = _kind(groups)
    owners, unsure = _owners(groups, state, names, shapes, ordered)
    wanted = SLOTS.get(kind, ()) or tuple({key for entry in state.values() for key in entry if key != "step"})
    slots = {
        f"optimizer/{owners.get(index, index)}/{slot}": entry[slot]
        for index, entry in state.items()
        for slot in wanted
        if entry.get(slot) is not None
    }
    steps = {int(entry["step"]) for entry in state.values() if "step" in entry}
    rate = _number(first.get("lr"))
    initial = _number(first.get("initial_lr"))
    decays = {_number(group.get("weight_decay")) or 0.0 for group in groups}
    decoupled = bool(first.get("decoupled_weight_decay"))
    reason = reason or _another(kind, groups, state) or _differences(groups, steps) or unsure or _misfit(slots, shapes)
    named = kind if kind != "Adam" or decoupled or decays == {0.0} or "decoupled_weight_decay" in first else ""
    if kind == "Adam" and decoupled:
        named, config = "AdamW", {**config, "weight_decay": max(decays)}
    if not named and kind:  # before PyTorch 2.7 nothing tells Adam's decay from AdamW's
        config = {**config, "weight_decay": max(decays)}
    if len(decays - {0.0}) > 1 and not reason:
        reason = (
            f"its parameter groups have different weight decays ({', '.join(f'{decay:g}' for decay in sorted(decays))})"
        )
    return TorchOptimizer(
        optimizer=SavedOptimizer(named or None, config or None, len(slots)),
        slots=slots,
        rate=_saved_rate(rate, initial),
        step=max(steps) if steps else None,
        scale=scale,
        coupled_decay=max(decays) if kind in {"SGD", "Adam"} and not decoupled and named else 0.0,
        undecayed=_undecayed(groups, owners) if len(decays) > 1 else (),
        trained=tuple(str(owner) for owner in owners.values()),
        cannot_keep=reason,
    )


def _undecayed(groups: Sequence[Mapping[str, Any]], owners: Mapping[Any, Any]) -> tuple[str, ...]:
    """Returns the parameters of groups without weight decay, mostly biases and norms."""
    indices = [index for group in groups if not _number(group.get("weight_decay")) for index in group.get("params", ())]
    return tuple(str(owners[index]) for index in indices if index in owners)


def _number(value: Any) -> float | None:
    """Returns a setting as a float; settings are numbers or one-element tensors."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _saved_rate(rate: float | None, initial: float | None) -> SavedRate | None:
    if rate is None:
        return None
    if initial is not None and initial != rate:
        return SavedRate(initial, "schedule")
    return SavedRate(rate, "float")


def _kind(groups: Sequence[Mapping[str, Any]]) -> tuple[str, dict[str, Any], float, str]:
    """Identifies the class by its settings.

    Returns:
        `(class, Keras's config, factor on the slots, reason why the state cannot be kept)`.
    """
    first = groups[0]
    if first.get("maximize"):
        return "", {}, 1.0, "it maximises (maximize=True)"
    if {"momentum", "dampening", "nesterov"} <= set(first):
        momentum = float(first["momentum"])
        if momentum and first["dampening"]:
            return "SGD", {}, 1.0, f"Keras has no equivalent of its dampening of {first['dampening']:g}"
        config = {"momentum": momentum, "nesterov": bool(first["nesterov"])}
        return "SGD", config, -(_number(first.get("lr")) or 0.0), ""
    if {"betas", "eps", "amsgrad"} <= set(first):
        beta_1, beta_2 = (float(beta) for beta in first["betas"])
        amsgrad = bool(first["amsgrad"])
        return "Adam", {"beta_1": beta_1, "beta_2": beta_2, "epsilon": float(first["eps"]), "amsgrad": amsgrad}, 1.0, ""
    return "", {}, 1.0, "it is neither SGD nor Adam nor AdamW"


def _another(kind: str, groups: Sequence[Mapping[str, Any]], state: Mapping[Any, Any]) -> str:
    """Returns what shows that an optimizer is of another class, such as timm's; empty if nothing does.

    The settings alone do not show it: AdaBelief has all of Adam's, LARS all of SGD's.
    """
    if kind not in SLOTS:
        return ""
    held = {slot for entry in state.values() for slot, value in entry.items() if value is not None} - {"step"}
    if strange := sorted(held - set(SLOTS[kind])):
        return f"its state holds {', '.join(strange)}, which PyTorch's {kind} does not have"
    settings = {
        key
        for group in groups
        for key, value in group.items()
        if key in OF_OTHERS[kind] or (key not in SETTINGS and isinstance(value, (bool, int, float)) and value)
    }
    if settings:
        return f"its settings have {', '.join(sorted(settings))}, which PyTorch's {kind} does not have"
    for entry in state.values():
        there = [slot for slot in MOMENTS[kind] if entry.get(slot) is not None]
        if there and len(there) < len(MOMENTS[kind]):
            return f"a parameter has {', '.join(there)} without {', '.join(sorted(set(MOMENTS[kind]) - set(there)))}"
    return ""


def _differences(groups: Sequence[Mapping[str, Any]], steps: set[int]) -> str:
    rates = {_number(group.get("lr")) for group in groups}
    if len(rates) > 1:
        return f"its parameter groups have different rates ({', '.join(f'{rate:g}' for rate in sorted(filter(None, rates)))})"
    for setting in ("momentum", "nesterov", "betas", "eps", "amsgrad"):
        if len({str(group.get(setting)) for group in groups}) > 1:
            return f"its parameter groups differ in {setting}"
    if len(steps) > 1:
        return f"its parameters were updated {min(steps):,} to {max(steps):,} times; Keras has one count"
    return ""


def _misfit(slots: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> str:
    for name, value in slots.items():
        owner = name.removeprefix("optimizer/").rpartition("/")[0]
        if tuple(value.shape) != tuple(shapes.get(owner, ())):
            return f"its {name} has another shape than its parameter"
    return ""


def _owners(
    groups: Sequence[Mapping[str, Any]],
    state: Mapping[Any, Any],
    names: Sequence[str],
    shapes: Mapping[str, tuple[int, ...]],
    ordered: bool,
) -> tuple[dict[Any, str], str]:
    """Maps the optimizer's parameter indices to names, as recorded or by order.

    Returns:
        The mapping, and the reason why it is uncertain (empty if it is certain).
    """
    indices = [index for group in groups for index in group.get("params", ())]
    recorded = [name for group in groups for name in group.get("param_names", ())]
    if len(recorded) == len(indices) and set(recorded) <= set(names):
        return dict(zip(indices, recorded, strict=True)), ""
    if not ordered:
        return {}, "it does not name its parameters, and a .safetensors file does not keep their order"
    if len(indices) != len(names):
        found = _some(indices, state, names, shapes)
        count = f"{len(indices)} of the model's {len(names)} parameters"
        return (found, "") if found else ({}, f"it trains {count}, and the file does not show which")
    matrices = [name for name in names if len(shapes[name]) > 1]
    vectors = [name for name in names if len(shapes[name]) <= 1]
    orders = [list(names)] if len(groups) == 1 else [list(names), matrices + vectors, vectors + matrices]
    fitting = []
    for order in orders:
        owners = dict(zip(indices, order, strict=True))
        if owners not in fitting and all(_fits(entry, shapes[owners[index]]) for index, entry in state.items()):
            fitting.append(owners)
    if not fitting and len(groups) == 1:
        return {}, "its slots do not have the shapes of the model's parameters in their order"
    if len(fitting) != 1:
        return {}, f"it has {len(groups)} parameter groups, and the file does not show which parameters are in which"
    return fitting[0], ""


def _some(
    indices: Sequence[Any], state: Mapping[Any, Any], names: Sequence[str], shapes: Mapping[str, tuple[int, ...]]
) -> dict[Any, str]:
    """Finds the parameters of an optimizer that trains only some layers.

    Returns an empty mapping unless exactly one choice of layers has the shapes of the slots.
    """
    slots = [[value for name, value in state.get(index, {}).items() if name != "step"] for index in indices]
    found = [next((tuple(value.shape) for value in values if hasattr(value, "shape")), None) for values in slots]
    modules: dict[str, list[str]] = {}
    for name in names:
        modules.setdefault(name.rpartition(".")[0], []).append(name)
    if None in found:
        return {}
    items = [Item(tuple(tuple(shapes[name]) for name in listed), True) for listed in modules.values()]
    chosen = choose(items, [shape for shape in found if shape is not None])
    if chosen is None:
        return {}
    owners = [name for listed, taken in zip(modules.values(), chosen, strict=True) if taken for name in listed]
    return dict(zip(indices, owners, strict=True))


def _fits(entry: Mapping[str, Any], shape: tuple[int, ...]) -> bool:
    return all(
        tuple(value.shape) == tuple(shape)
        for name, value in entry.items()
        if name != "step" and hasattr(value, "shape")
    )
