"""Loads image folders for a user's own `fit`, exactly resumable: `kresume.image_dataset`.

    data = kresume.image_dataset("old/", add="new/", image_size=(96, 96), batch_size=32)
    model.fit(data, epochs=20, callbacks=[kresume.BackupAndRestore("backup/", data=data)])

The arguments are those of `keras.utils.image_dataset_from_directory`. In addition:

- Every file is read once. Unreadable files are quarantined and listed.
- Files with the same bytes count as one image.
- An image's split (training or validation) follows from its content.
- The order is a pure function of (seed, epoch). Shuffled batches are all full: an epoch is `ceil(images / batch_size)`
  batches of the endless sequence of permutations, so its last batch may begin the next permutation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from kresume.class_names import canonical
from kresume.drop_in import user_map
from kresume.drop_in.image_stream import ImageStream, in_order_of_paths
from kresume.drop_in.stream import dataset_of
from kresume.errors import ImagesError, UsageError
from kresume.evaluation.caches import open_cache
from kresume.images import merging
from kresume.images.cache import Cache
from kresume.images.collect import collect, list_sources
from kresume.images.inputs import brightness
from kresume.images.manifest import Manifest
from kresume.images.reader import PictureReader
from kresume.images.sources import Listing
from kresume.images.tf_data import READERS, THREADS, without_autotuner
from kresume.reporter import Reporter
from kresume.spelling import Value, as_argument, counted, spelled
from kresume.values import decode_spec
from kresume.values.decode_spec import DecodeSpec

LABEL_MODES = ("int", "categorical", "binary", None)
COLOR_MODES = ("rgb", "grayscale")
INTERPOLATIONS = tuple(name for name in decode_spec.INTERPOLATIONS if name != "kerasarea")
"""Keras's names, and our `antialias`."""


def _argument(name: str, value: Value) -> str:
    """Spells an option of `kresume train` as the equivalent argument of `image_dataset`."""
    if name == "data":
        return as_argument("directory", value)
    if name == "cache" and value == "off":
        return "cache=None"
    if name in {"add", "cache", "interpolation", "follow-links", "seed"}:
        return as_argument(name, value)
    return f"kresume.resume(..., {as_argument(name, value)})"


@spelled(_argument)
def image_dataset(
    directory: str | Path | Sequence[str | Path],
    labels: str | None = "inferred",
    label_mode: str | None = "int",
    class_names: Sequence[str] | None = None,
    color_mode: str = "rgb",
    batch_size: int | None = 32,
    image_size: int | tuple[int, int] = (256, 256),
    shuffle: bool = True,
    seed: int | None = None,
    validation_split: float | None = None,
    subset: str | None = None,
    interpolation: str = "bilinear",
    follow_links: bool = False,
    crop_to_aspect_ratio: bool = False,
    pad_to_aspect_ratio: bool = False,
    data_format: str | None = None,
    format: str = "tf",
    verbose: bool = True,
    *,
    add: str | Path | Sequence[str | Path] | None = None,
    cache: str | Path | None = "auto",
    map: Callable[..., Any] | None = None,
) -> Any:
    """Creates a dataset of image folders that `kresume.BackupAndRestore` resumes exactly.

    Args:
        directory: one or several folders, each with one folder per class.
        labels: `"inferred"`: from the folders' names; None: images without labels, with or without class folders.
        label_mode: `"int"`, `"categorical"`, `"binary"`, or None, which is the same as `labels=None`.
        class_names: the class folders to use, in the order of the labels; default all, sorted as Keras sorts them.
        color_mode: `"rgb"` or `"grayscale"`.
        batch_size: images per batch; every shuffled batch is full. None gives single images, without a batch axis.
        image_size: `(height, width)` in pixels, or one number for both.
        shuffle: False reads the images class by class, sorted by path, each epoch from the first; the last batch may be
            smaller.
        seed: seed of the order; default 0, so that a restarted process uses the same order.
        validation_split: the share of validation images, chosen by content: adding images never moves another image to
            the other split.
        subset: `"training"`, `"validation"` or `"both"`; requires `validation_split`.
        interpolation: `"bilinear"`, `"nearest"`, `"bicubic"`, `"area"`, `"lanczos3"`, `"lanczos5"`, `"gaussian"`,
            `"mitchellcubic"`, or `"antialias"`, which Keras does not have. Values are rounded to integers. A
            command of kresume that reads a model trained with `"area"` needs `--interpolation kerasarea`.
        follow_links: follow symbolic links to folders inside the class folders.
        crop_to_aspect_ratio: crop the longer side instead of distorting the image.
        pad_to_aspect_ratio: pad with black instead of distorting the image.
        data_format: `"channels_last"` or `"channels_first"`; default `keras.config.image_data_format()`.
        format: `"tf"`.
        verbose: print what was found.
        add: further folders, with the same classes.
        cache: where decoded pictures are cached: `"auto"`, a folder, or None to decode each time.
        map: your own function, called on each batch inside tf.data as `map(images, labels)`, or `map(images)` without
            labels. A Keras layer is called on the images. Training resumes exactly with it: Keras's random layers and
            `keras.random` draw from the position of the batch, and so does a function with a parameter `seed` (for
            `tf.image.stateless_random_*`). It is applied to both subsets; a parameter `training` tells them apart.

    Returns:
        A `tf.data.Dataset` of `(images (batch, height, width, channels) float32 in 0..255, labels)` with `class_names`
        and `file_paths`; for `subset="both"` two of them, the second finite.

    Raises:
        UsageError: an argument has an unsupported value, or contradicts another.
        ImagesError: a folder is missing, empty or contains other classes.
    """
    if labels is None:
        label_mode = None
    elif labels != "inferred":
        raise UsageError(
            "labels: use 'inferred' (from the names of the folders) or None (no labels). For a list of labels, write a CSV "
            "file with the columns path and label, and give that file as directory"
        )
    _check_labels(label_mode, class_names)
    _check_batches(batch_size, validation_split, subset, format)
    _check_pictures(color_mode, interpolation, crop_to_aspect_ratio, pad_to_aspect_ratio)
    height, width = _size(image_size)
    channels_first = _channels_first(data_format)
    _keep_off_the_accelerator()
    reporter = Reporter(quiet=not verbose)
    spec = DecodeSpec(height, width, *_decoding(interpolation.lower(), crop_to_aspect_ratio, pad_to_aspect_ratio))
    store = None if cache is None else open_cache(spec, str(cache))
    labelled = label_mode is not None
    manifest = _manifest(
        directory, add, class_names, validation_split or None, spec, store, reporter, follow_links, labelled
    )
    if label_mode == "binary" and len(manifest.classes) != 2:
        raise UsageError(f"label_mode='binary' needs two classes, found {len(manifest.classes)}")
    finish = _finisher(label_mode, color_mode, channels_first, batch_size is None, len(manifest.classes))
    datasets = []
    if subset != "validation":
        stream = ImageStream(manifest, spec, store, batch_size or 1, seed or 0, shuffle)
        datasets.append(_training(stream, finish, map))
        datasets[-1].file_paths = manifest.paths(_in_order(manifest, manifest.train_rows(), shuffle))
    if subset in {"validation", "both"}:
        rows = _in_order(manifest, manifest.val_rows(), shuffle)
        datasets.append(_validation(manifest, rows, spec, store, batch_size or 1, finish, map, seed or 0))
        datasets[-1].file_paths = manifest.paths(rows)
    for dataset in datasets:
        dataset.class_names = list(manifest.classes) if labelled else None
    return tuple(datasets) if subset == "both" else datasets[0]


def _check_labels(label_mode: str | None, class_names: Sequence[str] | None) -> None:
    if label_mode not in LABEL_MODES:
        raise UsageError(f"label_mode={label_mode!r}: use 'int', 'categorical', 'binary' or None")
    if label_mode is None and class_names is not None:
        raise UsageError("class_names without labels: leave class_names out, or give label_mode='int'")
    if len({*map(canonical, class_names or ())}) < len(class_names or ()):
        raise UsageError(f"class_names={list(class_names or ())!a}: one class stands twice: give it once")


def _check_batches(batch_size: Any, validation_split: float | None, subset: str | None, format: str) -> None:
    if isinstance(batch_size, bool) or not (batch_size is None or (isinstance(batch_size, int) and batch_size > 0)):
        raise UsageError(f"batch_size={batch_size!r}: give a number of at least 1, or None for single images")
    if validation_split and not 0 < validation_split < 1:
        raise UsageError(f"validation_split={validation_split}: give a share between 0 and 1")
    if bool(subset) != bool(validation_split) or subset not in {None, "training", "validation", "both"}:
        raise UsageError("give validation_split and subset ('training', 'validation' or 'both') together")
    if format != "tf":
        raise UsageError(
            f"format={format!r}: image_dataset returns a tf.data.Dataset ('tf'), with JAX too. For grain use "
            "keras.utils.image_dataset_from_directory(format='grain'), which cannot resume in the middle of an epoch"
        )


def _check_pictures(color_mode: str, interpolation: str, crop: bool, pad: bool) -> None:
    if color_mode not in COLOR_MODES:
        raise UsageError(
            f"color_mode={color_mode!r}: use {' or '.join(_quoted(COLOR_MODES))}; for an alpha channel, decode the files in "
            "your own pipeline and give it to kresume.resumable"
        )
    if interpolation.lower() not in INTERPOLATIONS:
        raise UsageError(f"interpolation={interpolation!r}: use {', '.join(_quoted(INTERPOLATIONS))}")
    if crop and pad:
        raise UsageError("crop_to_aspect_ratio and pad_to_aspect_ratio contradict each other: give one of them")


def _size(image_size: int | tuple[int, int]) -> tuple[int, int]:
    """Returns `(height, width)`."""
    size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if len(size) != 2 or not all(isinstance(length, (int, np.integer)) and length > 0 for length in size):
        raise UsageError(f"image_size={image_size!r}: give (height, width) in pixels")
    return int(size[0]), int(size[1])


def _quoted(names: Sequence[str]) -> list[str]:
    """Returns the names in quotes."""
    return [repr(name) for name in names]


def _channels_first(data_format: str | None) -> bool:
    import keras

    known = ("channels_last", "channels_first")
    name = keras.config.image_data_format() if data_format is None else str(data_format).lower()
    if name not in known:
        raise UsageError(f"data_format={data_format!r}: use {' or '.join(_quoted(known))}")
    return bool(name == "channels_first")


def _decoding(interpolation: str, crop: bool, pad: bool) -> tuple[str, str]:
    """Returns `DecodeSpec`'s names for a way of resizing and an interpolation of Keras."""
    resize = "crop" if crop else "keraspad" if pad else "stretch"
    return resize, "kerasarea" if interpolation == "area" else interpolation


def _in_order(manifest: Manifest, rows: np.ndarray, shuffle: bool) -> np.ndarray:
    return rows if shuffle else in_order_of_paths(manifest, rows)


def _keep_off_the_accelerator() -> None:
    import keras

    from kresume.backend import selection

    if keras.config.backend() != "tensorflow":
        selection.keep_tensorflow_on_cpu()


def _manifest(
    directory: Any,
    add: Any,
    class_names: Sequence[str] | None,
    validation_split: float | None,
    spec: DecodeSpec,
    cache: Cache | None,
    reporter: Reporter,
    follow_links: bool,
    labelled: bool,
) -> Manifest:
    given = _paths(directory)
    more = _paths(add) if add else None
    known = class_names or ()
    sources = list_sources(
        reporter, data=given, add=more, follow_links=follow_links, with_classes=labelled, known=known
    )
    if class_names:
        sources = replace(
            sources,
            data=_of_classes(sources.data, class_names, reporter),
            add=_of_classes(sources.add, class_names, reporter),
        )
    numbered = sources.data is not None and sources.data.numbered
    classes = tuple(class_names or sources.assumed_order())
    missing = sorted(name for name in classes if canonical(name) not in sources.classes)
    if missing and not numbered:
        raise ImagesError(
            f"class_names has {', '.join(missing)}, but {', '.join(given)} has no such class folder: remove them, or "
            "correct the names"
        )
    collected = collect(sources.named(classes), spec, cache, reporter)
    merge = merging.merge(
        None,
        collected.data,
        collected.add,
        None,
        classes=classes,
        val_split=validation_split,
        generation=1 if add else 0,
    )
    if merge.facts.unknown:
        named = ", ".join(sorted(merge.facts.unknown))
        raise ImagesError(
            f"unexpected class folders: {named}; expected {', '.join(classes)}. Give class_names, or move the folders"
        )
    if not len(merge.manifest.train_rows()):
        raise ImagesError(f"no training images in {', '.join(given)}")
    reporter.say(
        f"{counted(len(merge.manifest), 'image')} of {counted(len(classes), 'class')}, "
        f"{len(merge.manifest.train_rows()):,} for training; "
        f"{counted(merge.facts.duplicates, 'duplicate')} counted once, "
        f"{counted(len(collected.quarantine), 'file')} cannot be used"
    )
    for row in collected.quarantine:
        reporter.say(f"cannot be used: {row.path}: {row.reason}")
    for note in (*collected.notes, *merge.facts.notes):
        reporter.say(f"note: {note}")
    return merge.manifest


def _paths(value: Any) -> list[str]:
    """Returns one path or several as a list of strings."""
    return [str(path) for path in ([value] if isinstance(value, (str, Path)) else value or ())]


def _of_classes(listing: Listing | None, class_names: Sequence[str], reporter: Reporter) -> Listing | None:
    """Returns the images of the named classes; prints which class folders are left out."""
    if listing is None or listing.numbered:
        return listing
    named = set(map(canonical, class_names))
    others = sorted({*listing.classes} - named)
    if others:
        reporter.say(f"note: class folders that are not in class_names were left out: {', '.join(others)}")
    files = tuple(each for each in listing.files if each.numbered or each.label in named)
    return replace(listing, files=files, classes=tuple(name for name in listing.classes if name in named))


def _finisher(
    label_mode: str | None, color_mode: str, channels_first: bool, one_by_one: bool, classes: int
) -> Callable[[Any, Any], Any]:
    """Returns the function that converts a batch to the format of Keras's loader."""
    import tensorflow as tf

    def finish(images: Any, labels: Any) -> Any:
        images = tf.cast(images, tf.float32)
        if color_mode == "grayscale":
            images = brightness(images)
        if channels_first:
            images = tf.transpose(images, (0, 3, 1, 2))
        if label_mode == "categorical":
            labels = tf.one_hot(labels, classes, dtype=tf.float32)
        elif label_mode == "binary":
            labels = tf.cast(labels, tf.float32)[:, tf.newaxis]
        if one_by_one:
            images, labels = images[0], labels[0]
        return images if label_mode is None else (images, labels)

    return finish


def _training(stream: ImageStream, finish: Callable[[Any, Any], Any], function: Callable[..., Any] | None) -> Any:
    import tensorflow as tf

    batch = stream.batch_size if stream.shuffle or stream.batch_size == 1 else None
    shape = (batch, stream.spec.height, stream.spec.width, 3)

    def load(mark: Any, numbers: Any) -> Any:
        images, labels = tf.numpy_function(
            lambda pair: stream.load(int(pair[0]), int(pair[1])), [numbers], [tf.uint8, tf.int32], stateful=False
        )
        return mark, finish(tf.ensure_shape(images, shape), tf.ensure_shape(labels, shape[:1]))

    def batches(numbers: Any) -> Any:
        data = numbers.map(load, num_parallel_calls=READERS, deterministic=True)
        if function is not None:
            data = user_map.mapped(data, function, stream.seed, training=True, threads=THREADS)
        return data.prefetch(4)

    return dataset_of(stream, stream.batches, tf.TensorSpec([2], tf.int64), batches)


def _validation(
    manifest: Manifest,
    rows: np.ndarray,
    spec: DecodeSpec,
    cache: Cache | None,
    batch_size: int,
    finish: Callable[[Any, Any], Any],
    function: Callable[..., Any] | None,
    seed: int,
) -> Any:
    import tensorflow as tf

    reader = PictureReader(manifest, spec, cache)

    def load(chosen: Any) -> Any:
        images = tf.numpy_function(reader, [chosen], tf.uint8, stateful=False)
        images = tf.ensure_shape(images, (chosen.shape[0], spec.height, spec.width, 3))
        labels = tf.gather(tf.constant(manifest.labels, tf.int32), chosen)
        return tf.stack([tf.constant(0, tf.int64), chosen[0]]), finish(images, labels)

    batches = tf.data.Dataset.from_tensor_slices(rows).batch(batch_size, drop_remainder=batch_size == 1)
    data = batches.map(load, num_parallel_calls=READERS)
    if function is not None:
        data = user_map.mapped(data, function, seed, training=False, threads=THREADS)
    return without_autotuner(data.map(lambda mark, element: element).prefetch(4))
