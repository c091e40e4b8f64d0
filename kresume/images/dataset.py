"""`kresume.image_dataset`: folders of images for a user's own `fit`, old and new in one, exactly resumable.

    data = kresume.image_dataset("old/", add="new/", image_size=(96, 96), batch_size=32)
    model.fit(data, epochs=20, callbacks=[kresume.BackupAndRestore("backup/", data=data)])

The arguments are those of `keras.utils.image_dataset_from_directory`. Beyond it: every file is read once, what cannot be read
is set aside by name, the same bytes count once, an image's side (training or validation) follows from its content, and the
order is a pure function of (seed, epoch). All batches are full: an epoch is `ceil(images / batch_size)` batches of the endless
row of permutations, so its last batch may begin the next permutation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from kresume.errors import ImagesError, UsageError
from kresume.images import merging
from kresume.images.cache import Cache
from kresume.images.decode import DecodeSpec
from kresume.images.manifest import Manifest
from kresume.images.order import Order
from kresume.images.prepare import Prepared, prepare
from kresume.images.reader import PictureReader
from kresume.images.sources import Listing, list_images
from kresume.images.stream import Stream, dataset_of
from kresume.images.tf_data import READERS, without_autotuner
from kresume.progress import Reporter

LABEL_MODES = ("int", "categorical", "binary", None)
COLOR_MODES = ("rgb", "grayscale")


class ImageStream(Stream):
    """A stream over lists of images: one, or several where images came in while training was interrupted.

    Args:
        manifest: the images as they are now; its training side is dealt.
        spec: how they are decoded.
        cache: decoded pictures, None to decode each time.
        batch_size: images per batch.
        seed: of the order.
        shuffle: False deals the images in the order of the manifest in every epoch.
    """

    def __init__(
        self, manifest: Manifest, spec: DecodeSpec, cache: Cache | None, batch_size: int, seed: int, shuffle: bool
    ) -> None:
        super().__init__(-(-len(manifest.train_rows()) // batch_size))
        self.manifest = manifest
        self.spec = spec
        self.cache = cache
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self._lists: list[tuple[int, Manifest]] = [(0, manifest)]
        self._readers: dict[str, PictureReader] = {}

    def _list_of(self, epoch: int) -> int:
        return max(place for place, (first, _) in enumerate(self._lists) if first <= epoch)

    def _length(self, place: int) -> int:
        return -(-len(self._lists[place][1].train_rows()) // self.batch_size)

    def steps(self, epoch: int) -> int:
        """How many batches an epoch has: the list that it deals decides."""
        return self._length(self._list_of(epoch))

    def longest(self) -> int:
        """The most batches of any epoch from here on."""
        return max(self._length(place) for place in range(self._list_of(self.epoch), len(self._lists)))

    def step(self, epoch: int, batch: int) -> int:
        """How many batches of this epoch's list come before this one."""
        return (epoch - self._lists[self._list_of(epoch)][0]) * self.steps(epoch) + batch

    def places(self) -> Iterator[tuple[tuple[int, int], np.ndarray]]:
        """One epoch's batches as (mark, (which list, which step of it))."""

        def places_from(epoch: int, batch: int) -> Iterator[np.ndarray]:
            place, step = self._list_of(epoch), self.step(epoch, batch)
            while True:
                yield np.array([place, step], np.int64)
                step += 1

        return self.read(places_from)

    def load(self, place: int, step: int) -> tuple[np.ndarray, np.ndarray]:
        """The pictures `(batch, height, width, 3) uint8` and labels `(batch,) int32` of a batch."""
        manifest = self._lists[place][1]
        rows = manifest.train_rows()
        indices = np.arange(step * self.batch_size, (step + 1) * self.batch_size) % len(rows)
        if self.shuffle:
            indices = Order(self.seed, len(rows), self.batch_size).batch(step)
        digest = manifest.digest()
        if digest not in self._readers:
            self._readers[digest] = PictureReader(manifest, self.spec, self.cache)
        return self._readers[digest](rows[indices]), manifest.labels[rows[indices]].astype(np.int32)

    def identity(self) -> dict[str, Any]:
        """The lists by digest and everything that orders them."""
        return {
            "lists": [[first, manifest.digest()] for first, manifest in self._lists],
            "batch_size": self.batch_size,
            "seed": self.seed,
            "shuffle": self.shuffle,
            "spec": self.spec.key,
        }

    def save(self, folder: Path) -> None:
        """Writes each list once, so that an interrupted epoch can end on the list that it began with."""
        for _, manifest in self._lists:
            path = _list_path(folder, manifest.digest())
            if not path.exists():
                manifest.write(path)

    def adopt(self, folder: Path, identity: Mapping[str, Any], epoch: int, batch: int, on_new_data: str) -> str:
        """Takes up the lists of an interrupted training; what came in since joins at the next epoch."""
        now = self.identity()
        for name in ("batch_size", "seed", "shuffle", "spec"):
            if identity.get(name) != now[name]:
                raise UsageError(
                    f"the interrupted training had {name}={identity.get(name)}, this one has {now[name]}: give the same, or "
                    "another backup folder to begin again"
                )
        saved = [(int(first), str(digest)) for first, digest in identity["lists"]]
        current = max(place for place, (first, _) in enumerate(saved) if first <= epoch)
        lists = [
            (first, self.manifest if digest == self.manifest.digest() else Manifest.read(_list_path(folder, digest)))
            for first, digest in saved[current:]
        ]
        if lists[-1][1].digest() == self.manifest.digest():
            self._lists = lists
            return ""
        before, after = len(lists[-1][1]), len(self.manifest)
        if on_new_data == "error":
            raise UsageError(
                f"the images changed since the training was interrupted ({before:,} then, {after:,} now): restore them, or "
                "give on_new_data='next-epoch' to end the epoch on the old ones and begin the next with the new ones"
            )
        begins = epoch if batch == 0 else epoch + 1
        self._lists = [*(item for item in lists if item[0] < begins), (begins, self.manifest)]
        if self._lists[0][0] > epoch:  # nothing of the old list is left to deal
            self._lists[0] = (epoch, self._lists[0][1])
        return f"{before:,} images then, {after:,} now: the new list begins with epoch {begins + 1}"


def _list_path(folder: Path, digest: str) -> Path:
    return folder / f"images-{digest[:16]}.parquet"


def image_dataset(
    directory: str | Path | Sequence[str | Path],
    labels: Literal["inferred"] = "inferred",
    label_mode: str | None = "int",
    class_names: Sequence[str] | None = None,
    color_mode: str = "rgb",
    batch_size: int = 32,
    image_size: tuple[int, int] = (256, 256),
    shuffle: bool = True,
    seed: int | None = None,
    validation_split: float | None = None,
    subset: str | None = None,
    interpolation: str = "bilinear",
    crop_to_aspect_ratio: bool = False,
    pad_to_aspect_ratio: bool = False,
    verbose: bool = True,
    *,
    add: str | Path | Sequence[str | Path] | None = None,
    cache: str | Path | None = "auto",
) -> Any:
    """Folders of images as a dataset for `model.fit` that `kresume.BackupAndRestore` continues exactly.

    Args:
        directory: one or several folders with one folder per class.
        labels: `"inferred"`: from the folders' names.
        label_mode: `"int"`, `"categorical"`, `"binary"`, or None for images alone.
        class_names: the order of the labels; default the sorted folder names.
        color_mode: `"rgb"` or `"grayscale"`.
        batch_size: images per batch; every batch is full.
        image_size: `(height, width)` in pixels.
        shuffle: False deals the images in the order of their content's hash.
        seed: of the order; default 0, so that a restarted process deals the same order.
        validation_split: the share that validates, chosen by content: adding images changes nobody's side.
        subset: `"training"`, `"validation"` or `"both"`, with `validation_split`.
        interpolation: `"bilinear"`, `"area"`, `"antialias"` or `"nearest"`.
        crop_to_aspect_ratio: cut the longer sides off rather than stretch.
        pad_to_aspect_ratio: put black bars beside rather than stretch.
        verbose: say what was found.
        add: further folders, with the same classes.
        cache: where decoded pictures are kept: `"auto"`, a folder, or None to decode each time.

    Returns:
        A `tf.data.Dataset` of `(images (batch, height, width, channels) float32 in 0..255, labels)` with `class_names` and
        `file_paths`; for `subset="both"` two of them, the second finite.

    Raises:
        UsageError: an argument is none that is known here, or contradicts another.
        ImagesError: a folder is missing, empty or holds other classes.
    """
    if labels != "inferred":
        raise UsageError(f"labels={labels!r}: image_dataset reads them from the folders; resumable takes any pipeline")
    if label_mode not in LABEL_MODES:
        raise UsageError(f"label_mode={label_mode!r}: use 'int', 'categorical', 'binary' or None")
    if color_mode not in COLOR_MODES:
        raise UsageError(f"color_mode={color_mode!r}: use {' or '.join(map(repr, COLOR_MODES))}")
    if (subset is None) != (validation_split is None) or subset not in {None, "training", "validation", "both"}:
        raise UsageError("validation_split and subset ('training', 'validation' or 'both') go together")
    if crop_to_aspect_ratio and pad_to_aspect_ratio:
        raise UsageError("crop_to_aspect_ratio and pad_to_aspect_ratio contradict each other: give one of them")
    _keep_off_the_accelerator()
    reporter = Reporter(quiet=not verbose)
    resize = "crop" if crop_to_aspect_ratio else "pad" if pad_to_aspect_ratio else "stretch"
    spec = DecodeSpec(*image_size, resize, interpolation)
    store = None if cache is None else Cache.open(spec, None if cache == "auto" else Path(cache))
    manifest = _manifest(directory, add, class_names, validation_split, spec, store, reporter)
    if label_mode == "binary" and len(manifest.classes) != 2:
        raise UsageError(f"label_mode='binary' needs two classes, there are {len(manifest.classes)}")
    datasets = []
    if subset != "validation":
        stream = ImageStream(manifest, spec, store, batch_size, seed or 0, shuffle)
        datasets.append(_training(stream, label_mode, color_mode))
        datasets[-1].file_paths = manifest.paths(manifest.train_rows())
    if subset in {"validation", "both"}:
        datasets.append(_validation(manifest, spec, store, batch_size, label_mode, color_mode))
        datasets[-1].file_paths = manifest.paths(manifest.val_rows())
    for dataset in datasets:
        dataset.class_names = list(manifest.classes)
    return tuple(datasets) if subset == "both" else datasets[0]


def _keep_off_the_accelerator() -> None:
    import keras

    from kresume import devices

    if keras.config.backend() != "tensorflow":
        devices.keep_tensorflow_on_cpu()


def _manifest(
    directory: Any,
    add: Any,
    class_names: Sequence[str] | None,
    validation_split: float | None,
    spec: DecodeSpec,
    cache: Cache | None,
    reporter: Reporter,
) -> Manifest:
    def listed(value: Any) -> Sequence[str]:
        return [str(path) for path in ([value] if isinstance(value, (str, Path)) else value or ())]

    def prepared(listing: Listing | None) -> Prepared | None:
        if listing is None:
            return None
        return prepare(merging.name_numbers(listing, classes), spec, cache, reporter, known=listing.known)

    old = list_images(listed(directory), reporter)
    new = list_images(listed(add), reporter) if add else None
    classes = tuple(class_names) if class_names else old.classes
    data, more = prepared(old), prepared(new)
    merge = merging.merge(
        None, data, more, None, classes=classes, val_split=validation_split, generation=1 if add else 0
    )
    if merge.facts.unknown:
        named = ", ".join(sorted(merge.facts.unknown))
        raise ImagesError(
            f"class folders that are not among {', '.join(classes)}: {named}; give class_names, or move them"
        )
    if not len(merge.manifest.train_rows()):
        raise ImagesError(f"no image to train on in {', '.join(listed(directory))}")
    parts = [part for part in (old, new, data, more) if part is not None]
    set_aside = [row for part in parts for row in part.quarantine]
    reporter.say(
        f"{len(merge.manifest):,} images of {len(classes)} classes, {len(merge.manifest.train_rows()):,} to train, "
        f"{merge.facts.duplicates:,} duplicates counted once, {len(set_aside):,} set aside"
    )
    for row in set_aside:
        reporter.say(f"set aside: {row.path}: {row.reason}")
    for note in (*old.notes, *(new.notes if new is not None else ()), *merge.facts.notes):
        reporter.say(f"note: {note}")
    return merge.manifest


def _finish(images: Any, labels: Any, label_mode: str | None, color_mode: str, classes: int) -> Any:
    import tensorflow as tf

    images = tf.cast(images, tf.float32)
    if color_mode == "grayscale":
        images = tf.image.rgb_to_grayscale(images)
    if label_mode is None:
        return images
    if label_mode == "categorical":
        return images, tf.one_hot(labels, classes, dtype=tf.float32)
    if label_mode == "binary":
        return images, tf.cast(labels, tf.float32)[:, tf.newaxis]
    return images, labels


def _training(stream: ImageStream, label_mode: str | None, color_mode: str) -> Any:
    import tensorflow as tf

    shape = (stream.batch_size, stream.spec.height, stream.spec.width, 3)

    def load(mark: Any, place: Any) -> Any:
        images, labels = tf.numpy_function(
            lambda pair: stream.load(int(pair[0]), int(pair[1])), [place], [tf.uint8, tf.int32], stateful=False
        )
        images, labels = tf.ensure_shape(images, shape), tf.ensure_shape(labels, shape[:1])
        return mark, _finish(images, labels, label_mode, color_mode, len(stream.manifest.classes))

    return dataset_of(
        stream,
        stream.places,
        tf.TensorSpec([2], tf.int64),
        lambda places: places.map(load, num_parallel_calls=READERS, deterministic=True).prefetch(4),
    )


def _validation(
    manifest: Manifest, spec: DecodeSpec, cache: Cache | None, batch_size: int, label_mode: str | None, color_mode: str
) -> Any:
    import tensorflow as tf

    rows, reader = manifest.val_rows(), PictureReader(manifest, spec, cache)

    def load(chosen: Any) -> Any:
        images = tf.numpy_function(reader, [chosen], tf.uint8, stateful=False)
        images = tf.ensure_shape(images, (None, spec.height, spec.width, 3))
        labels = tf.gather(tf.constant(manifest.labels, tf.int32), chosen)
        return _finish(images, labels, label_mode, color_mode, len(manifest.classes))

    batches = tf.data.Dataset.from_tensor_slices(rows).batch(batch_size)
    return without_autotuner(batches.map(load, num_parallel_calls=READERS).prefetch(4))
