"""Reads options from the command line, YAML files and Python, and checks their values.

config = resolve({"from_": "ckpt/", "lr": 1e-4}, file="story.yaml", sets=["epochs=5"])
config = from_arguments("ckpt/", {"add": ["new/"], "lr": 1e-4})
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import ValidationError

from kresume.class_names import join_classes, names_of, read_classes
from kresume.errors import UsageError
from kresume.options.lookup import about, flag_of
from kresume.options.neighbours import nearest
from kresume.options.settings import DEFAULT_MLFLOW, DEFAULTS
from kresume.options.table import TrainConfig
from kresume.spelling import option

SIZES = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def resolve(flags: Mapping[str, Any], file: str | None = None, sets: Sequence[str] = ()) -> TrainConfig:
    """Reads options from the command line, `--set KEY=VALUE` and a YAML file; the earlier named win.

    Args:
        flags: by field name; None means not given.
        file: a YAML file with a mapping of options, by flag names without dashes in front (`lr-scale: 0.1`).
        sets: `KEY=VALUE`, values in YAML.

    Raises:
        UsageError: an unknown key (with the nearest known one) or a value of the wrong kind.
    """
    values: dict[str, Any] = {}
    if file is not None:
        values |= _read_yaml(file)
    for text in sets:
        key, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--set {text}: give KEY=VALUE, for example --set epochs=5")
        values[_field(key, "--set")] = _yaml(value, f"--set {text}")
    values |= {name: value for name, value in flags.items() if value is not None and value != ()}
    return _validated(values)


def from_arguments(checkpoint: str | os.PathLike[str] | None, arguments: Mapping[str, Any]) -> TrainConfig:
    """Reads options from Python's keyword arguments.

    Args:
        checkpoint: as `--from`; None for a new model.
        arguments: by field name; paths may be `os.PathLike`, lists of one path the path alone.

    Raises:
        UsageError: an unknown key (with the nearest known one) or a value of the wrong kind.
    """
    values = {_field(name, "argument"): value for name, value in arguments.items()}
    if checkpoint is not None:
        values["from_"] = os.fspath(checkpoint)
    return _validated({name: value for name, value in values.items() if value is not None})


def image_size(config: TrainConfig) -> tuple[int, int] | None:
    """Returns `--image-size` as `(height, width)`, None where it was not given.

    Raises:
        UsageError: it is neither N nor HxW.
    """
    return None if config.image_size is None else parse_image_size(config.image_size)


def default_image_size() -> tuple[int, int]:
    """Returns the `(height, width)` of a new model's pictures."""
    return parse_image_size(DEFAULTS.image_size)


def parse_image_size(text: str) -> tuple[int, int]:
    """Reads N or HxW as `(height, width)`.

    Raises:
        UsageError: it is neither.
    """
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise UsageError(f"{option('image-size', text)}: give N or HEIGHTxWIDTH, 224 or 180x240 for example")
    return int(parts[0]), int(parts[-1])


def cache_limit(config: TrainConfig) -> int | None:
    """Returns `--cache-limit` in bytes, None where it was not given.

    Raises:
        UsageError: it is not a size.
    """
    return None if config.cache_limit is None else _parse_bytes(config.cache_limit)


def default_cache_limit() -> int:
    """Returns the default of `--cache-limit` in bytes."""
    return _parse_bytes(DEFAULTS.cache_limit)


def _parse_bytes(given: str) -> int:
    text = given.strip().upper()
    number = text.rstrip("KMGTB")
    try:
        return int(float(number) * SIZES[text[len(number) :].strip()])
    except (ValueError, KeyError) as error:
        raise UsageError(f"{option('cache-limit', given)}: give a size, 500MB or 50GB for example") from error


def _validated(given: Mapping[str, Any]) -> TrainConfig:
    """Builds the config from values of the forms that users give, and checks each against the table."""
    values = {name: _plain(name, value) for name, value in given.items()}
    try:
        config = TrainConfig(**values)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        raise UsageError(f"{_spelled(name, first.get('input'))}: {first['msg']}") from error
    for name in TrainConfig.model_fields:
        value, allowed = getattr(config, name), about(name).range
        if value is not None and allowed is not None and not allowed.holds(value):
            raise UsageError(f"{_spelled(name, value)}: {allowed.expected}")
    cache_limit(config)
    return config


def _plain(name: str, value: Any) -> Any:
    """Converts a value to the form of the table: a tuple if the option repeats, else text or a number."""
    if name == "image_size" and isinstance(value, (list, tuple)):
        return "x".join(str(item) for item in value)
    if name == "classes" and isinstance(value, (list, tuple, Mapping)):
        return join_classes(names_of(value) or ())
    if name == "grow" and isinstance(value, str):
        return read_classes(value) if value else True
    if name == "mlflow" and value in {"", True, False}:
        return "off" if value is False else os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_MLFLOW
    if name in {"image_size", "classes"} and isinstance(value, int):
        return str(value)
    if _repeats(name) and isinstance(value, (str, os.PathLike)):
        value = (value,)
    if isinstance(value, (list, tuple)):
        return tuple(os.fspath(item) if isinstance(item, os.PathLike) else item for item in value)
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _repeats(name: str) -> bool:
    """Returns True if the option can be given more than once."""
    field = TrainConfig.model_fields.get(name)
    return field is not None and any(get_origin(part) is tuple for part in get_args(field.annotation))


def _spelled(name: str, value: Any) -> str:
    return option(flag_of(name)[2:], value)


def _field(key: str, where: str) -> str:
    name = key.strip().lstrip("-").replace("-", "_")
    name = {"from": "from_", "import": "imports"}.get(name, name)
    if name in TrainConfig.model_fields:
        return name
    known = [flag_of(field) for field in TrainConfig.model_fields]
    hint = nearest(f"--{key.strip().lstrip('-')}", known) or f"known are {', '.join(flag[2:] for flag in known)}"
    raise UsageError(f"{where}: no option {key.strip()}: {hint.replace('--', '')}")


def _read_yaml(file: str) -> dict[str, Any]:
    path = Path(file)
    if not path.is_file():
        raise UsageError(f"--config {file}: there is no such file")
    value = _yaml(path.read_text(encoding="utf-8"), f"--config {file}")
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise UsageError(f"--config {file}: expected a mapping of options, for example `lr: 1e-4`")
    return {_field(str(key), f"--config {file}"): item for key, item in value.items()}


def _yaml(text: str, where: str) -> Any:
    import yaml

    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"{where}: this is not YAML ({' '.join(str(error).split())})") from error
    return _numbers(value)


def _numbers(value: Any) -> Any:
    """Reads `1e-4` as a number: YAML 1.1 reads it as text."""
    if isinstance(value, Mapping):
        return {key: _numbers(item) for key, item in value.items()}
    if isinstance(value, str):
        try:
            return float(value) if "e" in value.lower() and value[0].isdigit() else value
        except ValueError:
            return value
    return value
