"""Collects the notes of a plan: the lines that begin with `note:`.

    notes_of(config, parent, gathered, amount, rate, "AdamW", epoch_images=640, generation=2, model=model)

Each note is one sentence: its subject, a count, and what the user can do. Without a reason there is no note.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from kresume.class_names import note_alike
from kresume.errors import UsageError
from kresume.images.manifest import Manifest
from kresume.options.resolve import image_size
from kresume.options.table import TrainConfig
from kresume.spelling import option
from kresume.training.plan.amount import HUGE_ADDITION, describe_batch_change
from kresume.training.plan.images import Gathered
from kresume.training.plan.parent import Parent
from kresume.values.amount import Amount
from kresume.values.rate import RatePlan

WHOLE_NUMBERS = ("int8", "int4", "gptq", "awq")
"""Modes of Keras's `quantize` after which a kernel holds whole numbers."""


def notes_of(
    config: TrainConfig,
    parent: Parent | None,
    gathered: Gathered,
    amount: Amount,
    rate: RatePlan,
    optimizer: str,
    *,
    epoch_images: int,
    generation: int,
    model: Any,
) -> list[str]:
    """Returns the notes about a run's images and its parent, in reading order.

    Args:
        config: the options of the run.
        parent: the checkpoint to start from, None for a new model.
        gathered: the images.
        amount: how much is trained.
        rate: the learning rate.
        optimizer: the class of the optimizer that trains.
        epoch_images: images of an epoch.
        generation: the generation of the new run.
        model: the restored parent.
    """
    notes = [*gathered.notes, *gathered.merge.facts.notes]
    notes += _unmeasured(gathered.manifest, notes)
    if parent is None:
        return [*notes, *note_alike(gathered.manifest.classes)]
    notes += _batch_size(parent, epoch_images, amount, rate, optimizer)
    notes += _fed_otherwise(config, parent, model)
    notes += _seen(config, parent, gathered)
    notes += _replaced(config, parent, gathered)
    notes += parent.state.records.get("notes", ())
    named = config.grow if isinstance(config.grow, tuple) else ()
    if absent := [name for name in named if name not in gathered.manifest.classes]:
        notes.append(f"{option('grow')} names {', '.join(absent)}: there is no such class folder")
    if config.new_only:
        notes.append(
            f"the old images of {config.from_} are neither trained on nor scored: what it forgets of them is not measured"
        )
    notes += _huge(gathered, generation)
    return notes


def _unmeasured(manifest: Manifest, notes: Sequence[str]) -> Iterator[str]:
    """Names classes that train and of which no image validates, unless a note says so of their new images.

    Corrected labels and a class that is split keep each image's side.
    """
    train, val = (
        np.bincount(manifest.labels[rows].astype(np.int64), minlength=len(manifest.classes))
        for rows in (manifest.train_rows(), manifest.val_rows())
    )
    told = {name for name in manifest.classes if any(note.startswith(f"{name} has only ") for note in notes)}
    names = [
        name for name, trains, validates in zip(manifest.classes, train, val, strict=True) if trains and not validates
    ]
    names = [name for name in names if name not in told]
    if val.any() and names:
        each = "it is" if len(names) == 1 else "they are"
        yield f"no validation image is of {listed(names)}: {each} trained and not measured ({option('val', 'PATH')} adds some)"


def frozen_layers(model: Any) -> list[str]:
    """Describes which layers train; empty if all do.

    Args:
        model: the restored model.

    Raises:
        UsageError: no layer trains.
    """
    from kresume.models import structure

    now = {id(variable) for variable in model.trainable_variables}
    able = structure.can_train(model)
    addresses = structure.address_of(model)
    layers: dict[str, list[Any]] = {}
    for variable in able:
        layers.setdefault(addresses[id(variable)].name.rpartition("/")[0], []).append(variable)
    training = [name for name, weights in layers.items() if any(id(each) in now for each in weights)]
    some, every = (sum(int(np.prod(v.shape)) for v in part) for part in ([v for v in able if id(v) in now], able))
    shares = f"({some:,} of {every:,} parameters)"
    notes = [*_adapters(model, addresses), *_whole_numbers(model, addresses)]
    way = f"give {option('freeze', 'none')}, or {option('unfreeze-at', 'EPOCH')}"
    if not training:
        raise UsageError(f"every layer of the model is frozen, so no weight would train: {way}")
    if len(training) < len(layers):
        notes.append(
            f"{len(layers) - len(training):,} of {len(layers):,} layers with weights are frozen: only {listed(training)} "
            f"{'trains' if len(training) == 1 else 'train'} {shares}; to train more, {way}"
        )
    elif some < every and not notes:
        part = [name for name, weights in layers.items() if not all(id(each) in now for each in weights)]
        notes.append(f"of {listed(part)} only some weights train, as the code of the model says {shares}")
    return notes


def _adapters(model: Any, addresses: Mapping[int, Any]) -> list[str]:
    """Says which layers train through adapters."""
    from kresume.models import adapters

    named = [_layer(adapters.base(layer), addresses) for layer in adapters.adapted(model)]
    trains = "trains its" if len(named) == 1 else "train their"
    return [f"{listed(named)} {trains} adapters (LoRA), not the weights that these adapt"] if named else []


def _whole_numbers(model: Any, addresses: Mapping[int, Any]) -> list[str]:
    """Says which layers hold whole numbers, which no gradient can change."""
    from kresume.models import adapters

    layers = [
        layer
        for layer in model._flatten_layers()
        if getattr(layer, "quantization_mode", None) in WHOLE_NUMBERS and not getattr(layer, "lora_enabled", False)
    ]
    if not layers:
        return []
    named = [_layer(adapters.base(layer), addresses) for layer in layers]
    return [
        f"the weights of {listed(named)} are whole numbers ({layers[0].quantization_mode}) and do not train: continue from the "
        "checkpoint before `quantize`, and quantize its result"
    ]


def _layer(variable: Any, addresses: Mapping[int, Any]) -> str:
    return str(addresses[id(variable)].name.rpartition("/")[0])


def statistics_of_layers(model: Any, kind: str) -> list[str]:
    """Describes which layers have running statistics that are not recomputed; empty if there are none.

    Args:
        model: the restored model.
        kind: `"recomputed"` or `"moving"`.
    """
    from kresume.models.statistics import other_running

    others = other_running(model) if kind == "recomputed" else []
    if not others:
        return []
    keep, their = ("keeps", "its") if len(others) == 1 else ("keep", "their")
    return [
        f"{listed(others)} {keep} statistics of {their} own, which are used as training leaves them; those of batch "
        "normalisation are recomputed"
    ]


def listed(names: Sequence[str]) -> str:
    """Lists the first three names, and how many more there are."""
    return f"{', '.join(names[:3])}{f' and {len(names) - 3:,} more' if len(names) > 3 else ''}"


def _batch_size(parent: Parent, images: int, amount: Amount, rate: RatePlan, optimizer: str) -> Iterator[str]:
    if parent.run is None:
        return
    before = parent.run.record.amount.batch_size
    if change := describe_batch_change(before, amount.batch_size, images, rate.peak, optimizer):
        yield change


def _fed_otherwise(config: TrainConfig, parent: Parent, model: Any) -> Iterator[str]:
    """Yields a note where the run resizes pictures in another way than its parent."""
    from kresume.models.shapes import takes_any_size

    card = parent.card
    if card is None:
        return
    pairs: list[tuple[str, str | None]] = [(card.interpolation, config.interpolation), (card.resize, config.resize)]
    if (size := image_size(config)) not in {None, card.image_size}:
        old, new = (f"{height}x{width}" for height, width in (card.image_size, size))
        if takes_any_size(model):
            pairs.append((old, new))
        else:
            yield (
                f"the checkpoint was trained with {old}, and the model of this run takes {new} alone: `before` and the gates "
                "score it so, which may be worse than it was"
            )
    changed = [(before, now) for before, now in pairs if now is not None and now != before]
    if changed:
        before, now = (" and ".join(each) for each in zip(*changed, strict=True))
        yield (
            f"the checkpoint was trained with {before}, and `before` and the gates score it so; this run trains and is scored "
            f"with {now}"
        )


def _seen(config: TrainConfig, parent: Parent, gathered: Gathered) -> Iterator[str]:
    """Notes validation images that a bare checkpoint was probably trained on."""
    val = gathered.manifest.val_rows()
    seen = int(gathered.manifest.seen[val].sum())
    if seen and parent.run is not None:
        yield f"{seen:,} of the {len(val):,} validation images were probably seen in training, before the first of these runs"
    elif seen:
        yield (
            f"{config.from_} does not say which images it was trained on: {seen:,} of the {len(val):,} validation images were "
            f"probably seen in training (for a fair score give {option('val')}, or {option('val-like', 'keras:F:SEED')})"
        )


def _replaced(config: TrainConfig, parent: Parent, gathered: Gathered) -> Iterator[str]:
    """Notes images that the parent remembers and `--data` does not hold."""
    if parent.manifest is None or not config.data:
        return
    left = int((~np.isin(parent.manifest.sha256s, gathered.manifest.sha256s)).sum())
    left -= gathered.merge.facts.withheld
    if left > 0:
        yield (
            f"{option('data')} replaces what {config.from_} remembers: {left:,} of its "
            f"{len(parent.manifest):,} images are not in it and "
            f"are not trained on (leave {option('data')} out to keep them, {option('add')} gives more)"
        )


def _huge(gathered: Gathered, generation: int) -> Iterator[str]:
    """Notes so many new images that a fresh model is probably better; without old ones it would know less."""
    new = int((gathered.manifest.origins == generation).sum())
    old = len(gathered.manifest) - new
    if new > HUGE_ADDITION * old > 0:
        yield (
            f"{new:,} new images are more than {HUGE_ADDITION} times the {old:,} old ones: a fresh model is probably better: "
            f"give all of them with {option('data')}, without {option('from')}"
        )
