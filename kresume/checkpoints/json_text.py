"""Parses JSON from untrusted files: bounded in size, with one clear error.

config = read_object(archive.read("config.json"), f"{path}: the member config.json")
index = read_file(Path("model.weights.json"), largest=2**20)
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kresume.errors import CheckpointError

LARGEST = 256 * 2**20
"""Limit in bytes. The architectures of the largest published image models need a few megabytes."""


def read_file(path: Path, *, largest: int = LARGEST) -> dict[str, Any]:
    """Reads a file that holds one JSON object.

    Args:
        path: the file.
        largest: limit in bytes; a larger file is not read.

    Raises:
        CheckpointError: if the file cannot be read, is too large, is not valid JSON, or is not a JSON object.
    """
    try:
        size = path.stat().st_size
        if size > largest:
            raise CheckpointError(f"{path} has {size:,} bytes, more than the limit of {largest:,}: refused")
        return read_object(path.read_bytes(), str(path))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror})") from error


def read_object(
    text: str | bytes, what: str, object_hook: Callable[[dict[str, Any]], Any] | None = None
) -> dict[str, Any]:
    """Reads one JSON object.

    Args:
        text: the JSON text.
        what: the file and the part of it, for messages.
        object_hook: passed to `json.loads`.

    Raises:
        CheckpointError: if the text is too large, is not valid JSON, or is not a JSON object.
    """
    if len(text) > LARGEST:
        raise CheckpointError(f"{what} has {len(text):,} bytes, more than the limit of {LARGEST:,}: refused")
    try:
        value = json.loads(text, object_hook=object_hook)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{what} is not valid JSON ({error}): the file is damaged") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{what} is not a JSON object: the file is damaged")
    return value
