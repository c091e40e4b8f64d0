"""Parses JSON from untrusted files: bounded in size, with one clear error.

config = read_object(archive.read("config.json"), f"{path}: its member config.json")
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from kresume.errors import CheckpointError

LARGEST = 256 * 2**20
"""Limit in bytes. The architectures of the largest published image models need a few megabytes."""


def read_object(
    text: str | bytes, what: str, object_hook: Callable[[dict[str, Any]], Any] | None = None
) -> dict[str, Any]:
    """Reads one JSON object.

    Args:
        text: the JSON text.
        what: the file and the part of it, for messages.
        object_hook: passed to `json.loads`.

    Raises:
        CheckpointError: if the text is too large, is no JSON, or is no JSON object.
    """
    if len(text) > LARGEST:
        raise CheckpointError(f"{what} has {len(text):,} bytes: refused")
    try:
        value = json.loads(text, object_hook=object_hook)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{what} is no JSON ({error}): the file is damaged") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{what} is no JSON object: the file is damaged")
    return value
