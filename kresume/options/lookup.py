"""Answers questions about one option by its name: its flag, its help, whether a child run inherits it."""

from __future__ import annotations

from typing import Any

from kresume.options.about import About
from kresume.options.settings import COOLDOWN_SHARE, DEFAULTS, LONGEST_WARMUP, WARMUP_SHARE
from kresume.options.table import TrainConfig


def about(name: str) -> About:
    """Returns what the table says of an option.

    Args:
        name: a field of `TrainConfig`.
    """
    extra: Any = TrainConfig.model_fields[name].json_schema_extra
    said: About = extra["about"]
    return said


def flag_of(name: str) -> str:
    """Returns the flag of a field: `"lr_scale"` -> `"--lr-scale"`."""
    return about(name).flag or f"--{name.replace('_', '-')}"


def help_of(name: str) -> str:
    """Returns the help of an option with its default filled in.

    Args:
        name: a field of `TrainConfig`.
    """
    text = TrainConfig.model_fields[name].description or ""
    return text.format(
        default=_shown(getattr(DEFAULTS, name, None)),
        warmup_share=WARMUP_SHARE,
        longest_warmup=LONGEST_WARMUP,
        cooldown_share=COOLDOWN_SHARE,
    )


def _shown(value: Any) -> str:
    """Returns a default as help prints it: a float or a switch that does nothing is off."""
    if value is False or (isinstance(value, float) and value == 0):
        return "off"
    if value is True:
        return "on"
    return f"{value:g}" if isinstance(value, float) else str(value)


INHERITED = frozenset(name for name in TrainConfig.model_fields if about(name).inherited)
"""Options that a child run takes from its parent."""
MAY_DIFFER = frozenset(name for name in TrainConfig.model_fields if about(name).may_differ)
"""Options that a continuation may change."""
