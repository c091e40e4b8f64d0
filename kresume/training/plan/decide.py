"""Decides everything before the first step: `kresume plan` prints it, `kresume train` carries it out.

plan = make_plan(config, reporter)          # reads and scores; writes nothing
draft = make_draft(opening, reporter, writes=True)      # the same, with the model in memory and the images in the cache
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from kresume.backend import live_state, selection
from kresume.errors import UsageError
from kresume.evaluation.caches import open_cache
from kresume.evaluation.probe import CLEAR_ERRORS
from kresume.images.collect import Sources
from kresume.images.mixing import make_order
from kresume.images.order import permutation
from kresume.images.reader import PictureReader
from kresume.models.inputs import layout_of
from kresume.options.given import given
from kresume.options.lookup import flag_of
from kresume.options.resolve import cache_limit, from_arguments, image_size
from kresume.options.settings import DEFAULTS, settings_of
from kresume.options.table import TrainConfig
from kresume.reporter import Reporter
from kresume.spelling import as_argument, spelled
from kresume.training.feeding import PROBE_IMAGES, Feeding, decide_feeding
from kresume.training.gather import (
    Gathered,
    check_outputs,
    check_sources,
    corrects,
    decide_classes,
    gather,
    list_sources,
)
from kresume.training.loop.policy import Cadence
from kresume.training.plan.amount import check_monitor, decide_amount
from kresume.training.plan.notes import frozen_layers, notes_of
from kresume.training.plan.parent import (
    Live,
    Parent,
    describe_change,
    read_parent,
    restore_parent,
    saved_rate,
    wanted_optimizer,
)
from kresume.training.plan.plan import Plan
from kresume.training.plan.rate import decide_rate, look_ahead
from kresume.training.plan.torch_mapping import check_filled_in
from kresume.training.start import Opening, open_out
from kresume.values.amount import Amount
from kresume.values.card import Card
from kresume.values.decode_spec import DecodeSpec
from kresume.values.input_layout import InputLayout
from kresume.values.rate import RatePlan
from kresume.values.state import SavedOptimizer

if TYPE_CHECKING:
    from kresume.models.losses import LossChoice

SHIFT_POINTS = 0.05


@dataclass(frozen=True)
class Draft:
    """A plan, and the objects in memory that carry it out.

    Attributes:
        plan: the decisions that are printed and pinned in `run.json`.
        parent: the checkpoint to start from, None for a new model.
        live: the model with every variable restored.
        gathered: the images.
        sources: the listed files that the images come from.
        loss: the loss and the metrics that go with it.
        generation: the generation of the new run.
    """

    plan: Plan
    parent: Parent | None
    live: Live
    gathered: Gathered
    sources: Sources
    loss: LossChoice
    generation: int


@spelled(as_argument)
def plan(checkpoint: str | os.PathLike[str] | None = None, /, **arguments: Any) -> Plan:
    """Returns the plan of `kresume.resume` with the same arguments; writes nothing.

    Args:
        checkpoint: same as in `kresume.resume`.
        **arguments: same as in `kresume.resume`.

    Raises:
        KresumeError: `resume` would raise the same error.
    """
    quiet = bool(arguments.pop("quiet", False))
    return make_plan(from_arguments(checkpoint, arguments), Reporter(quiet=quiet))


def make_plan(config: TrainConfig, reporter: Reporter) -> Plan:
    """Decides everything that `train` would decide with the same options; writes nothing.

    Raises:
        KresumeError: `train` would raise the same error.
    """
    opening = open_out(config)
    if opening.run is not None:
        return _plan_of_continuation(opening)
    draft = make_draft(opening, reporter, writes=False)
    for quarantined in draft.gathered.quarantine:
        reporter.say(f"would be set aside: {quarantined.path}: {quarantined.reason}")
    return draft.plan


def make_draft(opening: Opening, reporter: Reporter, *, writes: bool) -> Draft:
    """Loads the checkpoint, gathers the images, and decides the rate and the amount of training.

    Args:
        opening: the path of the run, and its options.
        reporter: shown progress.
        writes: False for `plan`: nothing is written to the cache.

    Raises:
        KresumeError: the run cannot be started. Nothing was written except decoded images in the cache.
    """
    config, held = opening.config, settings_of(opening.config)
    # Check first what a typo can break: before a framework is loaded, and long before a run is created.
    Cadence.parse(held.snapshot_every)
    asked_size = image_size(config)
    sources = list_sources(config, reporter, writes=writes)
    selection.select(config.backend, held.device, config.devices, held.batch_size, exact=held.exact == "on")
    parent = read_parent(config)
    if config.from_ is not None and parent is None:
        reporter.say(f"no checkpoint at {config.from_}: starting with initial weights (--or-new)")
    check_sources(config, parent, sources)
    classes, classes_reason = decide_classes(config, parent, sources)
    check_monitor(config.monitor, classes)
    generation = parent.generation + 1 if parent is not None else 0

    selection.set_precision(config.precision)
    live_state.seed_everything(held.seed)
    card = parent.card if parent is not None else None
    mapped = parent is not None and parent.state.layout == "torch"
    if mapped:
        check_filled_in(config.model)
    live = restore_parent(
        config, parent, num_classes=len(classes), image_size=asked_size or (card.image_size if card else None)
    )
    from kresume.models.losses import check_metrics, choose_loss, unused_metrics
    from kresume.models.outputs import output_count
    from kresume.models.own_code import own_code

    check_metrics(config.metric or ())

    source_name = config.from_ if parent is not None and parent.state.architecture else f"--model {config.model}"
    check_outputs(classes, classes_reason, output_count(live.model), str(source_name))
    saved = parent.state.compiled if parent is not None else None
    loss = choose_loss(
        live.model,
        saved=saved,
        requested=config.loss,
        soft_labels=bool(config.mixup or config.cutmix),
        code=own_code(config.model, config.imports or ()),
    )
    metrics = unused_metrics(saved, config.metric or ())

    old = sources.data if parent is not None else None
    spec, layout = decode_spec(config, card, live.model, asked_size)
    feeding = decide_feeding(config, card, live.model, loss, old, classes, spec, layout, reporter, mapped=mapped)
    spec = feeding.spec
    cache = open_cache(spec, held.cache, cache_limit(config), writes=writes)
    gathered = gather(config, parent, sources, classes, spec, cache, generation, reporter, writes=writes)
    reader = PictureReader(gathered.manifest, spec, cache)

    size = (spec.height, spec.width)
    card = Card(classes, size, feeding.pixels, spec.resize, spec.interpolation, input=feeding.layout)
    before = None
    shift = None
    if parent is not None:
        from kresume.evaluation.live import LiveScorer

        scorer = LiveScorer(live.model, reader, gathered.manifest, card, loss, held.batch_size, generation)
        before = scorer.score(reporter, "scoring the parent")
        shift = _find_shift(scorer, gathered, generation)
    order = make_order(
        gathered.manifest,
        held.seed,
        held.batch_size,
        held.mix,
        config.replay,
        held.balance,
        generation,
    )
    amount = _amount(config, parent, live, gathered, generation, order.n)
    wanted = wanted_optimizer(live.saved, config)
    rate = decide_rate(
        saved=saved_rate(config, parent, live, wanted),
        optimizer=wanted.class_name or "",
        steps=amount.steps,
        lr=config.lr,
        lr_scale=config.lr_scale,
        schedule=config.lr_schedule,
        warmup_steps=config.warmup_steps,
        adds_images=parent is not None and (_count_new(gathered, generation) > 0 or corrects(config, gathered.merge)),
        shift=shift,
        interrupted=parent is not None and parent.interrupted,
    )
    rate, ahead = look_ahead(rate, live.iterations)
    plan = _write_up(
        opening, parent, live, wanted, gathered, card, feeding, classes_reason, rate, amount, loss, before, generation
    )
    left_out = f"the checkpoint's metrics are not computed: {', '.join(metrics)}; --metric NAME adds one of Keras's"
    said = [note for note in (loss.note, left_out if metrics else "", ahead) if note]
    plan = replace(plan, shares=order.shares(), notes=[*said, *plan.notes])
    return Draft(plan, parent, live, gathered, sources, loss, generation)


def decode_spec(
    config: TrainConfig, card: Card | None, model: Any, asked: tuple[int, int] | None
) -> tuple[DecodeSpec, InputLayout]:
    """Decides size and resizing, and how the model takes an image.

    An option wins over the checkpoint's model card, which wins over the model's own input.

    Args:
        config: the options.
        card: the checkpoint's model card, None if it has none.
        model: the built model.
        asked: `--image-size` as `(height, width)`, or None.

    Raises:
        UsageError: an option contradicts the model's fixed input, or the model takes no images.
    """
    layout, fixed = layout_of(
        model, asked or (card.image_size if card else None), config.axes, card.input if card else None
    )
    if fixed is not None and asked is not None and asked != fixed:
        raise UsageError(
            f"--image-size {asked[0]}x{asked[1]}: the model's input is fixed at {fixed[0]}x{fixed[1]}; leave it out"
        )
    size = asked or fixed or (card.image_size if card else None)
    if size is None:
        raise UsageError("the model takes images of any size: say which to train on with --image-size N or HxW")
    spec = DecodeSpec(
        size[0],
        size[1],
        config.resize or (card.resize if card else DEFAULTS.resize),
        config.interpolation or (card.interpolation if card else DEFAULTS.interpolation),
    )
    return spec, layout


def _sample(rows: np.ndarray) -> np.ndarray:
    """Selects up to 256 of these rows, the same ones each time."""
    return np.sort(rows[permutation(0, 0, len(rows))[:PROBE_IMAGES]])


def _count_new(gathered: Gathered, generation: int) -> int:
    manifest = gathered.manifest
    return int((manifest.origins[manifest.train_rows()] == generation).sum())


def _amount(
    config: TrainConfig, parent: Parent | None, live: Live, gathered: Gathered, generation: int, epoch_images: int
) -> Amount:
    from kresume.models.losses import compiled_by_function

    left = 0
    if parent is not None and parent.run is not None and parent.interrupted:
        done = parent.state.records.get("epoch", 0)
        left = max(0, parent.run.record.amount.epochs - int(done))
    return decide_amount(
        images=len(gathered.manifest.train_rows()),
        new_images=_count_new(gathered, generation),
        batch_size=settings_of(config).batch_size,
        epochs=config.epochs,
        steps=config.steps,
        new_model=parent is None,
        epochs_left=left,
        epoch_images=epoch_images,
        steps_per_execution=config.steps_per_execution or _per_execution(compiled_by_function(live.model)),
    )


def _per_execution(compiled: Mapping[str, Any] | None) -> int:
    """Returns the `steps_per_execution` with which the user's function compiled the model."""
    return int((compiled or {}).get("steps_per_execution") or DEFAULTS.steps_per_execution)


def _find_shift(scorer: Any, gathered: Gathered, generation: int) -> str | None:
    """Describes a shift if the parent is worse on new images than chance explains; else None."""
    manifest = gathered.manifest
    rows = manifest.train_rows()
    old, new = rows[manifest.origins[rows] < generation], rows[manifest.origins[rows] == generation]
    if not len(old) or not len(new):
        return None
    accuracies = [scorer.accuracy(_sample(part)) for part in (old, new)]
    counts = [min(len(part), PROBE_IMAGES) for part in (old, new)]
    error = sum(right * (1 - right) / count for right, count in zip(accuracies, counts, strict=True)) ** 0.5
    if accuracies[0] - accuracies[1] <= max(SHIFT_POINTS, CLEAR_ERRORS * error):
        return None
    return f"a probe finds it at {100 * accuracies[1]:.0f} % on new images, {100 * accuracies[0]:.0f} % on old ones"


def _write_up(
    opening: Opening,
    parent: Parent | None,
    live: Live,
    wanted: SavedOptimizer,
    gathered: Gathered,
    card: Card,
    feeding: Feeding,
    classes_reason: str,
    rate: RatePlan,
    amount: Amount,
    loss: LossChoice,
    before: Mapping[str, Any] | None,
    generation: int,
) -> Plan:
    manifest = gathered.manifest
    new = manifest.origins == generation
    val = manifest.val_rows()
    facts = gathered.merge.facts
    sides = f"{len(val):,} to validate"
    if parent is not None:
        sides += f" ({int((~new[val]).sum()):,} old, {int(new[val].sum()):,} new)"
    old_count, new_count = int((~new).sum()), int(new.sum())
    notes = [*(parent.notes if parent is not None else ()), *feeding.notes]
    notes += notes_of(opening.config, parent, gathered, amount, rate, wanted.class_name or "", generation=generation)
    notes += frozen_layers(live.model)
    if change := describe_change(live, wanted):
        notes.append(change)
    described = ""
    if parent is not None:
        kind = f"run, {parent.run.status}" if parent.run else parent.state.format
        step = f", step {parent.state.step:,}" if parent.state.step is not None else ""
        described = f"{opening.config.from_} ({kind}{step})"
    return Plan(
        action="extend" if parent is not None else "start",
        out=str(opening.path),
        parent=described,
        restored=live.summary,
        images={
            "total": len(manifest),
            "old": old_count,
            "new": new_count,
            "train": len(manifest.train_rows()),
            "validation": len(val),
            "seen": int(manifest.seen[val].sum()),
            "duplicates": facts.duplicates,
            "quarantined": len(gathered.quarantine),
        },
        sides=sides,
        card=card,
        pixels_reason=feeding.reason,
        interpolation_reason=feeding.interpolation_reason,
        classes_reason=classes_reason,
        rate=rate,
        amount=amount,
        loss=f"{loss.kind} ({loss.reason})",
        optimizer=wanted.class_name or "",
        before=before,
        options={flag_of(name): value for name, value in given(opening.given).items()},
        notes=notes,
    )


def _plan_of_continuation(opening: Opening) -> Plan:
    """Returns the plan that is pinned in the interrupted run."""
    run = opening.run
    if run is None:  # never: the caller checks it
        raise ValueError("no run to continue")
    from kresume.checkpoints import snapshot

    state, _ = snapshot.newest_snapshot(run.snapshots)
    record = run.record
    pinned = record.plan
    return Plan(
        action="continue",
        out=str(run.path),
        parent=f"its own snapshot at step {state.step or 0:,}",
        restored="",
        images=record.images,
        sides=pinned.sides,
        card=record.card,
        pixels_reason=pinned.pixels_reason,
        interpolation_reason=pinned.interpolation_reason,
        classes_reason=pinned.classes_reason,
        rate=record.rate,
        amount=record.amount,
        loss=pinned.loss,
        optimizer=pinned.optimizer,
        before=record.before,
        options=pinned.options,
        notes=(f"{state.step or 0:,} of the {record.amount.steps:,} steps are done",),
    )
