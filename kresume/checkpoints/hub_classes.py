"""Finds classes of keras-hub in a serialized model, which builds only where that package is installed.

if needs_hub(state.architecture) and not is_installed():
    raise MissingPackage(f"{state.source} needs keras-hub: {INSTALL}")
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kresume.checkpoints.json_text import read_file
from kresume.errors import CheckpointError

PACKAGE = "keras_hub"
INSTALL = "pip install 'kresume[hub]'"


def is_installed() -> bool:
    """Returns True if keras-hub can be imported."""
    return importlib.util.find_spec(PACKAGE) is not None


def is_preset(folder: Path) -> bool:
    """Returns True if `save_to_preset` of keras-hub wrote the folder.

    Its files have the names of those in a `.keras` archive.
    """
    try:
        return (folder / "config.json").is_file() and "keras_hub_version" in read_file(folder / "metadata.json")
    except CheckpointError:
        return False


def needs_hub(config: Any) -> bool:
    """Returns True if a serialized object holds one of a class of keras-hub.

    Args:
        config: result of `keras.saving.serialize_keras_object`, or None.
    """
    if isinstance(config, (list, tuple)):
        return any(needs_hub(item) for item in config)
    if not isinstance(config, Mapping):
        return False
    return is_hubs(config) or any(needs_hub(item) for item in config.values())


def is_hubs(config: Mapping[str, Any]) -> bool:
    """Returns True if the class of a serialized object is keras-hub's."""
    module, registered = str(config.get("module")), str(config.get("registered_name"))
    return "class_name" in config and (module.partition(".")[0] == PACKAGE or registered.startswith(f"{PACKAGE}>"))
