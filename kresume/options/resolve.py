"""Reads options from the command line, YAML files and Python, and checks their values.

config = resolve({"from_": "ckpt/", "lr": 1e-4}, file="story.yaml", sets=["epochs=5"])
config = from_arguments("ckpt/", {"add": ["new/"], "lr": 1e-4})
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, KeysView, Mapping, Sequence, Set
from numbers import Real
from typing import Any, Literal, get_args, get_origin

from pydantic import ValidationError

from kresume.addresses import address_of, as_address, is_stage
from kresume.class_names import canonical, join_classes, names_of, read_classes
from kresume.class_renames import pairs_of
from kresume.errors import NothingNew, UsageError
from kresume.options.lookup import INHERITED, about, flag_of
from kresume.options.model_objects import name_of, steps_of
from kresume.options.neighbours import nearest
from kresume.options.settings import DEFAULT_MLFLOW, DEFAULTS
from kresume.options.table import TrainConfig
from kresume.spelling import counted, in_python, option
from kresume.storage import one_file, yaml_text

SWITCHES = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
"""Words that turn a switch on or off, in YAML and in Pydantic."""
DROPPED = frozenset(name for name in INHERITED if not about(name).held)
"""Options that `--without` may name."""
SIZES = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
"""Units of a size, without their B."""


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
        name = _field(key, "--set")
        values[name] = _from_text(name, yaml_text.read(value, f"--set {text}"))
    values |= {name: value for name, value in flags.items() if value is not None and value != ()}
    return _validated(values)


def from_arguments(checkpoint: str | os.PathLike[str] | None, arguments: Mapping[str, Any]) -> TrainConfig:
    """Reads options from Python's keyword arguments.

    Args:
        checkpoint: as `--from`; None for a new model.
        arguments: by field name; paths may be `os.PathLike`, lists of one path the path alone, `model` a Keras model.

    Raises:
        UsageError: an unknown key (with the nearest known one), a value of the wrong kind, or an empty list of images.
        NothingNew: `add` is an empty list, a pattern that matched no file, and neither `drop` nor `rename` is given.
    """
    values = {_field(name, "argument"): value for name, value in arguments.items()}
    for name in ("data", "add", "val"):
        if values.get(name) is not None:
            values[name] = several(name, values[name])
        alone = checkpoint is not None and (values.get("drop") or values.get("rename"))  # is work without images
        if values.get(name) == () and not (name == "add" and alone):
            empty = f"{option(name)}: an empty list names no source"
            raise NothingNew(f"nothing new: {empty}") if name == "add" else UsageError(f"{empty}: leave it out")
    if checkpoint is not None:
        values["from_"] = path_of(checkpoint)
    elif steps := steps_of(values.get("model")):
        raise UsageError(
            f"{option('model', type(values['model']).__name__)} is trained already (its optimizer has made "
            f"{counted(steps, 'update')}), so it is the checkpoint: model.save('model.keras'), then 'model.keras' as the first "
            "argument"
        )
    return _validated({name: value for name, value in values.items() if value is not None})


def path_of(checkpoint: Any) -> str:
    """Returns the path of a checkpoint that Python gives.

    That of a run in a bucket is its address, not its stage.

    Raises:
        UsageError: it is neither a path nor a run.
    """
    if isinstance(checkpoint, (str, os.PathLike)):
        return address_of(checkpoint) if is_stage(checkpoint) else as_address(checkpoint)
    raise UsageError(
        f"a {type(checkpoint).__name__} as the first argument: give the path of a checkpoint; a model in memory is saved "
        "first: model.save('model.keras'), then 'model.keras'"
    )


def as_spec(model: Any) -> str:
    """Returns what `--model` takes for an argument of Python: text, a path, or a Keras model.

    Raises:
        UsageError: it is none of these, or Keras cannot record the model.
    """
    return os.fspath(model) if isinstance(model, (str, os.PathLike)) else name_of(model)


def left_out(config: TrainConfig) -> frozenset[str]:
    """Returns the fields that `--without` names."""
    return frozenset(_field(text, option("without", text)) for text in config.without or ())


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


def as_image_size(value: int | str | Sequence[int] | None) -> tuple[int, int] | None:
    """Returns an argument of Python as `(height, width)`: a number, a pair, or text as of `--image-size`.

    Raises:
        UsageError: it is none of these.
    """
    return None if value is None else parse_image_size(str(_plain("image_size", value)))


def several(name: str, value: Any) -> tuple[str, ...]:
    """Returns the paths or names of an argument of Python, which is one or several of them.

    Args:
        name: of the argument, with dashes.
        value: what was given; None is none.

    Raises:
        UsageError: it holds something else than paths and text: a picture, or a table.
    """
    if value is None:
        return ()
    if hasattr(value, "columns"):
        raise UsageError(
            f"{option(name)}: a {type(value).__name__} is not read: write it as a list, table.to_csv('list.csv', index=False), "
            "and give 'list.csv'"
        )
    if isinstance(value, (Mapping, Set, bytes)) and not isinstance(value, KeysView):
        raise UsageError(f"{option(name)}: give paths or names in a list, not a {type(value).__name__}")
    one = isinstance(value, (str, os.PathLike, Real)) or not isinstance(value, Iterable)
    items = [value] if one else list(value)
    wrong = next((each for each in items if not isinstance(each, (str, os.PathLike, Real))), None)
    if wrong is not None:
        raise UsageError(
            f"{option(name)}: give paths or names, not a {type(wrong).__name__}: pictures are read from files"
        )
    return tuple(_text(each) for each in items)


def average_of(config: TrainConfig) -> float | Literal["auto"]:
    """Returns the share of `--average`: how much of the weights that a run began with is in its result.

    Raises:
        UsageError: it is neither a share below 1 nor `auto`.
    """
    text = DEFAULTS.average if config.average is None else config.average.strip().lower()
    if text == "auto":
        return "auto"
    try:
        share = 0.0 if text == "off" else float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share < 1:
        raise UsageError(
            f"{option('average', str(config.average))}: give the share of the weights with which the run began, from 0 to "
            "below 1, or auto"
        )
    return share


def cache_limit(config: TrainConfig) -> int | None:
    """Returns `--cache-limit` in bytes, None where it was not given.

    Raises:
        UsageError: it is not a size.
    """
    return None if config.cache_limit is None else parse_bytes(config.cache_limit)


def default_cache_limit() -> int:
    """Returns the default of `--cache-limit` in bytes."""
    return parse_bytes(DEFAULTS.cache_limit)


def parse_bytes(given: str) -> int:
    """Returns a size in bytes.

    Args:
        given: `"50GB"`, `"50G"`, `"48GiB"`; a number without a unit is 0 or at least a million.

    Raises:
        UsageError: it is not a size.
    """
    text = given.strip().upper()
    number = text.rstrip("KMGTIB")
    wrong = f"{option('cache-limit', given)}: give a size with its unit, 500MB or 50GB for example"
    try:
        size = int(float(number) * SIZES[unit := text[len(number) :].strip().removesuffix("B")])
    except (ValueError, KeyError, OverflowError) as error:
        raise UsageError(wrong) from error
    if size < 0 or (not unit and 0 < size < 10**6):  # 12 probably means 12GB, and is no cache in bytes
        raise UsageError(wrong)
    return size


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
        if value is None or allowed is None:
            continue
        for each in value if isinstance(value, tuple) else (value,):
            if not allowed.holds(each):
                raise UsageError(f"{_spelled(name, each)}: {allowed.expected}")
    cache_limit(config)
    average_of(config)
    _check_without(config)
    return config


def _check_without(config: TrainConfig) -> None:
    """Raises UsageError if `--without` names an option that no run takes over, or one that is given."""
    for text in config.without or ():
        said = option("without", text)
        name = _field(text, said, DROPPED)
        if about(name).held:
            raise UsageError(
                f"{said}: the checkpoint itself holds it, and trains with it: give another value with {_spelled(name)}"
            )
        if name not in INHERITED:
            raise UsageError(f"{said}: a run does not take {_spelled(name)} over from its parent: leave it out")
        if getattr(config, name) is not None:
            raise UsageError(f"{said}: {_spelled(name)} is given, too: leave one of them out")
    if config.without and config.from_ is None and config.out is None:
        raise UsageError(
            f"{option('without', config.without[0])} is about the options of a parent run: give {option('from')}"
        )


def _plain(name: str, value: Any) -> Any:
    """Converts a value to the form of the table: a tuple if the option repeats, else text or a number."""
    if name == "model":
        return as_spec(value)
    if name == "image_size" and not isinstance(value, (str, Real)):
        return "x".join(str(item) for item in value)
    if name == "rename" and isinstance(value, Mapping):
        return pairs_of(value)
    if name == "classes" and not isinstance(value, (str, os.PathLike)):
        return join_classes(names_of(value) or ())
    if name == "grow" and isinstance(value, str):
        return tuple(map(canonical, read_classes(value))) if value else True
    if name == "mlflow" and value in {"", True, False}:
        return "off" if value is False else os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_MLFLOW
    if name == "cache" and isinstance(value, (bool, str)):
        switch = SWITCHES.get(value.lower()) if isinstance(value, str) else value
        return DEFAULTS.cache if switch else "off" if switch is False else value
    kinds = _kinds(name)
    if isinstance(value, bool) and kinds & {int, float}:
        raise UsageError(f"{_spelled(name, value)}: give a number")
    if tuple in kinds and not isinstance(value, bool):
        return several(flag_of(name)[2:], value)
    if isinstance(value, os.PathLike) or kinds & {str, Literal}:
        return _text(value)
    return value


def _text(value: Any) -> Any:
    """Returns the command line's form of a path, a number or a switch; anything else unchanged."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value) if isinstance(value, Real) else as_address(value) if isinstance(value, os.PathLike) else value


def _kinds(name: str) -> set[Any]:
    """Returns the types of a value of an option: bool, int, float, str, tuple."""
    field = TrainConfig.model_fields.get(name)
    return {get_origin(part) or part for part in get_args(field.annotation)} if field is not None else set()


def _spelled(name: str, value: Any = None) -> str:
    return option(flag_of(name)[2:], value)


def _field(key: str, where: str, shown: Collection[str] = tuple(TrainConfig.model_fields)) -> str:
    """Returns the field of an option's name, with or without dashes.

    Args:
        key: the name.
        where: begins the message of an error.
        shown: the fields that the message lists.

    Raises:
        UsageError: there is no such option; the message begins with `where`.
    """
    name = key.strip().lstrip("-").replace("-", "_")
    name = {"from": "from_", "import": "imports"}.get(name, name)
    if name in TrainConfig.model_fields:
        return name
    known = sorted(map(flag_of, shown))
    hint = nearest(f"--{name.replace('_', '-')}", known) or f"known are {', '.join(flag[2:] for flag in known)}"
    hint = hint.replace("--", "")
    raise UsageError(f"{where}: no option {key.strip()}: {hint.replace('-', '_') if in_python() else hint}")


def _read_yaml(file: str) -> dict[str, Any]:
    if not one_file.is_file(file):
        raise UsageError(f"--config {file}: there is no such file")
    value = yaml_text.read(one_file.read_text(file), f"--config {file}")
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise UsageError(f"--config {file}: expected a mapping of options, for example `lr: 1e-4`")
    named = {_field(str(key), f"--config {file}"): (key, item) for key, item in value.items()}
    if len(named) < len(value):
        raise UsageError(f"--config {file}: an option stands twice, with - and with _")
    return {name: _from_text(name, item) for name, (_, item) in named.items()}


def _from_text(name: str, value: Any) -> Any:
    """Converts a text of YAML to a switch or a number (1e3 as well) where the option takes one."""
    if not isinstance(value, str):
        return value
    kinds = _kinds(name)
    if value.lower() in SWITCHES and (bool in kinds or about(name).bare):
        return SWITCHES[value.lower()]
    if kinds & {int, float}:
        try:
            return float(value) if "e" in value.lower() else value
        except ValueError:
            return value
    return value
