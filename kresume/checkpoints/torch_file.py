"""Reads PyTorch state dicts (`.pth`, `.pt`, `.safetensors`) without running their code.

    state = read("resnet18.pth")
    state.arrays["layer1.0.conv1.weight"]               # weights under the module's own names, in PyTorch's layout
    state.arrays["optimizer/fc.weight/exp_avg"]         # moments beside their parameter

A `.pth` or `.pt` file (zip or the older format) is a pickle, and unpickling would execute any code in it.
`torch.load(weights_only=True)` accepts only tensors, containers and numbers. This reader also allows numpy scalars and
`argparse.Namespace`, which training scripts store beside the weights and which execute nothing. It first verifies the
archive's checksums, which PyTorch ignores. Sources: https://docs.pytorch.org/docs/stable/notes/serialization.html and
https://github.com/huggingface/safetensors.
"""

from __future__ import annotations

import argparse
import importlib.util
import pickle
import warnings
import zipfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kresume.checkpoints import content, torch_optimizer
from kresume.errors import CheckpointError, MissingPackage
from kresume.spelling import option
from kresume.storage import atomic
from kresume.storage.damage import interpreting
from kresume.values.state import TrainState

ENDINGS = (".pth", ".pt", ".safetensors")
WEIGHTS_KEYS = ("model_state_dict", "state_dict", "model", "model_state", "net", "network", "module", "weights")
OPTIMIZER_KEYS = ("optimizer_state_dict", "optimizer", "optimizer_state", "optim", "optimizer_states")
STEP_KEYS = ("global_step", "step", "iteration", "iterations", "num_updates")
CLASSES_KEYS = ("classes", "class_names", "class_to_idx")
SMALL = {"BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}
"""Types of ml_dtypes, by their name in safetensors."""
AVERAGED = "n_averaged"
PREFIXES = ("module.", "_orig_mod.", "model.")
AVERAGES_KEYS = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")
BARE = "torch.save({'model_state_dict': model.state_dict(), 'optimizer_state_dict': optimizer.state_dict()}, PATH)"


def accepts(path: str) -> bool:
    """Returns True for a file of PyTorch or safetensors, whatever its ending."""
    return content.kind_of(Path(path)) in {"torch-archive", "torch-pickle", "safetensors"}


def read(path: str, optimizer_path: str | None = None) -> TrainState:
    """Reads weights, optimizer state, rate and step.

    Args:
        path: the weights, with or without the optimizer's state.
        optimizer_path: a separate file with the optimizer's state dict; it replaces the optimizer state in `path`.

    Raises:
        CheckpointError: if the file is truncated, damaged, holds code, or holds no state dict.
        MissingPackage: if a `.pth` or `.pt` file is given and PyTorch is not installed.
    """
    file = Path(path)
    kind = content.kind_of(file)
    safe = kind == "safetensors" or (kind is None and file.suffix == ".safetensors")
    whole = _read_safetensors(file, path) if safe else _read_pickle(file, path)
    weights, optimizer, facts = _parts(whole, path)
    if optimizer_path is not None:
        optimizer = read_optimizer(optimizer_path)
    stripped = _without_prefixes(weights)
    arrays = {name: _array(name, value, file, path) for name, value in stripped.items()}
    names = _parameter_names(arrays)
    ordered = not safe
    shapes = {name: arrays[name].shape for name in names}
    source = optimizer_path or path
    with interpreting(f"{source}: the optimizer's state dict", CheckpointError):
        found = torch_optimizer.read(optimizer, names, shapes, source, ordered=ordered)
    said = next(((key, int(facts[key])) for key in STEP_KEYS if _is_count(facts.get(key))), None)
    step, notes = (
        found.step if found.step is not None else said and said[1],
        [*facts["ignored"], *facts["notes"], *found.notes],
    )
    if said is not None and said[1] != step:
        # A script's count may be that of an epoch or of batches; Adam's correction needs that of its updates.
        notes.append(f"the file's {said[0]} is {said[1]:,}; the optimizer has counted {step:,} updates, which is used")
    slots = {name: _array(name, value, Path(source), source) for name, value in found.slots.items()}
    return TrainState(
        source=path,
        format="torch",
        layout="torch",
        arrays={**arrays, **slots},
        optimizer=found.optimizer,
        step=step,
        rate=found.rate,
        writer=str(facts.get("writer", "torch")),
        written=atomic.modified(file),
        records={
            "epoch": int(facts["epoch"]) if _is_count(facts.get("epoch")) else None,
            "ordered": ordered,
            "trained": found.trained,
            "classes": _classes(whole),
            "coupled_decay": found.coupled_decay,
            "undecayed": found.undecayed,
            "cannot_keep": found.cannot_keep,
            "scale": found.scale,
            "notes": tuple(notes),
            "ignored": tuple(facts["ignored"]),
        },
    )


def read_optimizer(path: str) -> Any:
    """Reads an optimizer's state dict from a separate file.

    Raises:
        CheckpointError: if the file is missing, truncated, damaged, holds code, or holds no optimizer's state dict.
    """
    file = Path(path)
    if not file.is_file():
        raise CheckpointError(f"{option('optimizer-from', path)}: the file does not exist")
    whole = _read_pickle(file, path)
    found = whole
    if isinstance(whole, Mapping) and "param_groups" not in whole:
        found = next((whole[key] for key in (*OPTIMIZER_KEYS, "state_dict") if whole.get(key)), None)
    if isinstance(found, (list, tuple)) and len(found) == 1:
        found = found[0]
    if not isinstance(found, Mapping) or not isinstance(found.get("param_groups"), (list, tuple)):
        keys = ", ".join(sorted(map(str, whole))[:8]) if isinstance(whole, Mapping) else type(whole).__name__
        raise CheckpointError(
            f"{option('optimizer-from', path)}: the file holds no optimizer's state dict (it holds {keys}): expected the "
            "output of torch.save(optimizer.state_dict(), PATH)"
        )
    return found


def _classes(whole: Any) -> tuple[str, ...] | None:
    """Returns the class names that a script stored beside the weights, else None.

    Reads torchvision's `classes` or `class_to_idx`.
    """
    for key in CLASSES_KEYS:
        found = whole.get(key) if isinstance(whole, Mapping) else None
        if isinstance(found, Mapping) and sorted(map(str, found.values())) == sorted(map(str, range(len(found)))):
            return tuple(str(name) for name, _ in sorted(found.items(), key=lambda item: int(item[1])))
        if isinstance(found, (list, tuple)) and found and all(isinstance(name, str) for name in found):
            return tuple(found)
    return None


def _is_count(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _read_safetensors(file: Path, path: str) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    with file.open("rb") as stream:
        head = stream.read(8)
    if len(head) < 8 or int.from_bytes(head, "little") > file.stat().st_size - 8:
        raise CheckpointError(
            f"{path} is truncated or damaged: its header is longer than the file; use an earlier copy"
        )
    try:
        with safe_open(path, framework="numpy") as opened:
            return {name: _safetensor(opened, name, file) for name in opened.keys()}  # noqa: SIM118  # not a mapping
    except (SafetensorError, ValueError, TypeError, OSError) as error:
        raise CheckpointError(f"{path} is truncated or damaged ({error}): use an earlier copy") from error


def _safetensor(opened: Any, name: str, file: Path) -> np.ndarray:
    # safetensors' numpy interface has not the types of fewer bits: read the bytes at the offsets in the header.
    import json

    import ml_dtypes

    small = SMALL.get(opened.get_slice(name).get_dtype())
    if small is None:
        return np.asarray(opened.get_tensor(name))
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        entry = json.loads(stream.read(size))[name]
        begin, end = entry["data_offsets"]
        stream.seek(8 + size + begin)
        return np.frombuffer(stream.read(end - begin), getattr(ml_dtypes, small)).reshape(entry["shape"])


def _read_pickle(file: Path, path: str) -> Any:
    if importlib.util.find_spec("torch") is None:
        raise MissingPackage(f"reading {path} needs PyTorch: pip install 'kresume[torch]'")
    if zipfile.is_zipfile(file):
        _verify(file, path)
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old files warn about their storages
            # Pass an open file: given a path, PyTorch relies on the file ending.
            with torch.serialization.safe_globals(_harmless()), file.open("rb") as stream:
                return torch.load(stream, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        text = str(error)
        if "Unsupported" not in text and "GLOBAL" not in text:
            raise CheckpointError(
                f"{path} is truncated or damaged, or torch.save did not write it: use another copy"
            ) from error
        what = text.partition("GLOBAL ")[2].split(" ")[0] or "an object of a class"
        raise CheckpointError(
            f"{path} holds more than tensors and numbers ({what}): a pickled model is code, which kresume never runs. In the "
            f"program that wrote it, save only the state: {BARE}"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, IndexError, TypeError, AttributeError, OSError) as error:
        text = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise CheckpointError(
            f"{path} is not a PyTorch checkpoint, or is truncated or damaged ({text[:160]}): use an earlier copy"
        ) from error


def _harmless() -> list[Any]:
    """Returns classes that scripts store beside the weights and that execute no code."""
    kinds = (
        "bool",
        "int8",
        "int16",
        "int32",
        "int64",
        "uint8",
        "uint16",
        "uint32",
        "uint64",
        "float16",
        "float32",
        "float64",
    )
    multiarray: Any = np._core.multiarray  # type: ignore[attr-defined]  # the module that numpy's pickles name
    return [
        (multiarray.scalar, "numpy.core.multiarray.scalar"),
        multiarray.scalar,
        (multiarray._reconstruct, "numpy.core.multiarray._reconstruct"),
        multiarray._reconstruct,
        np.ndarray,
        np.dtype,
        *(type(np.dtype(kind)) for kind in kinds),
        argparse.Namespace,
    ]


def _verify(file: Path, path: str) -> None:
    """Verifies the checksum of every member and the total claimed size.

    A compressed member could claim more bytes than the file holds.
    """
    size = file.stat().st_size
    try:
        with zipfile.ZipFile(file) as archive:
            if any("/code/" in name for name in archive.namelist()):
                raise CheckpointError(
                    f"{path} is a TorchScript program: kresume never runs code from a file. In the program that wrote it, "
                    f"save only the state: {BARE}"
                )
            names = archive.namelist()
            # PyTorch might read the other one than this function verifies.
            if twice := next((name for name, count in Counter(names).items() if count > 1), None):
                raise CheckpointError(f"{path}: two members are named {twice}: refused")
            claimed = sum(info.file_size for info in archive.infolist())
            if claimed > size:
                raise CheckpointError(f"{path} claims {claimed:,} bytes, but has {size:,}: refused")
            broken = archive.testzip()
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
        raise CheckpointError(f"{path} is truncated or damaged ({error}): use an earlier copy") from error
    if broken is not None:
        raise CheckpointError(f"{path} is truncated or damaged (wrong checksum of {broken}): use an earlier copy")


def _like(whole: Mapping[str, Any], key: str, chosen: str) -> bool:
    """Tests if another state dict has tensors of the same names."""
    return key != chosen and set(map(str, whole.get(key, ()))) == set(map(str, whole[chosen]))


def _alone(key: str) -> str:
    """Returns how to use another state dict of the file."""
    return f" (a file of the others: torch.save(torch.load(PATH)[{key!r}], 'other.pth'))"


def _parts(whole: Any, path: str) -> tuple[Mapping[str, Any], Any, dict[str, Any]]:
    """Splits a file into weights, optimizer state dict (or None) and other facts.

    Raises:
        CheckpointError: if the file holds no state dict, or several.
    """
    if not isinstance(whole, Mapping) or not whole:
        raise CheckpointError(
            f"{path} holds {'a' if whole else 'an empty'} {type(whole).__name__}, expected a state dict: {BARE}"
        )
    facts: dict[str, Any] = {"notes": [], "ignored": []}
    if _is_state_dict(whole):
        return _tensors(whole), None, facts
    facts |= {key: value for key, value in whole.items() if key in {*STEP_KEYS, "epoch"}}
    if "pytorch-lightning_version" in whole:
        facts["writer"] = f"lightning {whole['pytorch-lightning_version']}"
    known = [key for key in WEIGHTS_KEYS if _is_state_dict(whole.get(key))]
    others = [
        str(key)
        for key, value in whole.items()
        if _is_state_dict(value) and key not in {*WEIGHTS_KEYS, *OPTIMIZER_KEYS, *AVERAGES_KEYS}
    ]
    candidates = known[:1] or others
    alike = [key for key in (*known[1:], *others) if len(candidates) == 1 and _like(whole, key, candidates[0])]
    if len(candidates) != 1:
        keys = ", ".join(sorted(map(str, whole))[:12])
        raise CheckpointError(
            f"{path} holds {'several' if candidates else 'no'} state dict{'s' if candidates else ''} "
            f"({', '.join(candidates) or f'its keys are {keys}'}): kresume reads a bare state dict, or one under "
            f"{', '.join(WEIGHTS_KEYS[:3])}: {BARE}"
        )
    averages = [key for key in AVERAGES_KEYS if key in whole]
    if averages:
        facts["ignored"].append(
            f"the file also holds averaged weights ({averages[0]}), which are ignored: {candidates[0]} is used"
            f"{_alone(averages[0]) if _is_state_dict(whole[averages[0]]) else ''}"
        )
    if alike:
        facts["ignored"].append(
            f"the file also holds weights under {', '.join(alike)}, which are ignored: {candidates[0]} is used"
            f"{_alone(alike[0])}"
        )
    optimizer = next((whole[key] for key in OPTIMIZER_KEYS if whole.get(key)), None)
    if isinstance(optimizer, (list, tuple)):
        if len(optimizer) != 1:
            raise CheckpointError(f"{path} holds the state of {len(optimizer)} optimizers; kresume supports one")
        optimizer = optimizer[0]
    schedulers = [str(key) for key in whole if "sched" in str(key).lower() and whole[key]]
    if schedulers:
        facts["notes"].append(
            f"the PyTorch schedule ({schedulers[0]}) cannot be continued: choose one with {option('lr-schedule')}"
        )
    return _tensors(whole[candidates[0]]), optimizer, facts


def _is_tensor(value: Any) -> bool:
    of_torch = type(value).__module__.partition(".")[0] == "torch" and hasattr(value, "numel")
    return of_torch or isinstance(value, np.ndarray)


def _is_state_dict(value: Any) -> bool:
    if not isinstance(value, Mapping) or not value:
        return False
    return all(isinstance(key, str) for key in value) and sum(map(_is_tensor, value.values())) > len(value) / 2


def _tensors(value: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tensor for name, tensor in value.items() if _is_tensor(tensor)}


def _without_prefixes(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Removes prefixes that every name has, and `_orig_mod.` inside names.

    The prefixes are `module.` (DataParallel), `_orig_mod.` (compile) and `model.` (Lightning). `AveragedModel` of
    `swa_utils` stores an update count beside a model under `module.`; the count is dropped.
    """
    stripped = {name: value for name, value in weights.items() if name != AVERAGED}
    if len(stripped) < len(weights) and not all(name.startswith(PREFIXES[0]) for name in stripped):
        stripped = dict(weights)  # the user's own model uses this name
    while prefix := next((start for start in PREFIXES if all(name.startswith(start) for name in stripped)), None):
        stripped = {name.removeprefix(prefix): value for name, value in stripped.items()}
    return {name.replace("_orig_mod.", ""): value for name, value in stripped.items()}


def _array(name: str, value: Any, file: Path, path: str) -> np.ndarray:
    """Converts a tensor to numpy, keeping its dtype.

    Raises:
        CheckpointError: if the tensor claims more numbers than the file holds, or numpy lacks its dtype.
    """
    if isinstance(value, np.ndarray):
        return value
    import torch

    if value.numel() * value.element_size() > file.stat().st_size:
        raise CheckpointError(f"{path}: {name} claims {value.numel():,} numbers, more than the file holds: refused")
    value = value.detach()
    try:
        if (small := str(value.dtype).removeprefix("torch.")) in SMALL.values():
            import ml_dtypes

            whole = torch.int16 if value.element_size() == 2 else torch.int8
            return np.asarray(value.contiguous().view(whole).numpy()).view(getattr(ml_dtypes, small))
        return np.asarray(value.numpy())
    except (TypeError, RuntimeError, NotImplementedError) as error:
        raise CheckpointError(f"{path}: {name} is of the type {value.dtype}, which cannot be read ({error})") from error


def _parameter_names(arrays: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    """Returns the names of `model.parameters()` in order: all arrays except buffers."""
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    return tuple(
        name
        for name, array in arrays.items()
        if name.rpartition(".")[2] not in buffers and array.dtype.kind not in "iub"
    )
