"""Looks for new images in the sources before each epoch (`--watch`).

    watch = Watch(config, classes, spec, cache, generation, reporter)
    rows = watch.look(manifest, everything, poll)       # rows for the next manifest, prepared and in the cache

An error here never ends training: an unusable file is reported and tried again before the next epoch. New images join
by the rules of a new run (`images/merging.py`): the same bytes count once, the split follows from the content, and an
image near a recorded one takes its split. Images that need a decision by the user (an unknown class, an image of the
run under another label) wait for the next generation.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from kresume.class_renames import of_labels, read_renames
from kresume.errors import ImagesError
from kresume.images import corrections, merging
from kresume.images.cache import Cache, listings_of
from kresume.images.collect import list_sources, without_empty
from kresume.images.manifest import LOCATION, Manifest, schema
from kresume.images.prepare import Image, Prepared, prepare
from kresume.images.said_before import labels_in
from kresume.images.sources import Found, Quarantined
from kresume.images.sources.found import key_of
from kresume.images.sources.moves import Moves
from kresume.images.sources.records import parse_features
from kresume.options.table import TrainConfig
from kresume.reporter import Reporter
from kresume.spelling import counted
from kresume.storage import locations, one_file
from kresume.training.plan.images import val_split_of
from kresume.values.decode_spec import DecodeSpec

if TYPE_CHECKING:
    import pyarrow as pa

SETTLED_SECONDS = 2.0
"""A file modified within this time may still be incomplete: it must look the same twice."""
PART = 128
"""The number of new images prepared between two checks for a stop signal."""
AGAIN = "trying again before the next epoch"
WAITS = "waits for the next generation"


class _Known:
    """The run's recorded images by content.

    Args:
        everything: every recorded image.
        row_of: its row by SHA-256.
        present: whether each row is in the run now.
    """

    def __init__(self, everything: Manifest, row_of: dict[bytes, int], present: np.ndarray) -> None:
        self._everything = everything
        self._row_of = row_of
        self._present = present

    @classmethod
    def of(cls, manifest: Manifest, everything: Manifest) -> _Known:
        """Builds the index of all recorded images."""
        rows = {sha: row for row, sha in enumerate(everything.sha256s.tolist())}
        return cls(everything, rows, np.isin(everything.sha256s, manifest.sha256s))

    def _row(self, image: Image) -> int | None:
        return self._row_of.get(image.facts.sha256.encode())

    def label(self, image: Image) -> str | None:
        """Returns the recorded label, None for a new image."""
        row = self._row(image)
        return None if row is None else self._everything.classes[self._everything.labels[row]]

    def left(self, image: Image) -> bool:
        """Returns True if the image was in the run and left."""
        row = self._row(image)
        return row is not None and not self._present[row]

    def path(self, image: Image) -> str:
        """Returns the recorded path; empty for a new image."""
        row = self._row(image)
        return "" if row is None else self._everything.paths(np.array([row]))[0]


class Watch:
    """Looks for new images in the sources of a run.

    Args:
        config: the options of the run.
        classes: the class names in the order of the outputs.
        spec: how images are decoded.
        cache: the cache of decoded images, None with `--cache off`.
        generation: the generation of the run, which is the origin of arriving images.
        reporter: prints what was found.
        set_aside: names of files that the run quarantined at its start; they are not reported again.
        dropped: SHA-256s of images that never join.
        away: images that earlier generations had and the run does not; one that comes back keeps its split.
    """

    def __init__(
        self,
        config: TrainConfig,
        classes: Sequence[str],
        spec: DecodeSpec,
        cache: Cache | None,
        generation: int,
        reporter: Reporter,
        set_aside: Sequence[str] = (),
        dropped: Collection[str] = (),
        away: Manifest | None = None,
    ) -> None:
        self._config = config
        self._classes = tuple(classes)
        self._spec = spec
        self._cache = cache
        self._generation = generation
        self._reporter = reporter
        # `dropped` holds what the file named when the run began; a continuation may start where the file does not
        # exist.
        self._drop = corrections.read_drop(config.drop if config.drop and one_file.is_file(config.drop) else None)
        self._dropped = set(dropped)
        self._away = away
        self._seen: dict[str, locations.Version] = {}
        self._judged: dict[str, locations.Version] = {}
        self._told: set[str] = {f"cannot be used:{name}" for name in set_aside}
        self._unlisted: set[str] = set()
        self._waits: dict[str, tuple[str, str]] = {}
        self._judged_other: dict[str, tuple[str, str]] = {}
        self._recorded: tuple[Manifest | None, dict[str, tuple[str, ...]]] = (None, {})

    @property
    def waiting(self) -> list[tuple[str, str]]:
        """Returns each file or class that the last look left for the next generation, and the reason."""
        return [*self._waits.values(), *self._judged_other.values()]

    def look(self, manifest: Manifest, everything: Manifest, poll: Callable[[], None]) -> pa.Table:
        """Finds, reads and decodes new images.

        Args:
            manifest: the current images of the run.
            everything: these and the images that left; an image that comes back keeps its split and origin.
            poll: called now and then; may raise to abort, nothing is lost.

        Returns:
            Manifest rows of the new images, each with its split; empty if there are none.

        Raises:
            ImagesError, OSError: the sources cannot be read now.
        """
        import pyarrow as pa

        if manifest is not self._recorded[0]:
            self._recorded = manifest, _labels_of(manifest)
        recorded = self._recorded[1]
        before, self._waits = self._waits, {}
        train = self._list("data", self._config.data, self._config.add)
        val = self._list("val", self._config.val)
        poll()
        listed = {found.key for found in (*train, *val)}
        if self._unlisted:  # what waits in a source that cannot be listed now still waits
            self._waits = before | self._waits
        else:
            self._judged_other = {key: told for key, told in self._judged_other.items() if key in listed}
        self._name_vanished(manifest, recorded, listed)
        self._name_relabelled((*train, *val), recorded)
        arrived = [self._ready(self._known_classes(part), recorded) for part in (train, val)]
        if not any(arrived):
            return manifest.table.slice(0, 0)
        known = _Known.of(manifest, everything)
        prepared = [self._prepare(part, known, len(manifest), poll) for part in arrived]
        images = [image for part in prepared for image in part]
        back = {image.facts.sha256: image.found for image in images if known.left(image)}
        fresh = [Prepared(tuple(image for image in part if not known.left(image)), (), 0, 0) for part in prepared]
        self._drop_named(fresh)
        merge = merging.merge(
            everything,
            None,
            fresh[0],
            fresh[1],
            classes=self._classes,
            val_split=val_split_of(self._config),
            generation=self._generation,
            drop=self._dropped,
            ever=self._away,
            fills=False,
            told_before=self._config.data or (),
        )
        for note in merge.facts.notes:
            self._say(f"note: {note}")
        self._judged |= {image.found.key: image.found.version for image in images if not known.left(image)}
        came = ~np.isin(merge.manifest.sha256s, everything.sha256s)
        return pa.concat_tables([merge.manifest.table.take(np.nonzero(came)[0]), _where_they_are_now(everything, back)])

    def _list(self, role: str, *given: Sequence[str] | None) -> list[Found]:
        """Lists the files of these sources, given as `data` or `val`; reports one that cannot be listed now."""
        listed: list[Found] = []
        for path in without_empty([path for paths in given for path in paths or ()]):
            try:
                sources = list_sources(
                    Reporter(quiet=True),
                    data=[path] if role == "data" else None,
                    val=[path] if role == "val" else None,
                    features=parse_features(self._config.feature),
                    memory=listings_of(self._config.cache),
                    moves=Moves.parse(self._config.remap),
                    known=self._classes,
                    renames=of_labels(read_renames(self._config.rename)),
                )
            except (ImagesError, OSError) as error:
                self._say(f"{path} cannot be listed now ({error}): {AGAIN}")
                self._unlisted.add(path)
                continue
            self._unlisted.discard(path)
            for row in (row for listing in sources for row in listing.quarantine):
                self._name_unusable(row)
            listed += [found for listing in sources.named(self._classes) for found in listing.files]
        return listed

    def _known_classes(self, listed: Sequence[Found]) -> list[Found]:
        unknown = Counter(found.label for found in listed if found.label not in self._classes)
        for label, count in sorted(unknown.items()):
            self._say(
                f"{counted(count, 'image')} of {label}, a class that the model does not have, "
                f"{'waits' if count == 1 else 'wait'} for the next generation"
            )
            self._waits[f"class:{label}"] = (
                label,
                f"{counted(count, 'image')} of a class that the model does not have",
            )
        return [found for found in listed if found.label in self._classes]

    def _ready(self, listed: Sequence[Found], recorded: Collection[str]) -> list[Found]:
        """Returns the files that are not recorded yet and look complete by size and time."""
        now = time.time_ns()
        ready = []
        for found in listed:
            version = found.version
            if found.key in recorded or self._judged.get(found.key) == version:
                continue
            fresh = now - found.mtime_ns < SETTLED_SECONDS * 1e9  # a server's clock may be ahead
            if not fresh or self._seen.get(found.key) == version:
                ready.append(found)
                self._judged_other.pop(found.key, None)
            self._seen[found.key] = version
        return ready

    def _prepare(self, ready: Sequence[Found], known: _Known, others: int, poll: Callable[[], None]) -> list[Image]:
        """Returns the usable images that are not in the run.

        `others` is the number of images that the cache must hold besides them.
        """
        images: list[Image] = []
        for start in range(0, len(ready), PART):
            poll()
            part = ready[start : start + PART]
            done = prepare(
                part,
                self._spec,
                self._cache,
                self._reporter,
                label="preparing arrivals",
                others=others + start,
                unkept=self._dropped,
            )
            for row in done.quarantine:
                self._name_unusable(row)
            images += [image for image in done.images if self._joins(image, known)]
        return images

    def _drop_named(self, fresh: Sequence[Prepared]) -> None:
        """Drops the new images that lines of `--drop` name by path; reading them decoded them."""
        named = corrections.hashes_in(self._drop, None, *fresh)[0] - self._dropped
        self._dropped |= named
        if named and self._cache is not None:
            another = Cache(self._cache.folder, self._spec)  # readers hold indices into the rows of this one
            another.refresh()
            corrections.forget(another, named)

    def _joins(self, image: Image, known: _Known) -> bool:
        """Returns True if the image is new to the run and its file unchanged since listing."""
        found = image.found
        try:
            now = locations.stat(found.path)
        except OSError:
            return False
        if locations.version(now) != found.version:
            return False  # it grew while it was read
        label = known.label(image)
        if label is None:
            return True
        if label != found.label:
            self._judged[found.key] = found.version
            path = known.path(image)
            self._judged_other[found.key] = (found.name, f"{label} in the run, {found.label} in the sources")
            self._say(
                f"{found.name} is the same image as {path}, which has the label {label} and not {found.label}: the next "
                "generation leaves an image of two labels out"
                if locations.exists(path)
                else f"{found.name} has the label {label} in the run and now has {found.label}: the new label {WAITS}"
            )
            return False
        if known.left(image):
            return True
        if locations.exists(known.path(image)):
            # A copy. If the recorded path is missing, the file was renamed and is checked again.
            self._judged[found.key] = found.version
        return False

    def _name_relabelled(self, listed: Sequence[Found], recorded: Mapping[str, tuple[str, ...]]) -> None:
        """Says which recorded images have another label in the sources now.

        A label that was corrected before is none.
        """
        if self._config.on_conflict == "old":
            return
        other = {
            f"label:{found.key}:{found.label}": found
            for found in listed
            if found.label in self._classes and found.label not in recorded.get(found.key, (found.label,))
        }
        fresh = [found for key, found in other.items() if key not in self._told]
        self._told |= other.keys()
        for key, found in other.items():
            self._waits[key] = (found.name, f"{recorded[found.key][0]} in the run, {found.label} in the sources")
        if fresh:
            first = fresh[0]
            self._reporter.say(
                f"{counted(len(fresh), 'image', 'has', 'have')} another label in the sources now, the first is "
                f"{first.name} ({recorded[first.key][0]} in the run, now {first.label}): the new label {WAITS}"
            )

    def _name_vanished(self, manifest: Manifest, recorded: Collection[str], listed: set[str]) -> None:
        """Warns of recorded source files that are gone, and of rows; their images stay while readable."""
        # A continuation has absolute paths; the process before may have recorded them as they were given.
        asked = {*(self._config.data or ()), *(self._config.add or ()), *(self._config.val or ())} - self._unlisted
        given = {locations.absolute(path) for path in asked}
        missing = {*recorded} - listed
        if not missing:
            return
        columns = manifest.table.select(["path", "offset", "length", "source"]).to_pydict()
        unlisted = [
            path
            for path, offset, length, source in zip(*columns.values(), strict=True)
            if locations.absolute(source) in given and key_of(path, offset, length) in missing
        ]
        fresh = [path for path in dict.fromkeys(unlisted) if f"gone:{path}" not in self._told]
        self._told |= {f"gone:{path}" for path in fresh}
        gone = [path for path in fresh if not locations.exists(path)]
        if gone:
            then = "their images are in the cache" if self._cache is not None else "the run continues without them"
            self._reporter.warn(
                f"{counted(len(gone), 'file', 'is', 'are')} no longer in the sources, the first is {gone[0]}: {then}"
            )
        if left := len(fresh) - len(gone):
            first = next(path for path in fresh if path not in set(gone))
            self._reporter.say(
                f"{counted(left, 'file', 'is', 'are')} no longer listed in the sources, the first is {first}: this run goes on "
                "with their images"
            )

    def _name_unusable(self, row: Quarantined) -> None:
        key = f"cannot be used:{row.path}"
        self._say_once(key, f"{row.path} cannot be used now ({row.reason}): {AGAIN}")
        self._waits[key] = (row.path, row.reason)

    def _say(self, text: str) -> None:
        self._say_once(text, text)

    def _say_once(self, key: str, text: str) -> None:
        if key not in self._told:
            self._told.add(key)
            self._reporter.say(text)


def _where_they_are_now(everything: Manifest, back: Mapping[str, Found]) -> pa.Table:
    """Returns the recorded rows of images that came back, with their current paths."""
    import pyarrow as pa

    rows = np.nonzero(np.isin(everything.sha256s, np.array(sorted(back), "S64")))[0]
    table = everything.table.take(rows)
    for name in LOCATION:
        values = [getattr(back[sha.decode()], name) for sha in everything.sha256s[rows].tolist()]
        index = table.column_names.index(name)
        table = table.set_column(index, schema().field(name), pa.array(values, schema().field(name).type))
    return table


def _labels_of(manifest: Manifest) -> dict[str, tuple[str, ...]]:
    """Returns the label of each image by its key, and the labels that it replaced."""
    columns = manifest.table.select(["path", "offset", "length", "label", "replaced"]).to_pydict()
    rows = zip(*columns.values(), strict=True)
    return {key_of(*place): (label, *labels_in(replaced)) for *place, label, replaced in rows}
