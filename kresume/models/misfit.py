"""Explains why a checkpoint does not fit a model, and what to do.

Also names the outcomes in the table of a restore.
"""

from __future__ import annotations

from ast import literal_eval
from collections.abc import Mapping
from typing import Any

from kresume.backend import live_state
from kresume.models import freeze, slots, torch_rewritten
from kresume.models.layouts import rules_of
from kresume.models.match_slots import Matched
from kresume.models.shapes import input_shape_of
from kresume.spelling import option, setting
from kresume.values.state import TrainState

RESTORED, NOT_IN_FORMAT, MISSING, SHAPE, UNUSED = (
    "restored", "not in this format", "missing", "another shape", "not in the model",
)  # fmt: skip


def describe(
    model: Any,
    optimizer: Any,
    state: TrainState,
    wrong: list[tuple[str, str, str, str]],
    unused: list[tuple[str, str, str, str]],
    matched: Matched,
    slotless: Mapping[str, str],
) -> str:
    """Returns the message of the error: what does not fit, and what to do.

    Args:
        model: built.
        optimizer: built; None if only the weights were to be restored.
        state: the checkpoint.
        wrong: rows of variables that are missing or have another shape.
        unused: rows of arrays that have no variable.
        matched: the result of the matching.
        slotless: what `slotless_layers` found.
    """
    reset = _optimizer_option(optimizer, "reset") if optimizer is not None else ""
    own = {str(variable.path) for variable in optimizer.variables} if optimizer is not None else set()
    owned = rules_of(state).owned_by_optimizer(state)
    if optimizer is not None and all(row[0] in own for row in wrong) and all(row[0][1:-1] in owned for row in unused):
        return _of_optimizer(optimizer, state, wrong, unused, matched, reset, slotless)
    ways = (
        f"give the model that wrote the checkpoint with {option('model')}, or continue with the variables that fit with "
        f"{option('partial', True)}"
    )
    if state.format == "torch" and (reason := torch_rewritten.explain(row[0].strip("()") for row in unused)):
        ways = reason
    elif _depend_on_size([row for row in wrong if row[0] not in own]):
        size = option("image-size")
        ways = (
            f"{_on_images(model)}: if the checkpoint was trained on another size, give it with {size}; otherwise {ways}"
        )
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
        f"{state.source} holds {len(unused):,} arrays for which the model has no variable, the first is "
        f"{unused[0][0].strip('()')} {unused[0][2]}; nothing was restored: {ways}"
    )


def slotless_layers(model: Any, optimizer: Any, wrong: list[tuple[str, str, str, str]]) -> dict[str, str]:
    """Returns the layers for whose weights a file holds no slots, their names by address.

    Empty if a weight of another layer lacks some, too.

    Args:
        model: built.
        optimizer: built on its trainable variables; None if only the weights were to be restored.
        wrong: rows of variables that are missing or have another shape.
    """
    if optimizer is None:
        return {}
    missing = {label for label, _, _, outcome in wrong if outcome == MISSING}
    found: dict[int, bool] = {}  # by weight: no slot of it is missing
    for slot in slots.describe(optimizer):
        if slot.weight is not None:
            found[id(slot.weight)] = found.get(id(slot.weight), True) and str(slot.variable.path) not in missing
    owned = {
        address: (name, {id(each) for each in layer._trainable_variables} & found.keys())
        for address, (name, layer) in freeze.layers_of(model).items()
    }
    whole = {address: name for address, (name, ids) in owned.items() if ids and not any(found[each] for each in ids)}
    explained = {each for address in whole for each in owned[address][1]}
    return whole if all(held or each in explained for each, held in found.items()) else {}


def _freezing(names: list[str]) -> str:
    """Returns the options that freeze layers; with a pattern in place of many names."""
    if len(names) <= 3:
        return setting("freeze", names)
    return f"{option('freeze', 'PATTERN')} for {', '.join(names[:3])} and {len(names) - 3:,} more layers"


def _optimizer_option(optimizer: Any, way: str) -> str:
    return option("optimizer", f"{type(live_state.inner(optimizer)).__name__.lower()}:{way}")


def _depend_on_size(wrong: list[tuple[str, str, str, str]]) -> bool:
    """Returns True if weights differ the way they do for another image size.

    Such weights follow a Flatten, or have one entry per patch.

    Args:
        wrong: rows of weights.
    """
    shapes = [(literal_eval(wanted), literal_eval(found)) for _, wanted, found, outcome in wrong if outcome == SHAPE]
    return len(shapes) == len(wrong) > 0 and all(
        len(one) == len(other) > 1 and one[-1] == other[-1] for one, other in shapes
    )


def _on_images(model: Any) -> str:
    """Describes the input shape that a model was built on."""
    shape = input_shape_of(model)
    return (
        f"the model was built for images of the shape {shape[1:]}"
        if isinstance(shape, tuple)
        else "the model was built"
    )


def _of_optimizer(
    optimizer: Any,
    state: TrainState,
    wrong: list[tuple[str, str, str, str]],
    unused: list[tuple[str, str, str, str]],
    matched: Matched,
    reset: str,
    slotless: Mapping[str, str],
) -> str:
    """Returns the message if every weight was matched, and the optimizer's state was not."""
    name = type(live_state.inner(optimizer)).__name__
    begin = f"{state.source}: every weight fits the model, but the state of {name} does not"
    if matched.unsure:
        return (
            f"{begin}: the file holds slots for a part of the weights, and does not record for which (several choices fit); "
            f"nothing was restored: freeze what was frozen when the checkpoint was written ({option('freeze')}, or single "
            f"weights in the function of {option('model')}), and confirm that with {_optimizer_option(optimizer, 'keep')}; "
            f"otherwise start it fresh with {reset}"
        )
    lists = slots.slot_lists(optimizer)
    have = {str(slot.path) for listed in lists.values() for slot in listed if slot is not None}
    lost = [row for row in wrong if row[0] in have]
    others = bool(matched.left_out) or bool(state.records.get("left_out"))
    if lost and len(lost) == len(have) == len(wrong) and not others:
        return (
            f"{begin}: the file holds no slots, as after a model was loaded, compiled and saved before its first step; "
            f"nothing was restored: start it fresh with {reset}, or use the checkpoint before that"
        )
    if lost and len(lost) == len(wrong) and not unused:
        ways = f"{option('partial', True)} starts these fresh, with their own step counts, and keeps the others"
        if slotless:
            ways = f"{_freezing(list(slotless.values()))} leaves them frozen; {ways}"
        return (
            f"{begin}: the file holds no slots for {len(lost):,} of {len(have):,}, the first is {lost[0][0]} (its weight was "
            f"frozen when the checkpoint was written, or is new); nothing was restored: {ways}; {reset} starts all fresh"
        )
    first = (wrong or unused)[0]
    return (
        f"{begin}: {len(wrong):,} of its variables are not in the file, and {len(unused):,} arrays of the file are not its, "
        f"the first is {first[0].strip('()')}; nothing was restored: compile the checkpoint's class and settings in the "
        f"function of {option('model')}, or start it fresh with {reset}"
    )
