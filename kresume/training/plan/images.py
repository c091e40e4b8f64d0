"""Collects the images of a run, remembered, given or added; reads each once.

sources = list_sources(config, reporter)               # names and sizes only
classes, reason = decide_classes(config, parent, sources)
gathered = gather(config, parent, sources, classes, spec, cache, generation, reporter)
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from kresume.checkpoints.layers import output_width
from kresume.checkpoints.run import named
from kresume.class_names import as_known, join_classes, read_classes, show_classes
from kresume.errors import ImagesError, NothingNew, UsageError
from kresume.images import collect, conflicts, corrections, keras_split, merging
from kresume.images.cache import Cache, listings_of
from kresume.images.collect import Sources, check_one_kind
from kresume.images.manifest import Manifest
from kresume.images.merging import Merge
from kresume.images.remembered import without_missing
from kresume.images.sources import Quarantined
from kresume.images.sources.folder_order import assumed_order, check_one_order
from kresume.images.sources.found import ONE_LABEL, STREAM_CODINGS
from kresume.images.sources.moves import Moves
from kresume.images.sources.records import parse_features
from kresume.options.settings import DEFAULTS, settings_of
from kresume.options.table import TrainConfig
from kresume.reporter import Reporter
from kresume.runs import dropped_by
from kresume.spelling import counted, option, respelled
from kresume.tasks.table import class_count
from kresume.training.plan.growth import ways_on
from kresume.training.plan.known_classes import known_classes
from kresume.training.plan.parent import Parent
from kresume.values.decode_spec import DecodeSpec


@dataclass(frozen=True)
class Gathered:
    """Images of a run.

    Attributes:
        manifest: the table of images, one row each.
        merge: the facts of the merge: duplicates, conflicts, added images.
        quarantine: files that could not be used, each with its reason.
        notes: notes for the user from listing and corrections.
        dropped: SHA-256s of images that this run or an earlier one dropped; they never join again.
    """

    manifest: Manifest
    merge: Merge
    quarantine: tuple[Quarantined, ...]
    notes: tuple[str, ...]
    dropped: tuple[str, ...]


def list_sources(config: TrainConfig, reporter: Reporter, *, writes: bool = True) -> Sources:
    """Lists the image sources by role; reads names and sizes, no contents.

    Args:
        config: the options of the run.
        reporter: shown progress.
        writes: False writes nothing to the cache, not even the listing of a file that had to be read whole to list it.

    Raises:
        ImagesError: a path does not exist, is empty, or holds no class folders.
        UsageError: there are no images for a new model.
    """
    if config.from_ is None and not config.data:
        raise no_images()
    return _listed(config, reporter, writes=writes)


def no_images() -> UsageError:
    """Returns the error for a new model without images."""
    return UsageError(f"no images to train on: give {option('data', 'FOLDER')} (with one folder per class)")


def _listed(config: TrainConfig, reporter: Reporter, *, writes: bool = True) -> Sources:
    def given(paths: Sequence[str] | None) -> Sequence[str] | None:
        return collect.without_empty(paths) if config.watch else paths

    return collect.list_sources(
        reporter,
        data=given(config.data),
        add=given(config.add),
        val=given(config.val),
        features=parse_features(config.feature),
        memory=listings_of(config.cache),
        writes=writes,
        moves=Moves.parse(config.remap),
        known=known_classes(config, None),
    )


def decide_classes(config: TrainConfig, parent: Parent | None, sources: Sources) -> tuple[tuple[str, ...], str]:
    """Decides the class names in the order of the outputs.

    Returns:
        `(classes, reason)`; the reason says where the order comes from.

    Raises:
        UsageError: `--classes` contradicts the order that the checkpoint has pinned.
    """
    if config.new_head:
        names = sources.data.classes if sources.data is not None else ()
        return (read_classes(config.classes), "--classes") if config.classes else (names, "the class folders, sorted")
    pinned = parent.card.classes if parent is not None and parent.card is not None else None
    if config.classes is not None:
        asked = as_known(read_classes(config.classes), pinned or ())
        if pinned is not None and config.grow and asked[: len(pinned)] == pinned:
            return pinned, "the parent's"
        if pinned is not None and config.partial and len(asked) > len(pinned) and asked[: len(pinned)] == pinned:
            return asked, f"--classes, {len(asked) - len(pinned)} of them new"
        if pinned is not None and asked != pinned:
            raise UsageError(
                f"{option('classes', join_classes(asked))}: the checkpoint's outputs are {join_classes(pinned)} in this order; "
                f"other names would make right answers wrong. Leave {option('classes')} out"
            )
        width = output_width(parent.state) if parent is not None and pinned is None and config.grow else None
        return asked if width is None else asked[: class_count(width)], "--classes"  # new_classes takes the others
    if pinned is not None:
        return pinned, "the parent's"
    named = parent.state.records.get("classes") if parent is not None else None
    if named:
        return tuple(named), "the checkpoint's"
    listing = sources.data or sources.add
    check_one_kind(listing)
    reason = "the class folders, sorted"
    if parent is None or listing is None:
        return listing.classes if listing is not None else (), reason
    check_one_order(listing, parent.state.source)
    names = assumed_order(listing)
    reason += "" if names == listing.classes else " by their names as Keras reads them"
    return names, f"assumed: {reason}; {option('classes', 'a,b,c')} sets another order"


NUMBER = re.compile(r"[-+]?\d+(\.\d*)?(e[-+]?\d+)?", re.IGNORECASE)
"""Matches a label that is a number, such as an age, which a regression predicts."""


def check_outputs(classes: Sequence[str], reason: str, outputs: int, source: str, *, extends: bool) -> None:
    """Checks that the model has one output per class; one output serves two classes.

    Args:
        classes: the class names in the order of the outputs.
        reason: the origin of that order, for the message.
        outputs: the number of the model's outputs.
        source: the checkpoint or model, for the message.
        extends: True if `--classes` adds classes to those of the checkpoint.

    Raises:
        UsageError: the counts differ; the message says how to name the outputs.
    """
    wanted = class_count(outputs)
    has = "1 output, which separates two classes" if outputs == 1 else f"{outputs} outputs"
    if len(classes) > wanted and extends:
        raise UsageError(
            f"{source} has {has}, but {option('classes')} names {len(classes)}: give {option('model')} with a function or an "
            f"architecture that has {len(classes)} outputs; the head then starts fresh, the other layers keep their weights"
        )
    if len(classes) != wanted and outputs == 1 and all(NUMBER.fullmatch(name) for name in classes):
        raise UsageError(
            f"{source} has one output, and the labels are {len(classes)} numbers ({show_classes(classes[:5])}, …): kresume "
            "trains classifiers; for a model that predicts a number (regression) use kresume.BackupAndRestore in your own fit"
        )
    if len(classes) != wanted:
        raise UsageError(
            f"{source} has {has}, but there are {len(classes)} classes, {respelled(reason)} ({show_classes(classes[:12])}"
            f"{', …' if len(classes) > 12 else ''}): give the names of the outputs in their order with "
            f"{option('classes', 'a,b,c')}"
        )


def gather(
    config: TrainConfig,
    parent: Parent | None,
    sources: Sources,
    classes: Sequence[str],
    spec: DecodeSpec,
    cache: Cache | None,
    generation: int,
    reporter: Reporter,
    *,
    writes: bool = True,
) -> Gathered:
    """Reads every new file once, and merges old and new images into one manifest.

    Args:
        config: the options of the run.
        parent: the checkpoint to start from, None for a new model.
        sources: the listed files.
        classes: the class names in the order of the outputs.
        spec: how images are decoded.
        cache: the cache of decoded images, None with `--cache off`.
        generation: the generation of the new run.
        reporter: shown progress.
        writes: False writes nothing to the cache.

    Raises:
        ImagesError: the model does not know some class folders, no image is usable, remembered images are gone, or,
            with `--strict-images`, a file cannot be used.
        NothingNew: `--add` holds nothing that the parent does not know already.
        UsageError: an option is invalid.
    """
    remembered = parent.manifest if parent is not None else None
    drop = corrections.read_drop(config.drop)
    dropped = corrections.all_spellings(drop)
    remembered = corrections.remap(remembered, Moves.parse(config.remap), sources.moved)
    _check_streams(sources, cache, writes)
    collected = collect.collect(sources.named(classes), spec, cache, reporter, recorded=remembered, writes=writes)
    data, add, val = collected.data, collected.add, collected.val
    notes = [*collected.notes]
    if remembered is not None and data is None:
        images = [image for part in (add, val) if part is not None for image in part.images]
        given = {image.found.key: image.facts.sha256 for image in images}
        policy = settings_of(config).on_missing
        remembered, more = without_missing(
            remembered, spec, cache, reporter, policy, named(str(config.from_)), dropped, given, writes=writes
        )
        notes += more
    _check_strict(config, collected.quarantine)
    if data is None and remembered is not None and cache is not None and writes:
        collect.decode_recorded(remembered, spec, cache, reporter)
    hashes, nowhere = corrections.hashes_in(drop, remembered, data, add, val)
    before = dropped_by(parent.run) if parent is not None and parent.run is not None else set()
    if drop and not before and not config.watch:  # an earlier run may have dropped them; they may arrive later
        corrections.check_found(drop, nowhere, str(config.drop))
    merge = merging.merge(
        remembered,
        data,
        add,
        val,
        classes=classes,
        val_split=val_split_of(config),
        generation=generation,
        on_conflict=settings_of(config).on_conflict,
        drop=hashes | before,
        held_out=keras_split.held_out(config.val_like, config.data) if config.val_like else None,
        ever=parent.ever if parent is not None else None,
        seen=parent is not None and parent.manifest is None and not config.new_head,
    )
    _check_merge(config, parent, merge, classes, collected.quarantine)
    if drop:
        forgotten = corrections.forget(cache, hashes) if cache is not None and writes else 0
        notes.append(
            f"{counted(merge.facts.dropped, 'image')} dropped ({option('drop')}), {forgotten:,} of them from the cache"
        )
        if nowhere:
            without = f"{counted(len(nowhere), 'line')} of {option('drop', config.drop)} without an image"
            notes.append(f"{without}; {corrections.first_of(nowhere)}")
    elif merge.facts.dropped:
        notes.append(
            f"{counted(merge.facts.dropped, 'image', 'is', 'are')} left out, because an earlier run dropped "
            f"{'it' if merge.facts.dropped == 1 else 'them'}"
        )
    notes += _describe_unsplit(config, sources)
    quarantine = (*collected.quarantine, *_quarantined_conflicts(merge))
    return Gathered(merge.manifest, merge, quarantine, tuple(notes), tuple(sorted(hashes | before)))


def _describe_unsplit(config: TrainConfig, sources: Sources) -> list[str]:
    """Returns a note where a share of no image is to validate, because all say where they belong."""
    split = bool(config.val_like)
    files = (found for each in (sources.data, sources.add) if each is not None for found in each.files)
    if not config.val_split or config.from_ is not None or any(found.split is None and not split for found in files):
        return []
    said = option("val-like", config.val_like) if split else "the folder or the list of each image"
    return [f"{option('val-split', config.val_split)} splits nothing: {said} says whether it validates"]


def _check_strict(config: TrainConfig, quarantine: Sequence[Quarantined]) -> None:
    if config.strict_images and quarantine:
        raise ImagesError(
            f"{option('strict-images', True)}: {counted(len(quarantine), 'file')} cannot be used, the first is "
            f"{quarantine[0].path}: "
            f"{quarantine[0].reason}"
        )


def _quarantined_conflicts(merge: Merge) -> list[Quarantined]:
    return [Quarantined(path, label, f"{conflicts.TWO_LABELS}{other}") for path, label, other in merge.facts.undecided]


def val_split_of(config: TrainConfig) -> float | None:
    """Returns the share of new images for validation.

    `--val` turns the default share off. If `--val` and `--val-split` are both given, both apply.
    """
    if config.val_split is not None:
        return config.val_split
    return None if config.val else DEFAULTS.val_split


def _check_streams(sources: Sources, cache: Cache | None, writes: bool) -> None:
    """Raises if a file compressed as a whole would be read without a cache.

    Each read would unpack all images before it.
    """
    if cache is not None or not writes:
        return
    packed = next(
        (found.path for listing in sources for found in listing.files if found.coding in STREAM_CODINGS), None
    )
    if packed is not None:
        raise ImagesError(
            f"{packed} is compressed as a whole, so its images must be cached: leave {option('cache', 'off')} out, or "
            "decompress the file"
        )


def corrects(config: TrainConfig, merge: Merge) -> bool:
    """Returns True if the labels of old images changed."""
    return bool(merge.facts.relabels) or (config.on_conflict == "new" and bool(merge.facts.conflicts))


def _check_merge(
    config: TrainConfig,
    parent: Parent | None,
    merge: Merge,
    classes: Sequence[str],
    quarantine: Sequence[Quarantined],
) -> None:
    if merge.facts.unknown:
        unknown = ", ".join(
            f"{name!r} ({counted(count, 'image')})" for name, count in sorted(merge.facts.unknown.items())
        )
        grown = config.grow if isinstance(config.grow, tuple) else ()
        knows = ", ".join(repr(name) for name in classes if name not in grown)
        raise ImagesError(
            f"classes that the model does not know: {unknown}; it knows {knows}. "
            f"{ways_on(config, parent, merge.facts.unknown, classes)}"
        )
    facts = merge.facts
    changed = facts.added or facts.back or corrects(config, merge)
    empty = config.watch and not collect.without_empty(config.add)  # a watched folder may start empty
    if config.add and parent is not None and parent.manifest is not None and not changed and not empty:
        problems = []
        if quarantine:
            problems.append(
                f"{counted(len(quarantine), 'file')} cannot be used, the first is {quarantine[0].path}: {quarantine[0].reason}"
            )
        if facts.conflicts:
            path, label, other = facts.conflicts[0]
            problems.append(
                f"{len(facts.conflicts):,} have another label than before or in another source, the first is {path}: {label}, "
                f"and {other} elsewhere ({option('on-conflict', 'new')} uses the new label)"
            )
        if facts.dropped:
            problems.append(f"{counted(facts.dropped, 'image', 'was', 'were')} dropped, now or before")
        parent_name = named(str(config.from_))
        inside = ", ".join((*(config.data or ()), *config.add, *(config.val or ())))
        if problems:
            raise NothingNew(
                f"nothing new that can be used: {facts.known:,} images in {inside} are already in {parent_name}; "
                f"{'; '.join(problems)}"
            )
        raise NothingNew(f"nothing new: all {facts.known:,} images in {inside} are already in {parent_name}")
    if len(merge.manifest.train_rows()) == 0:
        doubled = (
            f"{counted(len(facts.conflicts), 'file', 'has', 'have')} two labels ({option('on-conflict', 'new')} uses the newer "
            f"one, where one is newer), and {ONE_LABEL}; "
            if facts.conflicts
            else ""
        )
        raise ImagesError(
            f"no image is left to train on: {doubled}check the quarantine and {option('val-split')}, or give more images with "
            f"{option('data')} or {option('add')}"
        )


def not_used(sources: Sources, manifest: Manifest) -> int:
    """Counts the listed images that are not in the manifest: copies, and quarantined ones."""
    import pyarrow as pa
    import pyarrow.compute as compute

    listed = [found for listing in sources for found in listing.files]
    paths = pa.array(list({found.path for found in listed}), pa.string())
    used = compute.sum(compute.is_in(manifest.table.column("path"), paths)).as_py() or 0
    return len({found.key for found in listed}) - int(used)


def came_since(config: TrainConfig, manifest: Manifest, before: int, reporter: Reporter) -> int:
    """Counts the images that entered a run's sources since it began; 0 if unlistable.

    Args:
        config: the options of the run.
        manifest: the images of the run.
        before: how many listed images the run did not use at its start.
        reporter: shown progress.
    """
    if not (config.data or config.add or config.val):
        return 0
    try:
        return max(0, not_used(_listed(config, reporter), manifest) - before)
    except (ImagesError, OSError):  # the run trains from its cache; reading a missing file names it
        return 0
