"""Loads a run or checkpoint as a live model with its model card.

    subject = Subject("runs/2-signs")                  # what the user named, as plain values
    loaded = load(subject)
    loaded.model, loaded.card.classes, loaded.loss.head

`eval` and `export` start here. The model has the weights for prediction: the averages, if the training kept any. All
fields of a `Subject` can be written as JSON, so another process can load the same model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kresume import runs
from kresume.backend import selection
from kresume.checkpoints.layers import output_width
from kresume.checkpoints.read import read_checkpoint
from kresume.checkpoints.run import find_run
from kresume.class_names import as_known, join_classes, names_of
from kresume.errors import CheckpointError, KresumeError, ModelError, RestoreError, UsageError
from kresume.images.conventions import SHOWN_NAMES
from kresume.models.inputs import check_size, layout_of
from kresume.options.given import code_of
from kresume.options.resolve import as_image_size, as_spec, default_image_size, several
from kresume.options.settings import DEFAULTS
from kresume.spelling import option
from kresume.storage.one_file import require_local
from kresume.tasks.table import class_count
from kresume.values.card import Card
from kresume.values.decode_spec import DecodeSpec
from kresume.values.state import TrainState

if TYPE_CHECKING:
    from kresume.models.losses import LossChoice


RESIZING = ("resize", "interpolation")
"""Options that say how pictures get the size of a model's input."""
GIVEN = ("classes", "pixels", "axes", *RESIZING)
"""Facts that a checkpoint may not record, and that may be given for two models."""


@dataclass(frozen=True)
class Subject:
    """A checkpoint that the user named, with facts that it does not record itself.

    Attributes:
        checkpoint: `RUN`, `RUN@last`, `RUN@best`, `RUN@STEP`, a folder of runs, or a checkpoint of any known format.
        model: the architecture, for a checkpoint without one.
        classes: names of the outputs in order, for a checkpoint that does not record them.
        pixels: the pixel convention, for a checkpoint that does not record it.
        image_size: `(height, width)` in pixels, for a model that accepts any.
        axes: order of the axes of the model's input, if its shape does not determine it.
        yielding: which of `GIVEN` give way to what the checkpoint records, or its first layers show: they were given for two
            models.
        imports: Python files that register custom objects.
        map_file: YAML that maps the arrays of a PyTorch state dict to variables.
        trust: run the code of the checkpoint's Lambda layers.
        resize: how pictures get the model's size, for a checkpoint that does not record it.
        interpolation: how resizing samples pixels, for a checkpoint that does not record it.
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
    yielding: tuple[str, ...] = ()
    resize: str | None = None
    interpolation: str | None = None

    def __post_init__(self) -> None:
        for flag, value in (("model", self.model), ("import", self.imports), ("pixels", self.pixels)):
            require_local(flag, value)
        if self.pixels == "auto":  # the word of `train` for a convention that is found
            object.__setattr__(self, "pixels", None)

    @classmethod
    def of(
        cls,
        checkpoint: str,
        *,
        model: Any = None,
        classes: Any = None,
        image_size: int | str | Sequence[int] | None = None,
        imports: str | Path | Sequence[str | Path] = (),
        **others: Any,
    ) -> Subject:
        """Creates a subject from arguments of Python, which have several forms.

        Raises:
            UsageError: `image_size` is neither a number nor a pair, or Keras cannot record the model.
        """
        size = as_image_size(image_size)
        spec = None if model is None else as_spec(model)
        return cls(
            checkpoint,
            model=spec,
            classes=names_of(classes),
            image_size=size,
            imports=several("import", imports),
            **others,
        )

    @property
    def resizing(self) -> dict[str, str | None]:
        """Returns the options of `RESIZING`, None for one that was not given."""
        return {name: getattr(self, name) for name in RESIZING}

    def choose(self, name: str, found: Any) -> Any:
        """Returns a given fact, or the one that the checkpoint records or shows: whichever wins."""
        given = getattr(self, name)
        return (found or given) if name in self.yielding else (given or found)


@dataclass(frozen=True)
class Loaded:
    """A live model with its weights and model card.

    Attributes:
        subject: the subject that was loaded.
        run: the run that the checkpoint belongs to, None for a bare checkpoint.
        state: the checkpoint's contents.
        model: built, with the weights for prediction.
        card: the model card, complete: the expected input and the meaning of the outputs.
        loss: its `head` tells how the model answers.
        averages: True if the weights are averages (EMA).
        own_optimizer: the optimizer that the user's model function compiled, not restored; None if it compiled none.
        named: True if class names and pixel convention are known; else classes are numbered and pixels used unchanged.
        statistics: which statistics of batch normalisation an unfinished run predicts with, in words; may be empty.
        shows: the pixel convention that the checkpoint records, or that its first layers show; None if neither.
        matched: notes on how the checkpoint's arrays were matched.
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
    statistics: str = ""
    shows: str | None = None
    matched: tuple[str, ...] = ()

    @property
    def spec(self) -> DecodeSpec:
        """Returns how pictures are decoded for the model."""
        return self.card.spec

    @property
    def generation(self) -> int:
        """Returns the run's generation, 0 for a bare checkpoint."""
        return self.run.generation if self.run else 0

    @property
    def notes(self) -> tuple[str, ...]:
        """Returns notes on the weights and on how the outputs are interpreted."""
        left_out = str(self.state.records.get("unreadable_runs") or "")
        of_weights = (*self.state.records.get("ignored", ()), *self.matched)
        notes = (self.unfinished, self.rejected, left_out, *of_weights, self.loss.note, self.contradicted)
        return tuple(note for note in notes if note)

    @property
    def contradicted(self) -> str:
        """Returns that the given pixels are not those that the model's first layers show; empty if they are."""
        if self.shows is None or self.card.pixels == self.shows:
            return ""
        return f"its first layers show that it expects {self.shows}, but {option('pixels', self.card.pixels)} was given"

    @property
    def assumed(self) -> str:
        """Returns that nothing says how pictures were resized; empty if the checkpoint or the user does."""
        return "" if self.state.card is not None else describe_assumed(self.subject, self.spec)

    @property
    def rejected(self) -> str:
        """Returns which gates a rejected run failed; empty if it was not rejected."""
        if self.run is None or not self.run.record.failed:
            return ""
        return f"{self.run.path} was rejected: {'; '.join(self.run.record.failed)}"

    @property
    def unfinished(self) -> str:
        """Returns which weights an unfinished run gives; empty if it is finished."""
        if self.run is None or self.run.finished:
            return ""
        step = self.state.own_step
        weights = "the parent's or initial weights" if step == 0 else f"the weights of step {step:,}"
        more = f"; {self.statistics}" if self.statistics else ""
        return f"{self.run.path} is not finished: its newest snapshot is used ({weights}){more}"


def describe_assumed(subject: Subject, spec: DecodeSpec, prefix: str = "") -> str:
    """Describes how pictures are resized where nothing says it; empty if the user says all of it.

    Args:
        subject: what the user says.
        spec: how pictures are decoded.
        prefix: before the options' names.
    """
    ways = {name: getattr(spec, name) for name in RESIZING if getattr(subject, name) is None}
    if not ways:
        return ""
    keras = f"{option(f'{prefix}interpolation', 'bilinear')} is the default of image_dataset_from_directory"
    return (
        f"it does not record how pictures were resized: {' and '.join(ways.values())} {'is' if len(ways) == 1 else 'are'} "
        f"assumed ({keras if 'interpolation' in ways else option(f'{prefix}resize')})"
    )


def select_backend(path: str, backend: str | None, device: str | None) -> str:
    """Selects the backend: the requested one, else the run's, else the default."""
    run = find_run(path)
    return selection.select(backend or (run.record.backend if run else None), device)


def load(subject: Subject, *, fallback_classes: Sequence[str] | None = None, anonymous: bool = False) -> Loaded:
    """Reads a checkpoint and builds its model. The backend must already be selected.

    Args:
        subject: the checkpoint.
        fallback_classes: class names in the order to assume if neither the checkpoint nor the subject has any.
        anonymous: continue if class names or pixels are unknown: enough to convert a checkpoint, not to predict.

    Raises:
        KresumeError: the checkpoint cannot be read or built, or a fact is missing; the message names the option to
            give.
    """
    from kresume.models import pixels as conventions
    from kresume.models.losses import choose_loss
    from kresume.models.outputs import output_count
    from kresume.models.own_code import own_code

    path = subject.checkpoint
    run = find_run(path)
    state = read_checkpoint(path)
    if state.card is not None and subject.yielding:
        facts: dict[str, Any] = {name: None if name in subject.yielding else getattr(subject, name) for name in GIVEN}
        subject = replace(subject, **facts)
    ours = (*subject.imports, *code_of({"model": subject.model}))
    runs_own = code_of(run.record.options) if run is not None else ()
    subject = replace(subject, imports=tuple(dict.fromkeys([*ours, *runs_own])))
    card = state.card
    recorded = card.classes if card else tuple(state.records.get("classes") or ())
    given = as_known(subject.classes, recorded) if subject.classes else recorded
    names = given or tuple(fallback_classes or ())
    model, own_optimizer, averages, matched = _filled(subject, state, card, len(given), len(names))
    count = output_count(model)
    told_apart = class_count(count)
    named = bool(names) and bool(subject.pixels or card or conventions.read_convention(model))
    if anonymous and not names:
        names = tuple(str(index) for index in range(told_apart))
    if len(names) != told_apart:
        said = f"{len(names)} class folders were given" if fallback_classes else f"{len(names)} names are known"
        raise UsageError(
            f"{path} has {count} outputs and does not name them ({said}): give the names of the outputs in their order "
            f"with {option('classes', 'a,b,c')}"
        )
    if card is not None:
        _check_recorded(subject, card, names)
    shows = card.pixels if card else conventions.read_convention(model)
    pixels = subject.choose("pixels", shows)
    pixels = pixels or ("0-255" if anonymous else None)
    known = subject.image_size or (card.image_size if card else None)
    layout, fixed = layout_of(model, known, subject.axes, card.input if card else None)
    if pixels is None:
        raise UsageError(
            f"{path} does not record which pixel values it expects{conventions.say_adapted(model)}: give {option('pixels')}, "
            f"one of {SHOWN_NAMES}"
        )
    if not subject.yielding:  # else it was given for two models
        check_size(subject.image_size, fixed)
    size = fixed or known
    size = size or (default_image_size() if anonymous else None)
    if size is None:
        raise UsageError(f"{path} accepts images of any size: give {option('image-size')}")
    complete = Card(
        tuple(names),
        (int(size[0]), int(size[1])),
        pixels,
        card.resize if card else subject.resize or DEFAULTS.resize,
        card.interpolation if card else subject.interpolation or DEFAULTS.interpolation,
        card.lineage if card else {},
        layout,
    )
    loss = choose_loss(model, saved=state.compiled, code=own_code(subject.model, subject.imports), trains=False)
    return Loaded(
        subject, run, state, model, complete, loss, averages, own_optimizer, named, shows=shows, matched=matched
    )


def _check_recorded(subject: Subject, card: Card, names: Sequence[str]) -> None:
    """Raises UsageError if a fact was given that contradicts what the checkpoint records."""
    path = subject.checkpoint
    if tuple(names) != card.classes and sorted(names) == sorted(card.classes):
        raise UsageError(
            f"{option('classes', join_classes(names))}: {path} records its outputs as {join_classes(card.classes)}; "
            f"another order would make right answers wrong. Leave {option('classes')} out"
        )
    if subject.axes not in {None, card.input.axes}:
        raise UsageError(f"{path} records the order of its axes, {card.input.axes}: leave {option('axes')} out")
    if subject.pixels not in {None, card.pixels}:
        raise UsageError(f"{path} records that it expects {card.pixels}: leave {option('pixels', subject.pixels)} out")
    for name in RESIZING:
        given, recorded = getattr(subject, name), getattr(card, name)
        if given not in {None, recorded}:
            raise UsageError(
                f"{path} records {option(name, recorded)}, with which it was trained: leave {option(name, given)} out"
            )


def _filled(
    subject: Subject, state: TrainState, card: Card | None, given: int, listed: int
) -> tuple[Any, Any, bool, tuple[str, ...]]:
    """Builds the model and restores its weights.

    The number of classes may be unknown. Then it is taken from the checkpoint's arrays, else from the class folders,
    else from the default of the user's function. The first count that the weights fit is used.

    Args:
        subject: the checkpoint.
        state: its contents.
        card: the model card that it records.
        given: number of certain class names, 0 for none.
        listed: number of class folders, 0 for none.

    Returns:
        `(model, optimizer compiled by the user's function, True if the weights are averages, notes on the matching)`.
    """
    from kresume.models import build, restore
    from kresume.models.hub import on_its_own
    from kresume.models.statistics import use_stored

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
            own_optimizer = getattr(model, "optimizer", None)  # the user's function may have compiled the model
            averages, matched = _restore(
                model, state, own_optimizer, partial(restore.restore, map_file=subject.map_file)
            )
            use_stored(model, state)
            model = on_its_own(model)
        except (RestoreError, ModelError) as error:
            failed = failed or error
            if subject.model is None:
                break  # the checkpoint's own architecture does not depend on the count
        else:
            return model, own_optimizer, averages, matched
    raise failed or CheckpointError(f"{subject.checkpoint} cannot be loaded")


def _restore(model: Any, state: TrainState, own: Any, restore: Any) -> tuple[bool, tuple[str, ...]]:
    """Restores the model's weights, or their averages, and drops its optimizer.

    Returns:
        `(True if the weights are averages, notes on how arrays were matched)`.
    """
    from kresume.models import saved_optimizer, structure
    from kresume.models.averages import use_averages
    from kresume.models.restore import restore_averages

    model.optimizer = None
    saved = saved_optimizer.named_or_compiled(state, own)
    if saved is None or not (saved.config or {}).get("use_ema"):
        return False, restore(model, state, optimizer=None).notes
    # Built on all weights that can train: a weight that is frozen now may have been trained before, and prediction
    # uses its average.
    optimizer = saved_optimizer.build_optimizer(model, state, saved, weights=structure.can_train(model))
    notes = restore(model, state, optimizer=None).notes
    restore_averages(model, state, optimizer)
    use_averages(optimizer)
    return True, notes
