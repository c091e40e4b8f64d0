"""Explains why a checkpoint does not fit a model, and what to do.

Also names the outcomes in the table of a restore.
"""

from __future__ import annotations

from ast import literal_eval
from typing import Any

from kresume.backend import live_state
from kresume.models import slots, torch_rewritten
from kresume.models.layouts import rules_of
from kresume.models.match_slots import Matched
from kresume.models.shapes import input_shape_of
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
) -> str:
    """Returns the message of the error: what does not fit, and what to do.

    Args:
        model: built.
        optimizer: built; None if only the weights were to be restored.
        state: the checkpoint.
        wrong: rows of variables that are missing or have another shape.
        unused: rows of arrays that have no variable.
        matched: the result of the matching.
    """
    reset = f"--optimizer {type(live_state.inner(optimizer)).__name__.lower()}:reset" if optimizer is not None else ""
    own = {str(variable.path) for variable in optimizer.variables} if optimizer is not None else set()
    owned = rules_of(state).owned_by_optimizer(state)
    if optimizer is not None and all(row[0] in own for row in wrong) and all(row[0][1:-1] in owned for row in unused):
        return _of_optimizer(optimizer, state, wrong, unused, matched, reset)
    ways = "give the --model that the checkpoint was made with, or go on with what fits by --partial"
    if state.format == "torch" and (reason := torch_rewritten.explain(row[0].strip("()") for row in unused)):
        ways = reason
    elif _depend_on_size([row for row in wrong if row[0] not in own]):
        ways = f"{_on_pictures(model)}: if the checkpoint's have another size, give --image-size N; else {ways}"
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


def _on_pictures(model: Any) -> str:
    """Describes the input shape that a model was built on."""
    shape = input_shape_of(model)
    return (
        f"the model was built for pictures of the shape {shape[1:]}"
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
) -> str:
    """Returns the message if every weight was matched, and the optimizer's state was not."""
    name = type(live_state.inner(optimizer)).__name__
    begin = f"{state.source}: every weight fits the model, and the state of {name} does not"
    if matched.unsure:
        return (
            f"{begin}: some layers are frozen, and the file does not say which weights its slots belong to (several choices "
            "fit); nothing was restored: if the same layers were frozen when the checkpoint was written, say so with "
            f"--optimizer {name.lower()}:keep; else start it fresh with {reset}"
        )
    lists = slots.slot_lists(optimizer)
    have = {str(slot.path) for listed in lists.values() for slot in listed if slot is not None}
    lost = [row for row in wrong if row[0] in have]
    others = bool(matched.left_out) or bool(state.records.get("left_out"))
    if lost and len(lost) == len(have) == len(wrong) and not others:
        return (
            f"{begin}: it holds no slots. A model that was loaded, compiled anew and saved before a step has an optimizer "
            f"without them; nothing was restored: start it fresh with {reset}, or use the checkpoint before that"
        )
    if lost and len(lost) == len(wrong) and not unused:
        return (
            f"{begin}: it holds no slots for {len(lost):,} of {len(have):,}, the first is {lost[0][0]} (its weight was frozen "
            "when the checkpoint was written, or is new); nothing was restored: --partial starts those fresh, with a count of "
            f"their own, and keeps the others; {reset} starts all fresh"
        )
    first = (wrong or unused)[0]
    return (
        f"{begin}: {len(wrong):,} of its variables are not in the file and {len(unused):,} of the file's are not in it, the "
        f"first is {first[0].strip('()')}; nothing was restored: name the class and settings that the checkpoint had (by a "
        f"--model that compiles them), or start it fresh with {reset}"
    )
