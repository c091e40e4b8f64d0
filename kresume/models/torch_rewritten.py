"""Explains why a PyTorch state dict lacks the weight of a layer.

Either the weight is computed from other tensors, or the layer is recurrent.

explain(state.arrays)       # "its module 7 is under weight_norm, ...: remove it before saving: ...", or ""
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from kresume.spelling import option

PARAMETRIZED = re.compile(r"(?:(.*)\.)?parametrizations\.([^.]+)\.(original\d*|\d+\..*)")
"""Names of the tensors from which `torch.nn.utils.parametrize` computes another; groups: module, name of that tensor."""
RECURRENT = re.compile(r"(?:(.*)\.)?weight_hh(_l\d+(_reverse)?)?")
OLD = (
    ("_mask", "_orig", "pruning", "torch.nn.utils.prune.remove(module, {name!r})"),
    ("_u", "_orig", "spectral_norm", "torch.nn.utils.remove_spectral_norm(module, {name!r})"),
    ("_g", "_v", "weight_norm", "torch.nn.utils.remove_weight_norm(module, {name!r})"),
)
"""Suffixes of the two tensors that replace one, the function that computes it, and the call that restores it."""


def explain(arrays: Iterable[str]) -> str:
    """Returns what a user must do before saving; empty if no weight is computed.

    Args:
        arrays: names in the state dict.
    """
    names = [name for name in arrays if not name.startswith("optimizer")]
    for name in names:
        if found := PARAMETRIZED.fullmatch(name):
            module, tensor = found.group(1) or "", found.group(2)
            return _to_remove(
                module, tensor, f"a parametrization ({_kind(names, module, tensor)})",
                f'torch.nn.utils.parametrize.remove_parametrizations(module, "{tensor}")',
            )  # fmt: skip
    for one, other, kind, call in OLD:
        for name in names:
            stem = name.removesuffix(one)
            if stem != name and f"{stem}{other}" in names and stem not in names:
                module, _, tensor = stem.rpartition(".")
                return _to_remove(module, tensor, kind, call.format(name=tensor).replace("'", '"'))
    recurrent = [found.group(1) or "" for name in names if (found := RECURRENT.fullmatch(name))]
    if recurrent:
        return (
            f"its module {recurrent[0] or 'at the top'} is recurrent (RNN, LSTM or GRU); kresume does not map recurrent "
            "layers from PyTorch, because their gates have another order in Keras. Set the weights of the Keras model yourself "
            "(layer.set_weights), save it with model.save, and give that file"
        )
    return ""


def _kind(names: Iterable[str], module: str, tensor: str) -> str:
    prefix = f"{module}.parametrizations.{tensor}.".lstrip(".")
    ends = {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
    if "original0" in ends:
        return "such as weight_norm"
    return "spectral_norm" if "0._u" in ends else "of torch.nn.utils.parametrize"


def _to_remove(module: str, tensor: str, kind: str, call: str) -> str:
    return (
        f"{tensor} of its module {module or 'at the top'} is computed by {kind}, and the file holds the tensors that it is "
        f"computed from. Load the model in PyTorch and remove this before saving, for each such module: {call}; then "
        "torch.save(model.state_dict(), ...). The optimizer's state does not fit after that: start it fresh with "
        f"{option('optimizer', 'NAME:reset')}"
    )
