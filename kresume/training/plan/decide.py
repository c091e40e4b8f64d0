"""Decides everything before the first step, for `kresume train` and `kresume plan` alike.

    sources = list_named(start, reporter, writes=True)
    loaded = load_checkpoint(start, sources, reporter)
    data = update_data(start, loaded, sources, reporter, writes=True)
    draft = decide(start, loaded, data, reporter)

Nothing is written but decoded pictures in the cache, and with `writes=False` not even those.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from kresume.backend import live_state, programs, selection
from kresume.checkpoints.layouts import names_of
from kresume.evaluation.caches import open_cache
from kresume.images.collect import Sources
from kresume.images.reader import PictureReader
from kresume.images.sources.records import check_features, parse_features
from kresume.options.given import code_of, given
from kresume.options.model_objects import is_object
from kresume.options.resolve import cache_limit, default_image_size, image_size
from kresume.options.settings import DEFAULTS, NEW_CLASSES_BALANCE, settings_of
from kresume.options.table import TrainConfig
from kresume.reporter import Reporter
from kresume.reports.sinks.mlflow import check_installed
from kresume.spelling import option
from kresume.training.plan.amount import count_updates, decide_amount
from kresume.training.plan.averaging import check_average
from kresume.training.plan.before import score_parent
from kresume.training.plan.describe import describe
from kresume.training.plan.draft import Data, Draft, Loaded
from kresume.training.plan.dropping import known_dropped, remembered
from kresume.training.plan.feeding import decide_feeding
from kresume.training.plan.freezing import decide_freezing, head_steps
from kresume.training.plan.fresh_head import is_pretrained, pretrained_live, saved_outputs, without_images
from kresume.training.plan.growth import check_filled, check_head_options, new_classes, plan_growth
from kresume.training.plan.helping import share_out
from kresume.training.plan.images import (
    Gathered,
    check_outputs,
    decide_classes,
    gather,
    list_sources,
)
from kresume.training.plan.judging import check_judging, check_measurable
from kresume.training.plan.known_classes import known_classes
from kresume.training.plan.merge_checks import corrects
from kresume.training.plan.mixture import decide_order
from kresume.training.plan.parent import (
    Parent,
    fresh_rate,
    read_parent,
    restore_parent,
    saved_rate,
    wanted_optimizer,
)
from kresume.training.plan.pixels import decode_spec
from kresume.training.plan.rate import decide_rate, goes_on, look_ahead
from kresume.training.plan.renamed import check_asked_names
from kresume.training.plan.sources import check_sources
from kresume.training.plan.teaching import check_asked, decide_teaching, describe_teaching
from kresume.training.plan.torch_mapping import check_filled_in
from kresume.training.snapshot_policy import Cadence
from kresume.training.start import Start, select_backend
from kresume.values.amount import Amount
from kresume.values.card import Card
from kresume.values.freezing import Freezing

SHIFT_POINTS = 0.05


def list_named(start: Start, reporter: Reporter, *, writes: bool) -> Sources:
    """Lists the images that the options name; finds typos before a framework is loaded.

    Args:
        start: where the run will be, and its options.
        reporter: shown progress.
        writes: False for `plan`: nothing is written to the cache.

    Raises:
        KresumeError: an option has no meaning, or a source of images is missing.
    """
    Cadence.parse(settings_of(start.config).snapshot_every)
    if start.config.mlflow not in {None, "off"}:
        check_installed()
    image_size(start.config)
    check_head_options(start.config)
    check_asked_names(start.config)
    sources = list_sources(start.config, reporter, writes=writes)
    if not start.config.watch:  # which may find such files later
        check_features(parse_features(start.given.feature), sources)
    return sources


def load_checkpoint(start: Start, sources: Sources, reporter: Reporter) -> Loaded:
    """Selects the backend, reads the checkpoint and restores every variable of its model.

    Args:
        start: where the run will be, and its options.
        sources: names the classes where the checkpoint does not.
        reporter: shown progress.

    Raises:
        KresumeError: the checkpoint cannot be restored exactly; the message says what to give.
    """
    config, held = start.config, settings_of(start.config)
    select_backend(config, config.backend, held.batch_size, reporter)
    programs.use(None)
    with reporter.waiting(f"reading {config.from_}"):
        parent = read_parent(config)
    if config.new_head:
        parent = without_images(config, parent)
    if config.from_ is not None and parent is None:
        reporter.say(f"no checkpoint at {config.from_}: starting with initial weights ({option('or-new', True)})")
    check_asked(config, parent)
    sources = sources.knowing(known_classes(config, parent))
    check_sources(config, parent, sources)
    classes, classes_reason = decide_classes(config, parent, sources)
    new = new_classes(config, parent, sources, classes)
    if config.new_head:
        classes, new = (), classes
    check_judging(config, parent, (*classes, *new))
    selection.set_precision(config.precision)
    live_state.seed_everything(held.seed)
    card = parent.card if parent is not None else None
    if _is_mapped(parent):
        check_filled_in(config.model)
    size = image_size(config) or (card.image_size if card else None)
    starts_trained = is_pretrained(config, parent)
    with reporter.waiting("building the model" if parent is None else f"restoring {config.from_}"):
        if starts_trained:
            live = pretrained_live(config, len(classes), size)
        else:
            live = restore_parent(config, parent, num_classes=len(classes) or saved_outputs(parent), image_size=size)
    from kresume.models.losses import check_metrics, choose_loss, unused_metrics
    from kresume.models.outputs import output_count
    from kresume.models.own_code import own_code

    _check_code(config, live, size or default_image_size(), reporter)
    check_metrics(config.metric or ())
    source_name = config.from_ if parent is not None and parent.state.architecture else option("model", config.model)
    extends = card is not None and len(classes) > len(card.classes)
    if not config.new_head:
        check_outputs(classes, classes_reason, output_count(live.model), str(source_name), extends=extends)
    saved = parent.state.compiled if parent is not None else None
    loss = choose_loss(
        live.model,
        saved=saved,
        requested=config.loss,
        soft_labels=bool(config.mixup or config.cutmix),
        code=own_code(config.model, config.imports or ()),
    )
    growth = plan_growth(config, live, loss, classes, new, _by_function(config, parent)) if new else None
    loaded = Loaded(
        parent,
        live,
        (*classes, *new),
        f"{classes_reason}, and {len(new)} new" if new and classes else classes_reason,
        growth.loss if growth else loss,
        unused_metrics(saved, config.metric or ()),
        generation=parent.generation + 1 if parent is not None else 0,
        growth=growth,
        pretrained=starts_trained,
    )
    check_average(config, loaded)
    return loaded


def _check_code(config: TrainConfig, live: Any, size: tuple[int, int], reporter: Reporter) -> None:
    """Raises if Keras would build another model again than the one of the user's function."""
    from kresume.models.own_code import is_function
    from kresume.models.recorded import check_recorded

    if is_function(config.model or "") or is_object(config.model):
        with reporter.waiting("building the model again from its record"):
            check_recorded(live.model, size, code_of(given(config)), str(config.model), trust=bool(config.trust))


def _by_function(config: TrainConfig, parent: Parent | None) -> Callable[[int], Any] | None:
    """Returns the user's function as a builder by number of classes; None without one."""
    from kresume.models.build import build_model
    from kresume.models.own_code import is_function

    if parent is None or config.model is None or not is_function(config.model):
        return None
    card = parent.card
    size = image_size(config) or (card.image_size if card else None)
    return lambda count: build_model(
        config.model, state=parent.state, num_classes=count, image_size=size, imports=config.imports or ()
    )


def _is_mapped(parent: Parent | None) -> bool:
    """Returns True for a PyTorch state dict, whose arrays were mapped to the model's variables."""
    return parent is not None and names_of(parent.state).proved_on_images


def update_data(start: Start, loaded: Loaded, sources: Sources, reporter: Reporter, *, writes: bool) -> Data:
    """Finds how pictures are fed to the model, and merges old and new images into one manifest.

    Args:
        start: where the run will be, and its options.
        loaded: the model that training starts from.
        sources: the listed files.
        reporter: shown progress.
        writes: False for `plan`: nothing is written to the cache.

    Raises:
        KresumeError: the images cannot be used; the message says which and why.
    """
    config, parent, model = start.config, loaded.parent, loaded.live.model
    sources = sources.knowing(known_classes(config, parent))
    card = parent.card if parent is not None else None
    old = (sources.data or sources.add) if parent is not None and not config.new_head else None
    spec, layout = decode_spec(config, card, model, image_size(config))
    feeding = decide_feeding(
        config,
        card,
        model,
        loaded.answers,
        old,
        loaded.known,
        spec,
        layout,
        reporter,
        mapped=_is_mapped(parent),
        steps=parent.state.step if parent is not None else None,
    )
    spec = feeding.spec
    cache = open_cache(spec, settings_of(config).cache, cache_limit(config), writes=writes)
    if writes:
        share_out(
            sources, spec, cache, reporter, known_dropped(config, parent, remembered(config, parent, sources)).hashes
        )
    gathered = gather(config, parent, sources, loaded.classes, spec, cache, loaded.generation, reporter, writes=writes)
    check_measurable(config, parent, gathered.manifest, loaded.generation)
    if loaded.growth is not None:
        named = Counter(found.label for listing in sources.named(loaded.classes) for found in listing.files)
        check_filled(loaded.growth, gathered.manifest, named, gathered.merge.facts.conflicts)
    card = Card(
        loaded.classes,
        (spec.height, spec.width),
        feeding.pixels,
        spec.resize,
        spec.interpolation,
        input=feeding.layout,
    )
    return Data(sources, gathered, feeding, PictureReader(gathered.manifest, spec, cache), card)


def decide(start: Start, loaded: Loaded, data: Data, reporter: Reporter) -> Draft:
    """Decides how much is trained and at which rate.

    Args:
        start: where the run will be, and its options.
        loaded: the model that training starts from.
        data: the images.
        reporter: shown progress of scoring.

    Raises:
        KresumeError: options contradict each other, or no rate is known.
    """
    config, held = start.config, settings_of(start.config)
    parent, live, gathered, generation = loaded.parent, loaded.live, data.gathered, loaded.generation
    balance = config.balance or (NEW_CLASSES_BALANCE if loaded.growth and not loaded.growth.replaces else held.balance)
    order = decide_order(start, held, gathered.manifest, balance, generation)
    amount = _amount(config, loaded, gathered, order.n)
    freezing = decide_freezing(
        config, live.model, amount.epochs, fresh_head=loaded.fresh_head, before=_freezing_of(parent)
    )
    teaching = decide_teaching(config, loaded, gathered.manifest)
    wanted = wanted_optimizer(live.saved, config, live.model)
    saved = saved_rate(config, parent, live, wanted)
    rate = decide_rate(
        saved=saved,
        optimizer=wanted.class_name or "",
        steps=amount.steps,
        lr=config.lr,
        lr_scale=config.lr_scale,
        schedule=config.lr_schedule,
        warmup_steps=config.warmup_steps,
        adds_images=parent is not None
        and (
            _count_new(gathered, generation) + gathered.merge.facts.unrecorded > 0
            or corrects(config, gathered.merge)
            # Otherwise a command that runs each week would fail.
            or bool(config.add is not None and (gathered.removed or config.rename))
            or loaded.growth is not None
            or bool(config.watch and config.add)  # its images may come later
        ),
        lacks_old=(teaching is not None and teaching.new_only) or not order.shares().origins.get("old"),
        interrupted=parent is not None and parent.interrupted,
        head_steps=head_steps(freezing, amount) if loaded.fresh_head else None,
        goes_on=lambda: goes_on(saved, live.iterations, amount.steps),
        compiled=fresh_rate(parent, live),
    )
    rate, ahead = look_ahead(rate, live.iterations)
    carried = live.kept and wanted.batches == live.saved.batches
    updates = count_updates(wanted.batches, live.iterations, amount.steps, carried=carried)
    ahead = "; ".join(filter(None, [ahead, updates]))
    # It takes long: options that contradict each other are told before.
    before = score_parent(loaded, data, held, reporter)
    plan = describe(start, loaded, data, wanted, rate, amount, before.scores, order.shares(), ahead, freezing)
    plan = replace(plan, balance=balance, distilled=describe_teaching(teaching, loaded))
    return Draft(plan, loaded, data, wanted, freezing, teaching, held.seed, before)


def _count_new(gathered: Gathered, generation: int) -> int:
    """Counts the training images that the parent did not train on: new ones, and those that are back."""
    manifest = gathered.manifest
    new = int((manifest.origins[manifest.train_rows()] == generation).sum())
    return new + gathered.merge.facts.back


def _freezing_of(parent: Parent | None) -> Freezing | None:
    return parent.run.record.freezing if parent is not None and parent.run is not None else None


def _amount(config: TrainConfig, loaded: Loaded, gathered: Gathered, epoch_images: int) -> Amount:
    from kresume.models.losses import compiled_by_function

    left, parent = 0, loaded.parent
    if parent is not None and parent.run is not None and parent.interrupted and not config.new_head:
        done = parent.state.records.get("epoch", 0)
        left = max(0, parent.run.record.amount.epochs - int(done))
    return decide_amount(
        images=len(gathered.manifest.train_rows()),
        new_images=_count_new(gathered, loaded.generation),
        back=gathered.merge.facts.back,
        batch_size=settings_of(config).batch_size,
        epochs=config.epochs,
        steps=config.steps,
        new_model=parent is None or bool(config.new_head),
        new_head=loaded.fresh_head,
        epochs_left=left,
        epoch_images=epoch_images,
        steps_per_execution=config.steps_per_execution or _per_execution(compiled_by_function(loaded.live.model)),
    )


def _per_execution(compiled: Mapping[str, Any] | None) -> int:
    """Returns the `steps_per_execution` with which the user's function compiled the model."""
    return int((compiled or {}).get("steps_per_execution") or DEFAULTS.steps_per_execution)
