"""Writes arrays of a run that are in no snapshot, with a digest.

They are the slots of frozen layers, and the weights of a teacher.

    write(run.held, arrays)
    read(run.held)             # an error if a bit was flipped since

A file without a digest is of an earlier version, and not verified.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from kresume.checkpoints.snapshot import digest_of
from kresume.errors import RunError
from kresume.storage import atomic

DIGEST = "sha256"


def write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays in the safetensors format, atomically.

    Raises:
        OSError: the disk refuses it.
    """
    from safetensors.numpy import save

    atomic.write_bytes(path, save(dict(arrays), {DIGEST: digest_of(arrays)}))


def read(path: Path) -> dict[str, np.ndarray]:
    """Reads arrays by name.

    Raises:
        RunError: the file is gone, damaged, or was changed.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
            digest = (file.metadata() or {}).get(DIGEST)
    except (OSError, ValueError, SafetensorError) as error:
        raise RunError(f"{path} is damaged or gone ({error}): restore it from a copy of the run") from error
    if digest is not None and digest != digest_of(arrays):
        raise RunError(f"{path} does not match its digest, it is damaged: restore it from a copy of the run")
    return arrays
