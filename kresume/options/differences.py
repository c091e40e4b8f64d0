"""Says which options of a run differ from those of the run that it extends.

differing(TrainConfig(**run.record.options), config)        # {"batch_size": (32, 64)}
"""

from __future__ import annotations

from typing import Any

from kresume.options.given import code_of, given
from kresume.options.lookup import INHERITED, flag_of
from kresume.options.settings import DEFAULTS
from kresume.options.table import TrainConfig
from kresume.spelling import in_python, joined, option, setting

LASTING = INHERITED | {"freeze", "unfreeze_at", "until", "distill"}
"""Options about how a run trains. Others name sources and places, or say how much and at which rate this run trains."""

SWITCHED = frozenset(
    {"patience", "require", "max_forgetting", "max_class_drop", "freeze", "unfreeze_at", "until", "distill", "average"}
)
"""Options without a default that do nothing where they are not given. Others then leave a fact to the model."""


def differing(parent: TrainConfig, child: TrainConfig) -> dict[str, tuple[Any, Any]]:
    """Compares the options of two runs.

    Args:
        parent: the resolved options of the parent.
        child: those of the run that extends it.

    Returns:
        The values of parent and child by name; None for one that is off, the default for one that was not given.
    """
    # Layers that the parent froze stay frozen in its checkpoint: without the option nothing differs.
    left = {name for name in ("freeze", "unfreeze_at") if getattr(child, name) is None}
    names = sorted((LASTING - left) & set(TrainConfig.model_fields))
    values = [(name, _value(name, parent), _value(name, child)) for name in names]
    return {name: (before, now) for name, before, now in values if before != now}


def describe_differences(parent: TrainConfig, child: TrainConfig, asked: TrainConfig) -> str:
    """Formats what a command changes.

    For example `"--add new/ --batch-size 64 (the parent: 32); all others are the parent's"`.

    Args:
        parent: the resolved options of the parent.
        child: those of the run that extends it.
        asked: those that the command gave.
    """
    changed = differing(parent, child)
    words = [
        shown(name, value)
        for name, value in given(asked).items()
        if name not in LASTING and name not in {"from_", "out"}
    ]
    for name, (before, now) in changed.items():
        unset = "off" if name in SWITCHED or getattr(DEFAULTS, name, None) is not None else "not given"
        was = unset if before is None else _words(before)
        words.append(f"{shown(name, now)} (the parent: {was})")
    return f"{joined(words)}{'; ' if words else ''}{'all others are' if words else 'all are'} the parent's"


def shown(name: str, value: Any) -> str:
    """Formats an option with its value as the user gives it."""
    named = flag_of(name)[2:]
    if value is None and getattr(DEFAULTS, name, None) is True:
        return setting(named, False)
    if value is None:
        return f"{option(named)}None" if in_python() else f"no {option(named)}"
    return setting(named, value)


def _words(value: Any) -> str:
    if value is True:
        return "on"
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _value(name: str, config: TrainConfig) -> Any:
    if name == "imports":  # a child imports the file of its parent's --model
        return list(code_of(given(config))) or None
    # The default monitor is used only where something monitors, and the default share only without validation images.
    unused = name == "monitor" or (name == "val_split" and config.val is not None)
    default = getattr(DEFAULTS, name, None)
    value = given(config).get(name, None if unused else default)
    # 0 switches a share off that is 0 by default; a gate of 0 points is on.
    return None if value is False or (value == 0 and isinstance(value, float) and default is not None) else value
