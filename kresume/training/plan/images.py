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
from kresume.class_renames import describe_renames, of_labels, read_renames
from kresume.errors import ImagesError, NothingNew, UsageError
from kresume.images import collect, conflicts, corrections, keras_split, merging
from kresume.images.cache import Cache, listings_of
from kresume.images.collect import Sources, check_one_kind
from kresume.images.manifest import Manifest
from kresume.images.merging import Merge
from kresume.images.prepare import Prepared
from kresume.images.remembered import without_missing
from kresume.images.sources import Quarantined
from kresume.images.sources.folder_order import assumed_order, check_one_order
from kresume.images.sources.found import STREAM_CODINGS
from kresume.images.sources.moves import Moves
from kresume.images.sources.records import parse_features
from kresume.options.settings import DEFAULTS, settings_of
from kresume.options.table import TrainConfig
from kresume.reporter import Reporter
from kresume.spelling import counted, option, respelled
from kresume.tasks.table import class_count
from kresume.training.plan import dropping
from kresume.training.plan.known_classes import known_classes
from kresume.training.plan.merge_checks import check_left, check_merge, check_new
from kresume.training.plan.parent import Parent
from kresume.training.plan.renamed import check_renamed
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
        removed: number of images that the parent still has and this run drops.
    """

    manifest: Manifest
    merge: Merge
    quarantine: tuple[Quarantined, ...]
    notes: tuple[str, ...]
    dropped: tuple[str, ...]
    removed: int = 0


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
        renames=of_labels(read_renames(config.rename)),
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
            return pinned, f"the parent's{_renamed(config)}"
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
        return pinned, f"the parent's{_renamed(config)}"
    named = parent.state.records.get("classes") if parent is not None else None
    if named:
        return tuple(named), f"the checkpoint's{_renamed(config)}"
    listing = sources.data or sources.add
    check_one_kind(listing)
    reason = "the class folders, sorted"
    if parent is None or listing is None:
        return listing.classes if listing is not None else (), reason
    check_one_order(listing, parent.state.source)
    names = assumed_order(listing)
    reason += "" if names == listing.classes else " by their names as Keras reads them"
    return names, f"assumed: {reason}; {option('classes', 'a,b,c')} sets another order"


def _renamed(config: TrainConfig) -> str:
    """Returns what `--rename` changes, behind the reason for the order of the classes; empty without it."""
    renames = read_renames(config.rename)
    return f", {len(renames)} renamed: {describe_renames(renames)}" if renames else ""


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
    remembered = dropping.remembered(config, parent, sources)
    dropped = dropping.known_dropped(config, parent, remembered)
    unkept = dropped.hashes
    _check_streams(sources, cache, writes)
    collected = collect.collect(
        sources.named(classes), spec, cache, reporter, recorded=remembered, writes=writes, unkept=unkept
    )
    data, add, val = collected.data, collected.add, collected.val
    notes = [*collected.notes]
    if remembered is not None and data is None:
        remembered, more = without_missing(
            remembered,
            spec,
            cache,
            reporter,
            settings_of(config).on_missing,
            named(str(config.from_)),
            corrections.all_spellings(dropped.lines),
            contents_of(add, val),
            writes=writes,
            unkept=unkept,
        )
        notes += more
    _check_strict(config, collected.quarantine)
    dropped = dropped.found(remembered, data, add, val)
    if data is None and remembered is not None and cache is not None and writes:
        collect.decode_recorded(remembered, spec, cache, reporter, unkept=dropped.hashes)
    if dropped.lines and not dropped.before and not config.watch:  # they may be of an earlier run, or arrive later
        corrections.check_found(dropped.lines, dropped.nowhere, str(config.drop))
    merge = merging.merge(
        remembered,
        data,
        add,
        val,
        classes=classes,
        val_split=val_split_of(config),
        generation=generation,
        on_conflict=settings_of(config).on_conflict,
        drop=dropped.hashes,
        held_out=keras_split.held_out(config.val_like, config.data) if config.val_like else None,
        ever=parent.ever if parent is not None else None,
        seen=parent is not None and parent.manifest is None and not config.new_head,
    )
    given = [image for part in (data, add, val) if part is not None for image in part.images]
    check_renamed(config, remembered, merge.manifest, given, all_given=data is not None)
    check_merge(config, parent, merge, classes)
    try:
        check_new(config, parent, merge, dropped, collected.quarantine)
    except NothingNew:  # a copy that a line names by its path was decoded to read its content
        dropped.forget(cache if writes else None)
        raise
    check_left(merge)
    notes += dropped.describe(merge.facts, dropped.forget(cache) if writes else None)
    notes += _describe_unsplit(config, sources)
    quarantine = (*collected.quarantine, *_quarantined_conflicts(merge))
    kept_out, removed = tuple(sorted(dropped.hashes)), dropped.removed(parent)
    return Gathered(merge.manifest, merge, quarantine, tuple(notes), kept_out, removed)


def contents_of(*prepared: Prepared | None) -> dict[str, str]:
    """Returns the SHA-256s of prepared images by `Found.key`."""
    return {image.found.key: image.facts.sha256 for part in prepared if part is not None for image in part.images}


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
