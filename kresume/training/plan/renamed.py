"""Gives classes of the parent new names (`--rename`), and finds folders that were renamed.

    names = Renamed.of(config, state)                 # the parent is read: its record says which classes there are
    names.state(state), names.manifest(manifest)      # everything downstream sees the new names alone
    check_renamed(config, parent, sources)            # raises if a known class is there under another name only

The outputs keep their order: the child of a renamed class has the weights of one that was not renamed.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from kresume.class_names import as_known, join_classes, show_class, show_classes
from kresume.class_renames import join_rename, read_renames, renamed
from kresume.errors import ImagesError, UsageError
from kresume.images.manifest import Manifest
from kresume.images.prepare import Image
from kresume.images.said_before import labels_in
from kresume.options.table import TrainConfig
from kresume.spelling import counted, option
from kresume.values.state import TrainState

if TYPE_CHECKING:
    import pyarrow as pa

ALIKE = 0.6
"""How similar a known class is at least to an unknown name, to be suggested (`difflib`)."""


@dataclass(frozen=True)
class Renamed:
    """The classes of a parent that have new names.

    Attributes:
        names: new names by those that the parent records; empty if nothing is renamed.
    """

    names: Mapping[str, str]

    @classmethod
    def of(cls, config: TrainConfig, state: TrainState) -> Renamed:
        """Reads the new names, and checks them with the classes that a checkpoint records.

        Raises:
            UsageError: the checkpoint has no such class, or has one of the new name already.
        """
        asked = read_renames(config.rename)
        classes = _recorded(state)
        for old, new in asked.items() if asked else ():
            _check(old, new, asked, classes, str(config.from_))
        spelled = as_known(tuple(asked), classes)
        return cls(dict(zip(spelled, asked.values(), strict=True)))

    def state(self, state: TrainState) -> TrainState:
        """Returns a checkpoint whose classes have their new names."""
        if not self.names:
            return state
        records = dict(state.records)
        if records.get("classes"):
            records["classes"] = list(renamed(records["classes"], self.names))
        card = state.card and replace(state.card, classes=renamed(state.card.classes, self.names))
        return replace(state, card=card, records=records)

    def manifest(self, manifest: Manifest) -> Manifest:
        """Returns recorded images whose classes have their new names; each keeps its row."""
        return self._of(manifest, renamed(manifest.classes, self.names)) if self.names else manifest

    def away(self, away: Manifest | None) -> Manifest | None:
        """Returns the images of earlier generations with the new names; their classes may have left the model."""
        if away is None or not self.names:
            return away
        return self._of(away, tuple(dict.fromkeys(renamed(away.classes, self.names))))

    def _of(self, manifest: Manifest, classes: tuple[str, ...]) -> Manifest:
        table = manifest.table
        for name, rename in (("label", self._label), ("replaced", self._replaced)):
            if name in table.column_names:
                index = table.column_names.index(name)
                values = {each: rename(each) for each in table.column(name).unique().to_pylist()}
                table = table.set_column(index, table.schema.field(name), _mapped(table.column(name), values))
        return Manifest.from_table(table, classes)

    def _label(self, label: str) -> str:
        return self.names.get(label, label)

    def _replaced(self, replaced: str) -> str:
        labels = renamed(labels_in(replaced), self.names)
        return json.dumps(list(labels), ensure_ascii=False) if labels else replaced


def _mapped(column: pa.ChunkedArray, values: Mapping[str, str]) -> pa.Array:
    """Returns a column of text with each value replaced, without a Python object per row."""
    import pyarrow as pa
    import pyarrow.compute as compute

    index = compute.index_in(column, pa.array(list(values), column.type))
    return pa.array(list(values.values()), column.type).take(index.combine_chunks())


def _recorded(state: TrainState) -> tuple[str, ...]:
    return tuple(state.card.classes if state.card is not None else state.records.get("classes") or ())


def check_asked_names(config: TrainConfig) -> None:
    """Checks that `--rename` can have a meaning, before anything is read.

    Raises:
        UsageError: it has another form, there is no checkpoint, or its classes are dropped.
    """
    if not read_renames(config.rename):
        return
    said = option("rename", (config.rename or ("",))[0])
    if config.from_ is None:
        raise UsageError(
            f"{said} gives a class of a checkpoint a new name, and there is none: give {option('from')}, or leave it out"
        )
    if config.new_head:
        raise UsageError(
            f"{said} keeps the output of a class, and {option('new-head', True)} drops them all: give one of them"
        )


def _check(old: str, new: str, asked: Mapping[str, str], classes: Sequence[str], parent: str) -> None:
    """Raises UsageError if a class cannot be renamed."""
    said = option("rename", join_rename(old, new))
    if not classes:
        raise UsageError(
            f"{said}: {parent} does not record its classes, so none has a name yet: name its outputs in their order with "
            f"{option('classes', 'a,b,c')}"
        )
    known = as_known((old, new), classes)
    if known[0] not in classes:
        if known[1] in classes:
            raise UsageError(f"{said}: {parent} calls the class {known[1]} already: leave it out")
        near = difflib.get_close_matches(old, classes, 1, ALIKE)
        hint = f"did you mean {show_class(near[0])}? It knows" if near else "it knows"
        raise UsageError(f"{said}: {parent} has no class {show_class(old)}; {hint} {show_classes(classes)}")
    if known[1] in classes and known[1] not in as_known(tuple(asked), classes):
        raise UsageError(
            f"{said}: {parent} has a class {show_class(new)} beside {show_class(old)}, each with an output of its own, and "
            "renaming merges no classes: to train a model that has one class for both, put their images into one folder and "
            f"start its head anew with {option('new-head', True)}"
        )


def find_renamed(manifest: Manifest, given: Iterable[Image], *, all_given: bool) -> dict[str, str]:
    """Finds known classes whose recorded images are all given under one unknown name.

    Args:
        manifest: the images that the parent records.
        given: the prepared images.
        all_given: True if the old images are given again; else a class counts only if each of its images is given.

    Returns:
        The unknown names by the classes.
    """
    images = list(given)
    labels = {image.found.label for image in images}
    if labels <= set(manifest.classes):
        return {}
    said: dict[bytes, set[str]] = {}
    for image in images:
        said.setdefault(image.facts.sha256.encode(), set()).add(image.found.label)
    there = np.isin(manifest.sha256s, np.array(list(said), "S64"))
    found: dict[str, str] = {}
    for index, name in enumerate(manifest.classes):
        rows = manifest.labels == index
        known = manifest.sha256s[rows & there]
        names = set().union(*(said[sha] for sha in known.tolist()))
        whole = all_given or len(known) == int(rows.sum())
        if len(names) == 1 and whole and name not in labels and not names & {*manifest.classes}:
            found[name] = names.pop()
    targets = list(found.values())
    return {name: new for name, new in found.items() if targets.count(new) == 1}


def check_renamed(
    config: TrainConfig, manifest: Manifest | None, merged: Manifest, given: Iterable[Image], *, all_given: bool
) -> None:
    """Checks that no known class is there under another name only, with which the run would lose it.

    Args:
        config: the options of the run.
        manifest: the images that the parent records; None if it records none.
        merged: the images that the run would have.
        given: the prepared images.
        all_given: see `find_renamed`.

    Raises:
        ImagesError: a class is; the message gives the option that renames it.
    """
    if manifest is None or config.on_conflict == "old" or (config.on_conflict == "new" and config.grow):
        return
    left = {merged.classes[label] for label in np.unique(merged.labels)}  # folders may say what was corrected before
    renames = find_renamed(manifest, given, all_given=all_given)
    found = {old: new for old, new in renames.items() if old not in left}
    if not found:
        return
    old, new = next(iter(found.items()))
    index = manifest.classes.index(old)
    count = counted(int((manifest.labels == index).sum()), "recorded image")
    more = f" (and {counted(len(found) - 1, 'further class')} likewise)" if len(found) > 1 else ""
    both = " and ".join([option("on-conflict", "new"), option("grow", join_classes((new,)))])
    raise ImagesError(
        f"every given image of the class {show_class(old)} ({count}) is under the name {show_class(new)} now{more}, which "
        f"the model does not know: if the class was renamed, {ways_to_rename(found)} keeps its output under the new name (or "
        f"give the folder its name again); if it is another class, {both} "
        f"adds an output for it, and {option('on-conflict', 'old')} keeps the old labels"
    )


def ways_to_rename(found: Mapping[str, str]) -> str:
    """Formats the options that rename classes."""
    separator = ", " if "=" in option("rename", "a=b").split(" ")[0] else " "
    return separator.join(option("rename", join_rename(old, new)) for old, new in found.items())


def hint_renamed(classes: Collection[str], with_images: Collection[str], unknown: Collection[str]) -> str:
    """Returns a hint if the one unknown class may be the one known class without images; else empty."""
    absent = [name for name in classes if name not in with_images]
    if len(absent) != 1 or len(unknown) != 1:
        return ""
    old, new = absent[0], next(iter(unknown))
    way = ways_to_rename({old: new})
    return f"; if {show_class(new)} is the class {show_class(old)} under a new name, {way} keeps its output"
