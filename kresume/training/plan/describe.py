"""Writes up the plan: the decisions with their reasons, and notes for the user."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kresume import runs
from kresume.checkpoints.run import named
from kresume.class_renames import in_options, read_renames
from kresume.images.mixing import Shares
from kresume.options.differences import describe_differences
from kresume.options.given import given
from kresume.options.lookup import flag_of
from kresume.options.settings import settings_of
from kresume.options.table import TrainConfig
from kresume.spelling import option
from kresume.training.plan.averaging import describe_average
from kresume.training.plan.disk import describe_disk
from kresume.training.plan.draft import Data, Loaded
from kresume.training.plan.freezing import describe_freezing
from kresume.training.plan.judging import describe_noise
from kresume.training.plan.mixture import note_unmixed
from kresume.training.plan.notes import frozen_layers, notes_of, statistics_of_layers
from kresume.training.plan.optimizer_changes import describe_optimizer
from kresume.training.plan.parent import Live, Parent
from kresume.training.plan.plan import Plan
from kresume.training.start import Start
from kresume.values.amount import Amount
from kresume.values.freezing import Freezing
from kresume.values.rate import RatePlan
from kresume.values.state import SavedOptimizer, show_step


def describe(
    start: Start,
    loaded: Loaded,
    data: Data,
    wanted: SavedOptimizer,
    rate: RatePlan,
    amount: Amount,
    before: Mapping[str, Any] | None,
    shares: Shares,
    ahead: str,
    freezing: Freezing | None,
) -> Plan:
    """Returns the plan.

    Args:
        start: where the run will be, and its options.
        loaded: the model that training starts from.
        data: the images.
        wanted: the optimizer that trains.
        rate: the learning rate.
        amount: how much is trained.
        before: the parent's scores, None for a new model.
        shares: what an epoch is made of.
        ahead: a note on a schedule that ends before the run; may be empty.
        freezing: which layers do not train; None if no option says so.
    """
    from kresume.models.precision import describe as describe_precision

    parent, live, gathered, generation = loaded.parent, loaded.live, data.gathered, loaded.generation
    manifest = gathered.manifest
    new = manifest.origins == generation
    val = manifest.val_rows()
    facts = gathered.merge.facts
    sides = f"{len(val):,} validation"
    if parent is not None:
        sides += f" ({int((~new[val]).sum()):,} old, {int(new[val].sum()):,} new)"
    old_count, new_count = int((~new).sum()), int(new.sum())
    notes = [note for note in (loaded.loss.note, _left_out(loaded.unused_metrics), ahead) if note]
    notes += [*(parent.notes if parent is not None else ()), *data.feeding.notes]
    optimizer = wanted.class_name or ""
    told = {"epoch_images": shares.images, "generation": generation, "model": live.model}
    notes += notes_of(start.config, parent, gathered, amount, rate, optimizer, **told)
    notes += note_unmixed(start, settings_of(start.config), manifest, generation)
    notes += frozen_layers(live.model) if freezing is None else []
    notes += statistics_of_layers(live.model, settings_of(start.config).bn_stats)
    notes += describe_optimizer(start.config, parent, live, wanted)
    return Plan(
        action="extend" if parent is not None else "start",
        out=str(start.path),
        parent=_describe_parent(start, parent),
        restored=live.summary,
        images={
            "total": len(manifest),
            "old": old_count,
            "new": new_count,
            "train": len(manifest.train_rows()),
            "validation": len(val),
            "seen": int(manifest.seen[val].sum()),
            "duplicates": facts.duplicates,
            "dropped": facts.dropped,
            "quarantined": len(gathered.quarantine),
        },
        sides=sides,
        card=data.card,
        pixels_reason=data.feeding.reason,
        interpolation_reason=data.feeding.interpolation_reason,
        classes_reason=loaded.classes_reason,
        rate=rate,
        amount=amount,
        loss=f"{loaded.loss.kind} ({loaded.loss.reason})",
        optimizer=optimizer,
        before=before,
        options={flag_of(name): value for name, value in given(start.given).items()},
        differs=_differs(start, parent),
        notes=notes,
        shares=shares,
        per_class=manifest.per_class(generation),
        disk=describe_disk(live, len(manifest), data.card.spec, start.config, extends=parent is not None),
        frozen=describe_freezing(freezing, live.model, begins=_begins_for_thawed(parent, live)),
        noise=describe_noise(manifest, generation),
        growth=loaded.growth.describe(manifest) if loaded.growth else "",
        average=describe_average(start.config, parent, int((~new[val]).sum())),
        precision=describe_precision(live.model),
    )


def _begins_for_thawed(parent: Parent | None, live: Live) -> bool:
    """Returns whether layers that the checkpoint froze have no slots there, unlike others."""
    from kresume.models import slots

    held = parent is not None and parent.run is not None and parent.run.held.exists()
    return live.kept and not held and bool(slots.slot_lists(live.optimizer))


def _left_out(metrics: Sequence[str]) -> str:
    """Returns a note about the checkpoint's metrics that are not computed; empty without them."""
    adds = option("metric", "NAME")
    return f"metrics of the checkpoint are not computed: {', '.join(metrics)}; {adds} adds one" if metrics else ""


def _describe_parent(start: Start, parent: Parent | None) -> str:
    """Returns the path, the format and the step of the parent; empty without one."""
    if parent is None:
        return ""
    state = parent.state
    step = "" if state.step is None else f", step {show_step(state.step, state.step - state.own_step)}"
    kind = state.format
    if parent.run is not None:
        # A killed run still says that it is running.
        kind = f"run, {parent.run.status if parent.run.finished else 'unfinished'}"
        scored = [] if parent.run.finished else runs.read_metrics(parent.run.metrics)
        if scored and scored[-1]["step"] > state.own_step:
            step += f"; it had trained to step {scored[-1]['step']:,}"
    return f"{named(str(start.config.from_))} ({kind}{step})"


def _differs(start: Start, parent: Parent | None) -> str:
    """Returns what differs from the options of the parent run; empty if the parent is no run."""
    if parent is None or parent.run is None:
        return ""
    before = in_options(parent.run.record.options, read_renames(start.config.rename))
    return describe_differences(TrainConfig(**before), start.config, start.given)
