"""`--watch`: a look at the sources before each epoch, for images that came since the one before.

    watch = Watch(config, classes, spec, cache, generation, reporter)
    rows = watch.look(manifest, poll)       # rows of the manifest to be, prepared and in the cache

Nothing that goes wrong here ends training: what cannot be used now is named and looked at again before the next epoch. What
joins is decided as when a run begins (`images/merging.py`): the same bytes count once, sides follow from content, and an
image near a recorded one takes its side. What would need a decision by a person (an unknown class, an image of the run under
another label) waits for the next generation.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from kresume.config import TrainConfig
from kresume.errors import ImagesError
from kresume.images import corrections, merging, places
from kresume.images.cache import Cache, listings_of
from kresume.images.decode import DecodeSpec
from kresume.images.manifest import Manifest
from kresume.images.prepare import Image, Prepared, prepare
from kresume.images.sources import Found, list_images
from kresume.images.sources.found import key_of
from kresume.images.sources.records import parse_features
from kresume.progress import Reporter
from kresume.training import gather

if TYPE_CHECKING:
    import pyarrow as pa

SETTLED_SECONDS = 2.0
"""A file that was changed later than so long ago may still be on its way: it must look the same twice."""
PART = 128
"""Arrivals that are prepared between two looks at whether somebody asked to stop."""

Version = tuple[int, int]
"""A file's size and time."""


class Watch:
    """Looks for new images in the sources of a run.

    Args:
        config: the options that hold.
        classes: names of the outputs in their order.
        spec: how pictures are decoded.
        cache: where they are kept, None with `--cache off`.
        generation: of the run; what arrives is of it.
        reporter: told what was found.
        set_aside: names of files that the run began without: they are not told of again.
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
    ) -> None:
        self._config = config
        self._classes = tuple(classes)
        self._spec = spec
        self._cache = cache
        self._generation = generation
        self._reporter = reporter
        self._drop = corrections.read_drop(config.drop)
        self._seen: dict[str, Version] = {}
        self._judged: dict[str, Version] = {}
        self._told: set[str] = {f"cannot be used:{name}" for name in set_aside}
        self._recorded: tuple[Manifest | None, set[str]] = (None, set())

    def look(self, manifest: Manifest, poll: Callable[[], None]) -> pa.Table:
        """Finds, reads and decodes what came.

        Args:
            manifest: the images of the run so far.
            poll: called now and then; may raise to give up, nothing is lost.

        Returns:
            Rows of the manifest, with the side of each; none where nothing came.
        """
        if manifest is not self._recorded[0]:
            self._recorded = manifest, _keys_of(manifest)
        recorded = self._recorded[1]
        train, val = self._list(self._config.data, self._config.add), self._list(self._config.val)
        poll()
        self._name_vanished(manifest, recorded, {found.key for found in (*train, *val)})
        arrived = [self._ready(self._known_classes(part), recorded) for part in (train, val)]
        prepared = [self._prepare(part, manifest, poll) for part in arrived]
        if not any(part.images for part in prepared):
            return manifest.table.slice(0, 0)
        merge = merging.merge(
            manifest,
            None,
            prepared[0],
            prepared[1],
            classes=self._classes,
            val_split=gather.val_split_of(self._config),
            generation=self._generation,
            drop=self._drop,
        )
        for note in merge.facts.notes:
            self._say(f"note: {note}")
        self._judged |= {image.found.key: _version(image.found) for part in prepared for image in part.images}
        came = ~np.isin(merge.manifest.sha256s, manifest.sha256s)
        return merge.manifest.table.take(np.nonzero(came)[0])

    def _list(self, *given: Sequence[str] | None) -> list[Found]:
        """What these sources hold; one that cannot be listed now is named and left for the next epoch."""
        listed: list[Found] = []
        for path in (path for paths in given for path in paths or ()):
            try:
                listing = list_images(
                    [path], Reporter(quiet=True), parse_features(self._config.feature), listings_of(self._config.cache)
                )
            except (ImagesError, OSError) as error:
                self._say(f"{path} cannot be looked at now ({error}): it is looked at again before the next epoch")
                continue
            listed += merging.name_numbers(listing, self._classes)
        return listed

    def _known_classes(self, listed: Sequence[Found]) -> list[Found]:
        unknown = Counter(found.label for found in listed if found.label not in self._classes)
        for label, count in sorted(unknown.items()):
            self._say(f"{count:,} images of {label}, which the model does not know, wait for the next generation")
        return [found for found in listed if found.label in self._classes]

    def _ready(self, listed: Sequence[Found], recorded: set[str]) -> list[Found]:
        """What is not recorded yet and has come whole, as far as its size and time tell."""
        now = time.time_ns()
        ready = []
        for found in listed:
            version = _version(found)
            if found.key in recorded or self._judged.get(found.key) == version:
                continue
            fresh = 0 <= now - found.mtime_ns < SETTLED_SECONDS * 1e9
            if not fresh or self._seen.get(found.key) == version:
                ready.append(found)
            self._seen[found.key] = version
        return ready

    def _prepare(self, ready: Sequence[Found], manifest: Manifest, poll: Callable[[], None]) -> Prepared:
        images: list[Image] = []
        labels = dict(zip(manifest.sha256s.tolist(), manifest.labels.tolist(), strict=True)) if ready else {}
        for start in range(0, len(ready), PART):
            poll()
            part = ready[start : start + PART]
            try:
                done = prepare(part, self._spec, self._cache, self._reporter, label="preparing arrivals")
            except (ImagesError, OSError) as error:
                self._say(f"{len(part):,} arrivals cannot be prepared now ({error}): again before the next epoch")
                continue
            for row in done.quarantine:
                self._say_once(
                    f"cannot be used:{row.path}",
                    f"{row.path} cannot be used now ({row.reason}): it is looked at again before the next epoch",
                )
            images += [image for image in done.images if self._joins(image, labels)]
        return Prepared(tuple(images), (), 0, 0)

    def _joins(self, image: Image, labels: dict[bytes, int]) -> bool:
        """Whether a picture is new to the run and was read as it was listed."""
        found = image.found
        try:
            now = places.stat(found.path)
        except OSError:
            return False
        if (now.st_size, now.st_mtime_ns) != _version(found):
            return False  # it grew while it was read
        known = labels.get(image.facts.sha256.encode())
        if known is None:
            return True
        self._judged[found.key] = _version(found)
        if self._classes[known] != found.label:
            self._say(
                f"{found.name} is in the run as {self._classes[known]} and now stands under {found.label}: it waits for the "
                "next generation"
            )
        return False

    def _name_vanished(self, manifest: Manifest, recorded: set[str], listed: set[str]) -> None:
        """Names recorded files of the sources that are gone. Their pictures go on as long as they can be read."""
        given = {*(self._config.data or ()), *(self._config.add or ()), *(self._config.val or ())}
        missing = recorded - listed
        if not missing:
            return
        columns = manifest.table.select(["path", "offset", "length", "source"]).to_pydict()
        gone = [
            path
            for path, offset, length, source in zip(*columns.values(), strict=True)
            if source in given and key_of(path, offset, length) in missing and not places.exists(path)
        ]
        fresh = [path for path in dict.fromkeys(gone) if f"gone:{path}" not in self._told]
        self._told |= {f"gone:{path}" for path in fresh}
        if fresh:
            go_on = "their pictures are in the cache" if self._cache is not None else "the run goes on without them"
            self._reporter.warn(f"{len(fresh):,} files vanished from the sources, the first is {fresh[0]}: {go_on}")

    def _say(self, text: str) -> None:
        self._say_once(text, text)

    def _say_once(self, key: str, text: str) -> None:
        if key not in self._told:
            self._told.add(key)
            self._reporter.say(text)


def _version(found: Found) -> Version:
    return found.bytes, found.mtime_ns


def _keys_of(manifest: Manifest) -> set[str]:
    columns = manifest.table.select(["path", "offset", "length"]).to_pydict()
    return {key_of(*row) for row in zip(*columns.values(), strict=True)}
