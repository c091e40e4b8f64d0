"""Every option once: its name, type, help and check. The command line, YAML files and Python all speak through this table.

    config = resolve({"from_": "ckpt/", "lr": 1e-4}, file="story.yaml", sets=["epochs=5"])
    given(config)               # only what was given: {"from_": "ckpt/", ...}
    to_command(config)          # "kresume train --from ckpt/ --lr 0.0001"

A value of None means "not given": what holds then is said in each option's help and decided where it is used, so that a
parent's option can be told from a default.
"""

from __future__ import annotations

import difflib
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kresume.class_names import join_classes, names_of
from kresume.errors import UsageError
from kresume.spelling import option


def _option(help: str, *, group: str, daily: bool = False, metavar: str | None = None, flag: str | None = None) -> Any:
    return Field(
        None, description=help, json_schema_extra={"group": group, "daily": daily, "metavar": metavar, "flag": flag}
    )


START, IMAGES, MODEL, AMOUNT, RATE, OUTPUT, MACHINE = (
    "Where to start", "Images", "Model", "How much", "Learning rate", "The run", "Machine",
)  # fmt: skip


class TrainConfig(BaseModel):
    """The options of `kresume train` and `kresume plan`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    from_: str | None = _option(
        "Checkpoint or run to extend: a run, RUN@step, a folder of runs (the newest accepted one), .keras, .weights.h5, .h5 "
        "of Keras 2, a folder of BackupAndRestore, tf.train.Checkpoint, a SavedModel, a folder of Orbax, a PyTorch state "
        "dict. Without it a new model is trained.",
        group=START,
        daily=True,
        metavar="PATH",
        flag="--from",
    )
    or_new: bool | None = _option(
        "Start with initial weights where --from is not there yet (for commands that run from the first day).",
        group=START,
    )
    partial: bool | None = _option(
        "Go on although some variables could not be restored; they start fresh and are named.", group=START
    )
    data: tuple[str, ...] | None = _option(
        "The old images: a folder with one folder per class, a CSV, JSONL or Parquet list with path and label, a tar or zip "
        "archive, WebDataset shards, TFRecord, a manifest. Repeatable, kinds mix. A run as parent remembers its own.",
        group=IMAGES,
        daily=True,
        metavar="PATH",
    )
    add: tuple[str, ...] | None = _option(
        "The new images. Repeatable. What the parent knows already is recognised by content and counts once.",
        group=IMAGES,
        daily=True,
        metavar="PATH",
    )
    val: tuple[str, ...] | None = _option(
        "Images to validate on, never trained on. Repeatable. Turns --val-split off unless that is given too.",
        group=IMAGES,
        daily=True,
        metavar="PATH",
    )
    val_split: float | None = _option(
        "Share of the newcomers that validates, chosen by content and recorded for good. Default 0.1.",
        group=IMAGES,
        metavar="F",
    )
    val_like: str | None = _option(
        "keras:F:SEED: validate on what image_dataset_from_directory(validation_split=F, seed=SEED) had held out of --data.",
        group=IMAGES,
        metavar="keras:F:SEED",
    )
    feature: tuple[str, ...] | None = _option(
        "Name of a TFRecord feature: encoded=NAME, label=NAME or text=NAME. Repeatable. Default: image/encoded, "
        "image/class/label, image/class/text.",
        group=IMAGES,
        metavar="ROLE=NAME",
    )
    drop: str | None = _option(
        "File with a path or a SHA-256 per line: images to forget, in the manifest and in the cache.",
        group=IMAGES,
        metavar="FILE",
    )
    remap: tuple[str, ...] | None = _option(
        "Where remembered images have moved: the beginning of their paths before and now. Repeatable.",
        group=IMAGES,
        metavar="OLD=NEW",
    )
    on_missing: Literal["error", "drop", "cache"] | None = _option(
        "Remembered images that are gone: an error, forgotten, or trained on from the cache. Default error.",
        group=IMAGES,
    )
    on_conflict: Literal["quarantine", "old", "new"] | None = _option(
        "One image under two labels: neither is used, or the one that came in first, or the other. Default quarantine.",
        group=IMAGES,
    )
    strict_images: bool | None = _option("A file that cannot be used is an error.", group=IMAGES)
    mix: str | None = _option(
        "How old and new meet in an epoch: concat (each image once), or OLD:NEW shares, 1:1 for example. Default concat.",
        group=IMAGES,
        metavar="concat|OLD:NEW",
    )
    replay: float | None = _option(
        "The share of the old images that each epoch takes, 0.25 for example; another part each time. Default all.",
        group=IMAGES,
        metavar="F",
    )
    balance: Literal["none", "class"] | None = _option(
        "class gives every class the same share of an epoch. Default none.", group=IMAGES
    )
    classes: str | None = _option(
        "Names of the model's outputs in their order: a,b,c, quotes around names with commas, or a file: one name per line, "
        "`0 ROCK` lines of Teachable Machine, JSON (class_indices of Keras), CSV. Default: the parent's, else the sorted "
        "class folders.",
        group=IMAGES,
        metavar="FILE|a,b,c",
    )
    augment: Literal["none", "light", "strong"] | None = _option(
        "light shifts; strong also mirrors, turns, zooms and erases. Default light.", group=IMAGES
    )
    vary_interpolation: bool | None = _option(
        "Draw for each image anew whether it is sampled by --interpolation or as Keras's own loader does (bilinear), for a "
        "model that unknown loaders will feed. Decodes each image a second time. Default off.",
        group=IMAGES,
    )
    mixup: float | None = _option("MixUp's alpha, 0.2 for example. Default off.", group=IMAGES, metavar="F")
    cutmix: float | None = _option(
        "The largest share of a picture that CutMix puts into another, up to 1. Default off.", group=IMAGES, metavar="F"
    )
    rand_augment: float | None = _option(
        "RandAugment's strength from 0 to 1, two operations an image: dear on a CPU. Default off.",
        group=IMAGES,
        metavar="F",
    )
    erase: float | None = _option(
        "Share of the images of which a random rectangle is erased. Default off.", group=IMAGES, metavar="F"
    )
    model: str | None = _option(
        "convnet, applications:NAME, file.py:function, package.module:function, or a .json, .keras or .h5 file with an "
        "architecture. Default: the checkpoint's, else convnet.",
        group=MODEL,
        daily=True,
        metavar="SPEC",
    )
    map: str | None = _option(
        "YAML file that says which array of a PyTorch state dict fills which variable; its entries win over what is found "
        "by name, order and shape.",
        group=MODEL,
        metavar="FILE",
    )
    map_out: str | None = _option(
        "Where to write the mapping of a PyTorch state dict, to be corrected and given back with --map.",
        group=MODEL,
        metavar="FILE",
    )
    imports: tuple[str, ...] | None = _option(
        "Python file that registers custom layers or losses with Keras. Repeatable.",
        group=MODEL,
        metavar="FILE",
        flag="--import",
    )
    trust: bool | None = _option(
        "The checkpoint is mine: run the code of its Lambda layers. Without it no code of a checkpoint is ever run.",
        group=MODEL,
    )
    image_size: str | None = _option(
        "Side of the pictures in pixels, N or HEIGHTxWIDTH. Default: the model's, 64 for a new one.",
        group=MODEL,
        daily=True,
        metavar="N|HxW",
    )
    pixels: str | None = _option(
        "What values the model takes: auto, 0-255, 0-1, -1-1, caffe, torch (Keras's own), bgr-0-255, bgr-0-1, bgr--1-1 "
        "(OpenCV), cifar10, mnist, 0-255-inverted, 0-1-inverted, -1-1-inverted (grey), mean=M,std=S[,bgr] with a number each "
        "or one for each channel, or FILE.py:FUNCTION. auto reads it from the first layers, or finds it by scoring the "
        "checkpoint on old images.",
        group=MODEL,
        metavar="NAME",
    )
    axes: str | None = _option(
        "Order of height, width and channels in the model's input, where its shape does not say it: hwc, chw, hw, wh ... "
        "Default: what the shape says; of a row of numbers the order that fits the old images.",
        group=MODEL,
        metavar="ORDER",
    )
    resize: Literal["stretch", "crop", "pad"] | None = _option(
        "How pictures are brought to the size. Default: the parent's, else stretch.", group=MODEL
    )
    interpolation: Literal["area", "bilinear", "antialias", "nearest"] | None = _option(
        "How they are sampled; bilinear is what image_dataset_from_directory does. Default: the parent's, else area.",
        group=MODEL,
    )
    loss: Literal["sparse_categorical_crossentropy", "categorical_crossentropy", "binary_crossentropy"] | None = (
        _option("Default: the checkpoint's, else what fits the last activation.", group=MODEL)
    )
    metric: tuple[str, ...] | None = _option("A further Keras metric to log. Repeatable.", group=MODEL, metavar="NAME")
    precision: Literal["float32", "mixed_bfloat16", "mixed_float16"] | None = _option(
        "Arithmetic of the layers; variables stay float32. Default: the checkpoint's, float32 for a new model.",
        group=MODEL,
    )
    epochs: int | None = _option(
        "How many more epochs. Default: by how much is new, 20 for a new model.", group=AMOUNT, daily=True, metavar="N"
    )
    steps: int | None = _option("How many more steps (optimizer updates).", group=AMOUNT, metavar="N")
    batch_size: int | None = _option("Images per step. Default 32.", group=AMOUNT, daily=True, metavar="N")
    accumulate: int | None = _option("Batches whose gradients make one update. Default 1.", group=AMOUNT, metavar="N")
    watch: bool | None = _option(
        "Look for new images in --data, --add and --val before each epoch: what came joins, the epochs grow, their number "
        "stays.",
        group=AMOUNT,
    )
    steps_per_execution: int | None = _option(
        "Steps that Keras runs per call: less overhead for small models; epochs and snapshots then end at multiples of it. "
        "Default: the model's own, else 1.",
        group=AMOUNT,
        metavar="N",
    )
    seed: int | None = _option(
        "Of the order, the augmentation and a new model's weights. Default 0.", group=AMOUNT, metavar="N"
    )
    patience: int | None = _option(
        "Stop after so many epochs without a better --monitor; the best epoch is the result.", group=AMOUNT, metavar="N"
    )
    monitor: str | None = _option(
        "What chooses the best epoch: val_loss, val_accuracy, old.accuracy, new.loss, classes.min.recall ... Default: "
        "none, the last epoch is the result; val_loss with --patience.",
        group=AMOUNT,
        metavar="NAME",
    )
    lr: float | None = _option(
        "The learning rate to use: the rate, or the peak of the printed schedule. It always takes effect.",
        group=RATE,
        daily=True,
        metavar="F",
    )
    lr_scale: float | None = _option("A factor on the checkpoint's rate instead.", group=RATE, metavar="F")
    lr_schedule: Literal["keep", "constant", "cosine", "rewarm-cosine", "plateau"] | None = _option(
        "keep: the checkpoint's own; constant: held; cosine and rewarm-cosine: a short warm-up, then down to 0; plateau: "
        "halved when val_loss stops falling. Default: rewarm-cosine when images are added, else keep; cosine for a new "
        "model.",
        group=RATE,
    )
    warmup_steps: int | None = _option(
        "Steps of warm-up. Default a twentieth of the run, at most 200.", group=RATE, metavar="N"
    )
    optimizer: str | None = _option(
        "keep, NAME (what the checkpoint does not say; another class takes over the slots that mean the same), NAME:keep "
        "(the same layers are frozen as in the checkpoint) or NAME:reset. Default keep; adamw for a new model.",
        group=RATE,
        metavar="NAME",
    )
    optimizer_from: str | None = _option(
        "A file that holds the optimizer's state by itself: optimizer.pth beside the model.pth that --from names.",
        group=RATE,
        metavar="FILE",
    )
    weight_decay: float | None = _option("Default: the optimizer's own.", group=RATE, metavar="F")
    ema: float | None = _option(
        "Momentum of averaged weights, 0.99 for example; scores and model.keras use the averages. Default off.",
        group=RATE,
        metavar="F",
    )
    out: str | None = _option(
        "The run directory. Default: runs/<n>-<name>. Alone it continues that run.",
        group=OUTPUT,
        daily=True,
        metavar="DIR",
    )
    overwrite: bool | None = _option(
        "Move what is at --out aside and start again; an interrupted run that this very command began is continued.",
        group=OUTPUT,
    )
    snapshot_every: str | None = _option(
        "Steps (200), epochs (2epochs) or minutes (10min). Default: each minute.", group=OUTPUT, metavar="N"
    )
    keep: int | None = _option("How many snapshots to keep. Default 3.", group=OUTPUT, metavar="N")
    take_over: bool | None = _option(
        "Continue a run that another machine holds, without waiting for it to fall silent.", group=OUTPUT
    )
    backend: Literal["tensorflow", "jax"] | None = _option(
        "Default: KERAS_BACKEND, else jax with an accelerator and tensorflow on a CPU, where it is several times faster.",
        group=MACHINE,
        daily=True,
    )
    device: Literal["auto", "cpu", "gpu", "tpu"] | None = _option("Default auto.", group=MACHINE)
    devices: int | None = _option(
        "How many devices share each batch, through JAX. Default: as many of those here as divide the batch size.",
        group=MACHINE,
        metavar="N",
    )
    cache: str | None = _option(
        "Where decoded pictures are kept: auto ($KRESUME_CACHE, else ~/.cache/kresume), off, or a folder.",
        group=MACHINE,
        metavar="DIR",
    )
    cache_limit: str | None = _option(
        "What the cache may take, 500MB or 50GB for example; what was unused for longest goes first. Kept for later "
        "commands. Default 50GB.",
        group=MACHINE,
        metavar="SIZE",
    )
    exact: Literal["on", "off"] | None = _option(
        "on asks an accelerator for deterministic kernels; a CPU repeats without it. Default off.", group=MACHINE
    )


FREE_TO_DIFFER = frozenset(
    {
        "backend",
        "device",
        "devices",
        "snapshot_every",
        "keep",
        "cache",
        "cache_limit",
        "take_over",
        "trust",
        "map_out",
        "watch",
        "imports",
        "overwrite",
    }
)
"""What a continuation may change."""

NOT_INHERITED = frozenset(
    {
        "from_", "or_new", "partial", "data", "add", "val", "val_split", "val_like", "drop", "remap", "on_missing",
        "epochs", "steps", "lr", "lr_scale", "lr_schedule", "warmup_steps", "out", "overwrite", "take_over", "device",
        "devices", "optimizer", "model", "trust", "map", "map_out",
        "optimizer_from",
    }
)  # fmt: skip
INHERITED = frozenset(TrainConfig.model_fields) - NOT_INHERITED
"""What a run takes from its parent where it is not given."""

POSITIVE = ("epochs", "steps", "batch_size", "accumulate", "keep", "patience", "devices", "steps_per_execution")


NEIGHBOURS: Mapping[str, str] = {
    "--resume": "an interrupted run continues by the same command; a checkpoint with more images is --from PATH",
    "--resume-from-checkpoint": "that is --from PATH; an interrupted run continues by the same command",
    "--initial-checkpoint": "that is --from PATH",
    "--pretrained": "that is --from PATH",
    "--weights": "that is --from PATH",
    "--ckpt": "that is --from PATH",
    "--checkpoint": "that is --from PATH",
    "--lr0": "that is --lr F",
    "--learning-rate": "that is --lr F",
    "--imgsz": "that is --image-size N",
    "--img-size": "that is --image-size N",
    "--input-size": "that is --image-size N",
    "--batch": "that is --batch-size N",
    "--output-dir": "that is --out DIR",
    "--output": "that is --out DIR",
    "--project": "that is --out DIR",
    "--model-ema": "that is --ema 0.999",
    "--warmup-epochs": "that is --warmup-steps N",
    "--sched": "that is --lr-schedule NAME",
    "--opt": "that is --optimizer NAME",
    "--data-dir": "that is --data PATH",
    "--checkpoint-hist": "that is --keep N",
    "--save-total-limit": "that is --keep N",
    "--recovery-interval": "that is --snapshot-every N",
    "--save-steps": "that is --snapshot-every N",
    "--num-epochs": "that is --epochs N",
    "--num-train-epochs": "that is --epochs N",
    "--workers": "reading is as parallel as the machine allows, without an option",
    "--amp": "that is --precision mixed_bfloat16",
    "--grow": "growing the head by new classes is not in this version; a fresh head is: --partial --classes a,b,NEW --model M",
    "--new-only": "training without the old images is not in this version",
    "--distill": "distillation is not in this version",
    "--freeze": "freezing is not in this version; set `trainable` in the function that --model names",
    "--unfreeze-at": "freezing is not in this version; set `trainable` in the function that --model names",
    "--average": "averaging with the parent is not in this version; --ema F averages along the way",
    "--until": "stopping at a score is not in this version; --patience N stops when nothing gets better",
    "--require": "a gate is not in this version; kresume eval RUN --against OTHER compares two models",
    "--max-forgetting": "a gate is not in this version; kresume eval RUN --against OTHER compares two models",
    "--max-class-drop": "a gate is not in this version; kresume eval RUN --against OTHER compares two models",
}
"""Options of timm, Hugging Face, YOLO and Keras scripts, and what they are here."""


def nearest(option: str, known: Sequence[str]) -> str | None:
    """What a person who typed an unknown option may have meant, in words; None if nothing is near.

    Args:
        option: with its two dashes.
        known: the options that exist, likewise.
    """
    name = option.replace("_", "-")
    if name in NEIGHBOURS:
        return NEIGHBOURS[name]
    near = difflib.get_close_matches(name, [*known, *NEIGHBOURS], 1)
    if not near:
        return None
    return NEIGHBOURS.get(near[0]) or f"did you mean {near[0]}?"


def flag_of(name: str) -> str:
    """`"lr_scale"` -> `"--lr-scale"`."""
    extra: dict[str, Any] = TrainConfig.model_fields[name].json_schema_extra  # type: ignore[assignment]
    return extra["flag"] or f"--{name.replace('_', '-')}"


def given(config: TrainConfig) -> dict[str, Any]:
    """The options that were given, as JSON values. False is one: it turns off what a parent had on."""
    return config.model_dump(mode="json", exclude_none=True)


def same_config(before: TrainConfig, now: TrainConfig) -> list[tuple[str, Any, Any]]:
    """Options that differ, as (name, before, now); those that a continuation may change are left out."""
    # Off is what holds where nothing is given, and what a parent had on is turned off before this is asked.
    one, other = ({name: value for name, value in given(each).items() if value is not False} for each in (before, now))
    names = [name for name in TrainConfig.model_fields if name not in FREE_TO_DIFFER]
    return [(name, one.get(name), other.get(name)) for name in names if one.get(name) != other.get(name)]


def code_of(options: Mapping[str, Any]) -> tuple[str, ...]:
    """The Python files that a run's options name, as far as they are here: what it registers, and what its model is made by."""
    model, _, _ = str(options.get("model") or "").rpartition(":")
    files = [*(options.get("imports") or ()), *([model] if model.endswith(".py") else ())]
    return tuple(dict.fromkeys(file for file in files if Path(file).is_file()))


def _number(value: float) -> str:
    """As short as it reads back the same."""
    return f"{value:g}" if float(f"{value:g}") == value else repr(value)


def to_command(config: TrainConfig, program: str = "kresume train") -> str:
    """The shell command that gives these options."""
    words = []
    for name, value in given(config).items():
        flag = flag_of(name)
        if isinstance(value, bool):
            words += [flag] if value else [f"--no-{flag[2:]}"] if name in INHERITED else []
        else:
            for item in value if isinstance(value, (list, tuple)) else [value]:
                words += [flag, shlex.quote(_number(item) if isinstance(item, float) else str(item))]
    return " ".join([program, *words])


def image_size(config: TrainConfig) -> tuple[int, int] | None:
    """`--image-size` as `(height, width)`.

    Raises:
        UsageError: it is neither N nor HxW.
    """
    if config.image_size is None:
        return None
    parts = config.image_size.lower().split("x")
    if len(parts) > 2 or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise UsageError(
            f"{option('image-size', config.image_size)}: give N or HEIGHTxWIDTH, 224 or 180x240 for example"
        )
    return int(parts[0]), int(parts[-1])


SIZES = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def cache_limit(config: TrainConfig) -> int | None:
    """`--cache-limit` in bytes, None where it was not given.

    Raises:
        UsageError: it is no size.
    """
    if config.cache_limit is None:
        return None
    text = config.cache_limit.strip().upper()
    number = text.rstrip("KMGTB")
    try:
        return int(float(number) * SIZES[text[len(number) :].strip()])
    except (ValueError, KeyError) as error:
        raise UsageError(
            f"{option('cache-limit', config.cache_limit)}: give a size, 500MB or 50GB for example"
        ) from error


def resolve(flags: Mapping[str, Any], file: str | None = None, sets: Sequence[str] = ()) -> TrainConfig:
    """Options from the command line, `--set KEY=VALUE` and a YAML file; the earlier named win.

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
    """Options from Python's keyword arguments.

    Raises:
        UsageError: as `resolve`.
    """
    values = {_field(name, "argument"): _plain(value) for name, value in arguments.items()}
    if checkpoint is not None:
        values["from_"] = os.fspath(checkpoint)
    return _validated({name: value for name, value in values.items() if value is not None})


def _plain(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _validated(values: Mapping[str, Any]) -> TrainConfig:
    values = dict(values)
    for name in ("data", "add", "val", "imports", "metric", "feature", "remap"):
        value = values.get(name)
        if isinstance(value, (str, os.PathLike)):
            values[name] = (os.fspath(value),)
        elif isinstance(value, (list, tuple)):
            values[name] = tuple(os.fspath(item) if isinstance(item, os.PathLike) else item for item in value)
    size, classes = values.get("image_size"), values.get("classes")
    if isinstance(size, (list, tuple)):
        values["image_size"] = "x".join(str(item) for item in size)
    elif isinstance(size, int):
        values["image_size"] = str(size)
    if isinstance(classes, (list, tuple, Mapping)):
        values["classes"] = join_classes(names_of(classes) or ())
    elif isinstance(classes, int):
        values["classes"] = str(classes)
    try:
        config = TrainConfig(**values)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        raise UsageError(f"{_spelled(name, first.get('input'))}: {first['msg']}") from error
    for name in POSITIVE:
        value = getattr(config, name)
        if value is not None and value < 1:
            raise UsageError(f"{_spelled(name, value)}: give a whole number of at least 1")
    for name in ("replay", "cutmix", "rand_augment", "erase"):
        value = getattr(config, name)
        if value is not None and not 0 <= value <= 1:
            raise UsageError(f"{_spelled(name, value)}: give a number from 0 to 1")
    for name in ("from_", "out", "cache"):
        value = getattr(config, name)
        if value is not None and "://" in value:
            raise UsageError(
                f"{_spelled(name, value)}: runs, checkpoints and the cache are on this machine or on a mounted drive; only "
                "images may be elsewhere. Copy it here first, or mount it"
            )
    for name in ("mixup", "weight_decay"):
        value = getattr(config, name)
        if value is not None and not 0 <= value < float("inf"):
            raise UsageError(f"{_spelled(name, value)}: give a number of at least 0")
    if config.seed is not None and not 0 <= config.seed < 2**32:
        raise UsageError(f"{option('seed', config.seed)}: give a whole number from 0 to {2**32 - 1:,}")
    cache_limit(config)
    for name in ("val_split", "ema"):
        value = getattr(config, name)
        if value is not None and not 0 <= value < 1:
            raise UsageError(f"{_spelled(name, value)}: give a number from 0 to below 1")
    return config


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
        raise UsageError(f"{where}: this is no YAML ({' '.join(str(error).split())})") from error
    return _numbers(value)


def _numbers(value: Any) -> Any:
    """YAML 1.1 reads `1e-4` as text; people mean the number."""
    if isinstance(value, Mapping):
        return {key: _numbers(item) for key, item in value.items()}
    if isinstance(value, str):
        try:
            return float(value) if "e" in value.lower() and value[0].isdigit() else value
        except ValueError:
            return value
    return value
