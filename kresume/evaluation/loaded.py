"""A run or a checkpoint as a live model that knows what it eats and what its outputs mean.

    subject = Subject("runs/2-signs")                  # what a user names, as plain values
    loaded = load(subject)
    loaded.model, loaded.card.classes, loaded.loss.outputs

`eval` and `export` begin here. The model's weights are those that predictions are made with: the averages, where the training
kept any. Everything in a `Subject` can be written as JSON, so that another process can load the very same thing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from kresume import devices, runs
from kresume.checkpoints.layers import output_width
from kresume.checkpoints.read import read_checkpoint
from kresume.checkpoints.run import find_run
from kresume.checkpoints.state import Card, SavedOptimizer, TrainState
from kresume.config import code_of
from kresume.errors import CheckpointError, KresumeError, ModelError, RestoreError, UsageError
from kresume.images.conventions import SAID
from kresume.images.decode import DecodeSpec
from kresume.models.inputs import layout_of

if TYPE_CHECKING:
    from kresume.models.losses import LossChoice


@dataclass(frozen=True)
class Subject:
    """What a user names, with what the file does not say by itself.

    Attributes:
        checkpoint: `RUN`, `RUN@last`, `RUN@best`, `RUN@STEP`, a folder of runs, or a checkpoint of any known format.
        model: the architecture, for a checkpoint without one.
        classes: names of the outputs in their order, for a checkpoint that does not say them.
        pixels: what the model eats, for a checkpoint that does not say it.
        image_size: `(height, width)` in pixels, for a model that takes any.
        axes: order of the axes of the model's input, where its shape does not say it.
        imports: Python files that register custom objects.
        map_file: YAML that says which array of a PyTorch state dict fills which variable.
        trust: run the code of the checkpoint's Lambda layers.
    """

    checkpoint: str
    model: str | None = None
    classes: tuple[str, ...] | None = None
    pixels: str | None = None
    image_size: tuple[int, int] | None = None
    imports: tuple[str, ...] = ()
    map_file: str | None = None
    trust: bool = False
    axes: str | None = None


@dataclass(frozen=True)
class Loaded:
    """A live model.

    Attributes:
        subject: what was asked for.
        run: the run it is, None for a bare checkpoint.
        state: what was read.
        model: built, with the weights that predictions are made with.
        card: what it eats and what its outputs mean, complete.
        loss: what its outputs are (probabilities or logits).
        averages: whether the weights are averages (EMA).
        own_optimizer: the one that the user's model function compiled, unrestored; None if it compiled none.
        named: whether the card is known; else classes are numbered and pixels taken as they are.
    """

    subject: Subject
    run: runs.Run | None
    state: TrainState
    model: Any
    card: Card
    loss: LossChoice
    averages: bool
    own_optimizer: Any = None
    named: bool = True

    @property
    def spec(self) -> DecodeSpec:
        """How pictures are decoded for it."""
        height, width = self.card.image_size
        return DecodeSpec(height, width, self.card.resize, self.card.interpolation)

    @property
    def generation(self) -> int:
        """The run's generation, 0 for a bare checkpoint."""
        return self.run.generation if self.run else 0

    @property
    def notes(self) -> tuple[str, ...]:
        """Lists the remarks on the weights and on how the outputs are read."""
        return tuple(note for note in (self.standing, self.loss.note) if note)

    @property
    def standing(self) -> str:
        """What to say where a run is not finished: whose weights these are. Empty otherwise."""
        if self.run is None or self.run.finished:
            return ""
        step = int(self.state.step or 0) - int(self.run.record["base_step"])
        whose = "its parent's weights, or the initial ones" if step == 0 else f"the weights of its step {step:,}"
        return f"{self.run.path} is not finished ({self.run.status}): its newest snapshot is used, {whose}"


def select_backend(path: str, backend: str | None, device: str | None) -> str:
    """Fixes the backend: the one asked for, else the one that the run trained on, else the usual default."""
    run = find_run(path)
    return devices.select(backend or (run.record["backend"] if run else None), device)


def load(subject: Subject, *, fallback_classes: Sequence[str] | None = None, anonymous: bool = False) -> Loaded:
    """Reads a checkpoint and builds its model. The backend was selected before.

    Args:
        subject: what to load.
        fallback_classes: names to use where neither the checkpoint nor the subject has any.
        anonymous: go on where nobody says classes or pixels: enough to convert a checkpoint, not to predict.

    Raises:
        KresumeError: it cannot be read or built, or something is not said; the message says what to give.
    """
    from kresume.models import build
    from kresume.models import pixels as conventions
    from kresume.models.losses import choose_loss
    from kresume.models.outputs import output_count
    from kresume.models.own_code import own_code

    path = subject.checkpoint
    run = find_run(path)
    state = read_checkpoint(path)
    ours = (*subject.imports, *code_of({"model": subject.model}))
    runs_own = code_of(run.record["options"]) if run is not None else ()
    subject = replace(subject, imports=tuple(dict.fromkeys([*ours, *runs_own])))
    card = state.card
    given = subject.classes or (card.classes if card else None) or ()
    names = given or tuple(sorted(fallback_classes or ()))
    model, own_optimizer, averages = _filled(subject, state, card, len(given), len(names))
    count = output_count(model)
    named = bool(names) and bool(subject.pixels or card or conventions.read_convention(model))
    if anonymous and not names:
        names = tuple(str(index) for index in range(max(count, 2)))
    if len(names) != (2 if count == 1 else count):
        said = f"{len(names)} class folders were given" if fallback_classes else f"{len(names)} names are known"
        raise UsageError(
            f"{path} has {count} outputs and does not name them ({said}): give the names of the outputs in their order "
            "with --classes a,b,c"
        )
    if card is not None and subject.axes not in {None, card.input.axes}:
        raise UsageError(f"{path} says itself in which order its axes are, {card.input.axes}: leave --axes out")
    if card is not None and subject.pixels not in {None, card.pixels}:
        raise UsageError(f"{path} says itself that it eats {card.pixels}: leave --pixels {subject.pixels} out")
    eats = subject.pixels or (card.pixels if card else conventions.read_convention(model))
    eats = eats or ("0-255" if anonymous else None)
    known = subject.image_size or (card.image_size if card else None)
    layout, fixed = layout_of(model, known, subject.axes, card.input if card else None)
    if eats is None:
        raise UsageError(f"{path} does not say what values it eats: give --pixels {SAID}")
    size = fixed or known
    size = size or (build.DEFAULT_SIZE if anonymous else None)
    if size is None:
        raise UsageError(f"{path} takes images of any size: give --image-size N or HxW")
    complete = Card(
        tuple(names),
        (int(size[0]), int(size[1])),
        eats,
        card.resize if card else "stretch",
        card.interpolation if card else "area",
        card.lineage if card else {},
        layout,
    )
    loss = choose_loss(model, saved=state.compiled, code=own_code(subject.model, subject.imports), trains=False)
    return Loaded(subject, run, state, model, complete, loss, averages, own_optimizer, named)


def _filled(subject: Subject, state: TrainState, card: Card | None, given: int, listed: int) -> tuple[Any, Any, bool]:
    """Builds the model and restores its weights.

    Nobody may have said how many classes there are: then the checkpoint's arrays tell it, else the folders, else the default
    of the user's function. The first count that the weights fit is right.

    Args:
        subject: what to load.
        state: what was read.
        card: what it says of itself.
        given: how many names of classes are certain, 0 for none.
        listed: how many class folders there are, 0 for none.

    Returns:
        `(model, the optimizer that the user's function compiled, whether the weights are averages)`.
    """
    from kresume.models import build, restore

    counts: list[int | None] = [given] if given else [*dict.fromkeys([output_width(state), listed or None, None])]
    failed: KresumeError | None = None
    for count in counts:
        try:
            model = build.build_model(
                subject.model,
                state=state,
                num_classes=count,
                image_size=subject.image_size or (card.image_size if card else None),
                imports=subject.imports,
                trust=subject.trust,
            )
            own_optimizer = getattr(model, "optimizer", None)  # a function of the user's may have compiled the model
            averages = _restore(model, state, own_optimizer, partial(restore.restore, map_file=subject.map_file))
        except (RestoreError, ModelError) as error:
            failed = failed or error
            if subject.model is None:
                break  # the checkpoint's own architecture does not depend on the count
        else:
            return model, own_optimizer, averages
    raise failed or CheckpointError(f"{subject.checkpoint} cannot be loaded")


def _restore(model: Any, state: TrainState, own: Any, restore: Any) -> bool:
    """Gives the model its weights, or the averages where the training kept them; its optimizer is dropped.

    Returns:
        Whether the weights are averages.
    """
    from kresume.models import structure
    from kresume.models.averages import use_averages
    from kresume.models.restore import restore_averages

    model.optimizer = None
    saved = named_optimizer(state, own)
    if saved is None or not (saved.config or {}).get("use_ema"):
        restore(model, state, optimizer=None)
        return False
    # Built on whatever can train: what is frozen now may have trained then, and its average is what predicts.
    optimizer = build_optimizer(model, state, saved, structure.can_train(model))
    restore(model, state, optimizer=None)
    restore_averages(model, state, optimizer)
    use_averages(optimizer)
    return True


def named_optimizer(state: TrainState, own: Any = None, asked: str | None = None) -> SavedOptimizer | None:
    """The checkpoint's optimizer with its class: as the file says it, as asked for, or as the user's function compiled it.

    Args:
        state: what was read.
        own: the optimizer that the model's function compiled, or None.
        asked: the class that the user named.

    Returns:
        None where the file holds no optimizer state, or nobody knows its class.

    Raises:
        UsageError: `asked` is another class than the file's.
    """
    from kresume.models.optimizers import describe

    stored = state.optimizer
    if stored is None:
        return None
    if stored.class_name is None:
        compiled = describe(own) if own is not None else None
        return replace(stored, class_name=compiled.class_name, config=compiled.config) if compiled is not None else None
    if asked and asked != stored.class_name:
        raise UsageError(
            f"--optimizer {asked}: the optimizer in {state.source} is {stored.class_name}; leave the option out, or give "
            f"{asked.lower()}:reset to begin with a fresh one"
        )
    return stored


def build_optimizer(model: Any, state: TrainState, saved: SavedOptimizer, weights: Sequence[Any] | None = None) -> Any:
    """The checkpoint's optimizer, built on a model, with as many variables as the file has for it.

    Args:
        model: built.
        state: what was read.
        saved: the optimizer's class and settings.
        weights: what it trains; None for the model's trainable variables.

    Raises:
        CheckpointError: Keras does not know its class or the class of its schedule.
    """
    import keras

    from kresume.models.optimizers import make_optimizer, rate_as_saved

    schedule = state.rate.schedule if state.rate is not None else None
    if state.rate is not None and schedule and str(schedule.get("registered_name")).startswith("kresume>"):
        # A schedule has no variable, a float rate has one. Ours are known to training alone, and only the place counts.
        rate: Any = keras.optimizers.schedules.ExponentialDecay(state.rate.value, 1, 1.0)
    else:
        rate = rate_as_saved(state, saved)
    optimizer = make_optimizer(saved, rate)
    optimizer.build(list(weights) if weights is not None else model.trainable_variables)
    return optimizer
