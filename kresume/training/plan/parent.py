"""Reads the parent of a run: its checkpoint, its model, and every variable restored.

    parent = read_parent(config)                   # None for a new model
    live = restore_parent(config, parent, num_classes=10, image_size=None)

Restoring is exact and comes first. Later changes (another rate, averages) are steps of their own in `resume.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kresume import runs
from kresume.backend import live_state
from kresume.checkpoints.keras_arrays import rate_of_schedule
from kresume.checkpoints.layouts import names_of
from kresume.checkpoints.read import read_checkpoint
from kresume.checkpoints.run import find_run
from kresume.checkpoints.snapshot import is_finite
from kresume.errors import CheckpointError, MissingCheckpoint, UsageError
from kresume.images.away import read_away, recorded_ever
from kresume.images.manifest import Manifest
from kresume.images.scans import remembered
from kresume.options.settings import DEFAULTS, default_rate
from kresume.options.table import TrainConfig
from kresume.spelling import option
from kresume.staging.fetch import here
from kresume.training.plan.frozen_then import with_frozen
from kresume.training.plan.kept_averages import keep_averages
from kresume.training.plan.renamed import Renamed
from kresume.values.card import Card
from kresume.values.state import UNDECAYED, SavedOptimizer, SavedRate, TrainState


@dataclass(frozen=True)
class Parent:
    """A checkpoint to start from.

    Attributes:
        state: the content of the checkpoint.
        run: the run that the checkpoint belongs to, None for a bare checkpoint.
        manifest: the images of that run, None for a bare checkpoint.
        away: the images that earlier generations had and that run does not; None if there are none.
    """

    state: TrainState
    run: runs.Run | None
    manifest: Manifest | None
    away: Manifest | None = None

    @property
    def ever(self) -> Manifest | None:
        """Returns every image that this run or an earlier generation recorded."""
        return None if self.manifest is None else recorded_ever(self.manifest, self.away)

    @property
    def generation(self) -> int:
        """Returns the parent's generation; a bare checkpoint counts as 0."""
        return self.run.generation if self.run else 0

    @property
    def interrupted(self) -> bool:
        """Returns True if the parent is an unfinished run, or Keras's backup of an interrupted training."""
        if self.run is not None:
            return not self.run.finished
        return bool(self.state.records.get("interrupted"))

    @property
    def notes(self) -> tuple[str, ...]:
        """Returns notes for the user on how the checkpoint was read."""
        records, source, said = self.state.records, self.state.source, []
        if records.get("passed_over"):
            said.append(
                f"the newest pair in {source} is damaged or incomplete, the pair before it is used: {records['passed_over']}"
            )
        if records.get("unreadable_runs"):
            said.append(str(records["unreadable_runs"]))
        if self.run is None and self.interrupted:
            inside = f", {records['batch']:,} batches into the next" if records.get("batch") else ""
            said.append(
                f"{source} is a training that was interrupted after {records['epoch']:,} epochs{inside}; how many it "
                f"had left is not recorded there: {option('epochs')} says how many more"
            )
        return tuple(said)

    @property
    def card(self) -> Card | None:
        """Returns the checkpoint's own model card: classes, pixels, size."""
        return self.state.card


@dataclass(frozen=True)
class Live:
    """A model in memory, with the optimizer as the checkpoint had it.

    Attributes:
        model: the built model with the restored weights.
        optimizer: the built optimizer with the restored slots and `iterations`; its rate is the checkpoint's.
        saved: the optimizer's class and config.
        summary: one line on what was restored; empty for a new model.
        kept: True if the optimizer's state was restored; False for a new model and for `NAME:reset`.
    """

    model: Any
    optimizer: Any
    saved: SavedOptimizer
    summary: str
    kept: bool = False

    @property
    def iterations(self) -> int:
        """Returns the optimizer's own count of batches, which is the argument of its schedule."""
        return int(live_state.host_array(live_state.inner(self.optimizer)._iterations.value))


def read_parent(config: TrainConfig) -> Parent | None:
    """Reads the checkpoint that `--from` names.

    Returns:
        The parent; None without `--from`, and with `--or-new` if the path does not exist.

    Raises:
        CheckpointError: the path does not exist, or cannot be read.
        UsageError: `--or-new`, and even the parent folder does not exist (an unmounted drive), or a class cannot be renamed.
    """
    if config.from_ is None:
        return None
    path = Path(here(config.from_))
    if config.or_new and not path.exists() and find_run(config.from_) is None and not _has_prefix(path):
        if not path.absolute().parent.is_dir():
            raise UsageError(
                f"{option('or-new', True)}: {path.absolute().parent} does not exist, so it is unknown whether {path.name} "
                "does: is the drive mounted? Create the folder if this is the first run"
            )
        return None
    run = find_run(config.from_)
    try:
        state = read_checkpoint(config.from_, config.optimizer_from)
    except MissingCheckpoint as error:
        raise MissingCheckpoint(
            f"{error}; to start with initial weights if there is no checkpoint yet, add {option('or-new', True)}"
        ) from None
    names = Renamed.of(config, state)
    if run is None:
        return Parent(names.state(state), None, None)
    away = read_away(run.path, run.record.away)
    return Parent(names.state(state), run, names.manifest(remembered(run.path)), names.away(away))


def _has_prefix(path: Path) -> bool:
    return bool(list(path.parent.glob(f"{path.name}.index"))) if path.parent.is_dir() else False


def choose_optimizer(config: TrainConfig, parent: Parent | None, model: Any) -> tuple[SavedOptimizer, bool, str]:
    """Decides which optimizer to build for the saved state, and whether that state is restored.

    Args:
        config: `optimizer` is `keep`, `NAME` or `NAME:reset`.
        parent: the checkpoint to start from, None for a new model.
        model: the built model; compiled if the user's model function compiles it.

    Returns:
        `(optimizer, keep, note)`. The note says what was assumed if the file does not name its optimizer.

    Raises:
        CheckpointError: the file does not name its optimizer, or holds no state; the message says which option to give.
        UsageError: `--optimizer` is invalid, or `--weight-decay` is needed.
    """
    from kresume.models import optimizers, saved_optimizer, weight_decay

    asked, reset = asked_optimizer(config)
    own = saved_optimizer.describe_compiled(getattr(model, "optimizer", None), model)
    if parent is None:
        if asked is None and own is not None:
            return own, False, ""
        return SavedOptimizer(asked or optimizers.class_name(DEFAULTS.optimizer), None, 0), False, ""
    stored = parent.state.optimizer
    if reset:
        compiled = own is not None and own.class_name == asked
        return (own if compiled and own is not None else SavedOptimizer(asked, None, 0)), False, ""
    saved_optimizer.check_can_keep(parent.state, asked or (own and own.class_name) or DEFAULTS.optimizer)
    decay = saved_optimizer.coupled_decay(parent.state, asked or (own.class_name if own else None) or "")
    if decay and config.weight_decay is None:
        equal = option("weight-decay", float(f"{weight_decay.equal_decay(stored, decay):g}"))
        raise UsageError(
            f"{parent.state.source} was trained with a weight decay of {decay:g} inside the gradient, which Keras's optimizers "
            f"do not offer: give {equal} (beside the gradient, about the same in the long run), or "
            f"{option('weight-decay', 0)}"
        )
    if stored is None:
        apart = names_of(parent.state).optimizer_apart
        beside = f", or name the file that it is in with {option('optimizer-from', 'FILE')}" if apart else ""
        named = (asked or (own and own.class_name) or DEFAULTS.optimizer).lower()
        raise CheckpointError(
            f"{parent.state.source} holds no optimizer state: training can only start its optimizer fresh; "
            f"confirm that with {option('optimizer', f'{named}:reset')}{beside}"
        )
    changes = {"weight_decay": config.weight_decay, "ema_momentum": config.ema}
    given = {name: value for name, value in changes.items() if value is not None}
    saved, assumed = saved_optimizer.name_optimizer(
        parent.state, model, asked, own, accumulate=config.accumulate, given=given
    )
    return weight_decay.as_compiled(saved, own, asked), True, assumed


def asked_optimizer(config: TrainConfig) -> tuple[str | None, bool]:
    """Parses `--optimizer` into its class (None for `keep`) and whether its state starts fresh.

    Raises:
        UsageError: it is neither keep, NAME nor NAME:reset.
    """
    from kresume.models import optimizers

    return optimizers.parse_choice(config.optimizer)


def wanted_optimizer(saved: SavedOptimizer, config: TrainConfig, model: Any) -> SavedOptimizer:
    """Returns the optimizer to train with: the checkpoint's, changed as the options say, or another class.

    Args:
        saved: the optimizer that `restore_parent` built.
        config: the options.
        model: what it trains.
    """
    from kresume.models import optimizers, weight_decay

    asked, _ = asked_optimizer(config)
    if asked is not None and asked != saved.class_name:
        saved = optimizers.change_class(saved, asked)
    changes: dict[str, Any] = {}
    if config.weight_decay is not None:
        changes["weight_decay"] = config.weight_decay
    if config.ema is not None:
        changes |= {"use_ema": True, "ema_momentum": config.ema}
    if config.exclude_from_weight_decay is not None:
        changes[UNDECAYED] = weight_decay.find(config.exclude_from_weight_decay, model)
    if config.accumulate is not None:
        changes["gradient_accumulation_steps"] = config.accumulate if config.accumulate > 1 else None
    return optimizers.with_config(saved, changes)


def restore_parent(
    config: TrainConfig,
    parent: Parent | None,
    *,
    num_classes: int,
    image_size: tuple[int, int] | None,
) -> Live:
    """Builds the model and restores every variable of model and optimizer.

    Args:
        config: the options.
        parent: the checkpoint to start from; None builds a new model with initial weights from the seed.
        num_classes: the number of classes of the images; ignored if the checkpoint has its own architecture.
        image_size: the requested `(height, width)`, or None for the model's own.

    Returns:
        The model and its optimizer in memory.

    Raises:
        RestoreError: a variable could not be restored; the error holds the table.
        ModelError, CheckpointError, UsageError: the model or its optimizer cannot be built; the message says why.
    """
    from kresume.models import build, hub, optimizers, slots

    model = build.build_model(
        config.model,
        state=parent.state if parent else None,
        num_classes=num_classes,
        image_size=image_size,
        imports=config.imports or (),
        precision=config.precision,
        trust=bool(config.trust),
    )
    if parent is None:
        saved, _, optimizer, _ = _made_optimizer(config, None, model)
        return Live(model, optimizer, saved, "")
    restored, frozen = with_frozen(config, model, lambda: _restored(config, parent, model))
    saved, keep, optimizer, assumed, restoration = restored
    check_finite(model, parent.state.source)
    if keep and restoration.undecayed:
        saved = optimizers.with_config(saved, {UNDECAYED: list(restoration.undecayed)})
    if not keep:
        own = getattr(model, "optimizer", None)
        saved, optimizer, assumed = keep_averages(model, parent.state, saved, optimizer, own, config.ema)
    summary = "; ".join(filter(None, [restoration.summary, frozen, assumed]))
    own = hub.on_its_own(model)
    if own is not model:
        before, optimizer = optimizer, optimizers.make_optimizer(saved, 1e-3)
        optimizer.build(own.trainable_variables)
        slots.carry(before, optimizer)
    return Live(own, optimizer, saved, summary, kept=keep)


def _made_optimizer(config: TrainConfig, parent: Parent | None, model: Any) -> tuple[SavedOptimizer, bool, Any, str]:
    """Returns the saved optimizer, True if its state is restored, the built optimizer, and a note."""
    from kresume.models import optimizers, precision
    from kresume.models.saved_optimizer import build_optimizer

    saved, keep, assumed = choose_optimizer(config, parent, model)
    saved = replace(saved, loss_scale=precision.needs_loss_scale(model))
    if keep and parent is not None:
        return saved, keep, build_optimizer(model, parent.state, saved), assumed
    optimizer = optimizers.make_optimizer(saved, 1e-3)
    optimizer.build(model.trainable_variables)
    return saved, keep, optimizer, assumed


def _restored(config: TrainConfig, parent: Parent, model: Any) -> tuple[SavedOptimizer, bool, Any, str, Any]:
    """Restores a parent into a model; returns what `_made_optimizer` does, and the outcome."""
    from kresume.models import optimizers, restore

    saved, keep, optimizer, assumed = _made_optimizer(config, parent, model)
    restoration = restore.restore(
        model,
        parent.state,
        optimizer=optimizer if keep else None,
        partial=bool(config.partial),
        map_file=config.map,
        map_out=config.map_out,
        same_weights=optimizers.says_same_weights(config.optimizer),
    )
    return saved, keep, optimizer, assumed, restoration


def check_finite(model: Any, source: str) -> None:
    """Raises if a restored weight is no number: every loss would be NaN.

    Raises:
        CheckpointError: the message names the first weight.
    """
    weights = model.trainable_variables
    broken = [weight.path for weight in weights if not is_finite(live_state.host_array(weight.value))]
    if broken:
        raise CheckpointError(
            f"{source}: {len(broken):,} of {len(weights):,} weights hold NaN or infinity (the first is {broken[0]}), so "
            "nothing can be trained from them: give an earlier checkpoint"
        )


def _compiled_rate(live: Live) -> SavedRate | None:
    """Returns the rate that the function of the user's model compiles, for a file that records none."""
    found = (live.saved.config or {}).get("learning_rate")
    if isinstance(found, Mapping):
        return rate_of_schedule(found)
    return SavedRate(float(found), "float") if isinstance(found, (int, float)) else None


def fresh_rate(parent: Parent | None, live: Live) -> SavedRate | None:
    """Returns the rate at which a fresh optimizer starts because the model's function compiles it.

    Args:
        parent: the checkpoint, None for a new model.
        live: the model and its optimizer.

    Returns:
        None if the optimizer is not fresh, the checkpoint has a rate, or the compiled one cannot be read or is 0.
    """
    if live.kept or (parent is not None and parent.state.rate is not None):
        return None
    rate = _compiled_rate(live)
    return rate if rate is not None and rate.value else None


def saved_rate(config: TrainConfig, parent: Parent | None, live: Live, wanted: SavedOptimizer) -> SavedRate | None:
    """Returns the checkpoint's rate, if the optimizer that will train can use it.

    Args:
        config: the options.
        parent: the checkpoint to start from, None for a new model.
        live: its model and optimizer.
        wanted: the optimizer to train with.

    Raises:
        UsageError: the rate is unknown or belongs to an incomparable optimizer, and `--lr` is not given.
    """
    if parent is None:
        return None
    from kresume.models import optimizers

    rate, stored = parent.state.rate or (_compiled_rate(live) if live.kept else None), parent.state.optimizer
    if rate is None and live.kept and config.lr is None:
        raise UsageError(
            f"{config.from_} does not say its learning rate (a schedule is not in such a file): give {option('lr')}, the "
            "rate or peak to use"
        )
    saved = stored.class_name if stored is not None else None
    if rate is None or saved is None or optimizers.comparable_rates(saved, wanted.class_name):
        return rate
    if config.lr is None:
        default = default_rate(str(wanted.class_name))
        raise UsageError(
            f"{option('optimizer', config.optimizer)}: the checkpoint's rate, {rate}, is {saved}'s and does not apply to "
            f"{wanted.class_name}: give {option('lr')} (its default is {default:g})"
        )
    return rate
