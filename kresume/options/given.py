"""Compares, records and prints options as they were given.

given(config)               # {"from_": "ckpt/", "lr": 0.0001}
to_command(config)          # "kresume train --from ckpt/ --lr 0.0001"
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kresume.class_names import join_classes
from kresume.options.lookup import INHERITED, MAY_DIFFER, about, flag_of
from kresume.options.model_objects import is_object
from kresume.options.table import TrainConfig
from kresume.spelling import in_python


def given(config: TrainConfig) -> dict[str, Any]:
    """Returns the options that were given, as JSON values. False turns off what a parent had on."""
    return config.model_dump(mode="json", exclude_none=True)


def same_config(before: TrainConfig, now: TrainConfig) -> list[tuple[str, Any, Any]]:
    """Lists the options that differ, without those that a continuation may change.

    Returns:
        `(name, before, now)` of each.
    """
    # False equals "not given": off is the default, and options of the parent were filled in before.
    one, other = ({name: value for name, value in given(each).items() if value is not False} for each in (before, now))
    names = [name for name in TrainConfig.model_fields if name not in MAY_DIFFER]
    return [(name, one.get(name), other.get(name)) for name in names if one.get(name) != other.get(name)]


def code_of(options: Mapping[str, Any]) -> tuple[str, ...]:
    """Lists the existing Python files of a run's options: those of `--import` and `--model`."""
    model, _, _ = str(options.get("model") or "").rpartition(":")
    files = [*(options.get("imports") or ()), *([model] if model.endswith(".py") else ())]
    return tuple(dict.fromkeys(file for file in files if Path(file).is_file()))


def to_train(**options: Any) -> str:
    """Returns the command that trains with these options, or the call of Python if the user is there.

    Args:
        **options: fields of `TrainConfig`; None is left out.
    """
    return spelled_out(TrainConfig(**{name: value for name, value in options.items() if value is not None}))


def spelled_out(config: TrainConfig) -> str:
    """Returns the command that gives these options, or the call of Python if the user is there."""
    return to_call(config) if in_python() else to_command(config)


def to_call(config: TrainConfig) -> str:
    """Returns the call of `kresume.resume` that gives these options."""
    values = given(config)
    words = [repr(values.pop("from_"))] if "from_" in values else []
    own = ["model=model"] if is_object(values.get("model")) and values.pop("model") else []
    one = {name: value[0] if isinstance(value, list) and len(value) == 1 else value for name, value in values.items()}
    return f"kresume.resume({', '.join([*words, *own, *(f'{name}={value!r}' for name, value in one.items())])})"


def to_command(config: TrainConfig, program: str = "kresume train") -> str:
    """Returns the shell command that gives these options."""
    words = []
    for name, value in given(config).items():
        flag = flag_of(name)
        if about(name).bare and value is not True:
            text = value if isinstance(value, str) else join_classes(value or ())
            words += [f"{flag}={shlex.quote(text)}"] if value else []
        elif isinstance(value, bool):
            words += [flag] if value else [f"--no-{flag[2:]}"] if name in INHERITED else []
        else:
            for item in value if isinstance(value, (list, tuple)) else [value]:
                words += [flag, shlex.quote(_number(item) if isinstance(item, float) else str(item))]
    return " ".join([program, *words])


def _number(value: float) -> str:
    """Returns the shortest text that reads back as the same number."""
    return f"{value:g}" if float(f"{value:g}") == value else repr(value)
