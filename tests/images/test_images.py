"""Tests the images wing: sources, decoding, cache, manifest and pipeline."""

import functools
import gc
import hashlib
import io
import json
import os
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kresume import runs
from kresume.backend.hosts import Process
from kresume.checkpoints import snapshot
from kresume.errors import ImagesError, UsageError
from kresume.evaluation.caches import open_cache
from kresume.images import augment, containers, conventions, decode, decode_graph, headers, manifest, merging, pipeline
from kresume.images.cache import Cache
from kresume.images.order import Order
from kresume.images.prepare import prepare
from kresume.images.reader import PictureReader
from kresume.images.sources import list_images
from kresume.reporter import Reporter
from kresume.tasks.single_label import ROWS, SINGLE_LABEL
from kresume.values import decode_spec
from kresume.values.decode_spec import DecodeSpec
from tests.helpers import forking
from tests.helpers.pictures import CLASSES, write_pictures
from tests.helpers.runs import TINY, make_interrupted, run_training

pytestmark = pytest.mark.optimized_graphs

SPEC = DecodeSpec(12, 12)


def encoded(array, kind="PNG", **options):
    file = io.BytesIO()
    Image.fromarray(array).save(file, kind, **options)
    return file.getvalue()


def gradient(height=40, width=60):
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows * 255 // height, columns * 255 // width, rows * 0 + 80], axis=-1).astype(np.uint8)


# Sources


@pytest.mark.one_backend
@pytest.mark.parametrize("collects", [True, False])
def test_what_the_caller_froze_stays_frozen(quiet, collects):
    """Preparing images unfreezes only what it froze: a server, or these tests, keep the frameworks out of collections.

    Threads of tests before may free some of these objects meanwhile.
    """
    gc.freeze()
    frozen = gc.get_freeze_count()
    if collects:
        gc.enable()  # the tests turn it off
    try:
        prepare([], SPEC, None, quiet)
    finally:
        gc.disable()
    assert gc.get_freeze_count() > frozen // 2


@pytest.mark.one_backend
def test_class_folders_are_listed_in_a_fixed_order(pictures, quiet):
    """Class folders are listed in sorted order; every file has its label and source."""
    listing = list_images([pictures / "old"], quiet)
    assert listing.classes == CLASSES
    assert len(listing.files) == 24
    assert {found.label for found in listing.files} == set(CLASSES)
    assert list(listing.files) == list(list_images([pictures / "old"], quiet).files)


@pytest.mark.one_backend
def test_litter_is_passed_over_and_other_files_are_counted(tmp_path, quiet):
    """Hidden files and litter are ignored; other files are skipped and counted; an ending is not needed."""
    write_pictures(tmp_path, 2, 0, ("a", "b"))
    for name in (".DS_Store", "Thumbs.db", "notes.txt"):
        (tmp_path / "a" / name).write_bytes(b"x")
    shutil.move(tmp_path / "a" / "0.png", tmp_path / "a" / "picture without ending")
    listing = list_images([tmp_path], quiet)
    assert len(listing.files) == 4
    assert any("1 .txt" in note for note in listing.notes)


@pytest.mark.one_backend
def test_an_unpacked_archives_top_folder_and_split_folders_are_understood(tmp_path, quiet):
    """An archive's top folder is skipped; train, val and test are splits; test is left out and named."""
    for split in ("train", "validation", "test"):
        write_pictures(tmp_path / "archive" / split, 2, 0, ("a", "b"))
    listing = list_images([tmp_path], quiet)
    assert listing.classes == ("a", "b")
    assert {found.split for found in listing.files} == {"train", "val"}
    assert any("test/ was left out" in note for note in listing.notes)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "no such path"),
        (lambda path: path.mkdir(), "is empty"),
        (lambda path: path.write_bytes(b"x"), "is a file of a kind that kresume does not read"),
        (lambda path: (path.mkdir(), (path / "a.png").write_bytes(b"x")), "no class folders"),
        (lambda path: (path / "a").mkdir(parents=True), "they contain no images"),
    ],
)
@pytest.mark.one_backend
def test_what_is_no_source_says_what_was_expected(tmp_path, quiet, make, words):
    """Each wrong path is an error that says what is expected."""
    make(tmp_path / "source")
    with pytest.raises(ImagesError, match=words):
        list_images([tmp_path / "source"], quiet)


# Decoding


@functools.cache
def orientation_in_a_graph():
    """Returns the graph that finds a file's orientation, traced once."""
    import tensorflow as tf

    return tf.function(containers.orientation, input_signature=[tf.TensorSpec([], tf.string)], autograph=False)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.one_backend
def test_exif_orientation_is_applied_inside_the_graph(orientation, kind):
    """EXIF orientation is applied in the graph, by TensorFlow operations alone."""
    import tensorflow as tf

    exif = Image.Exif()
    exif[containers.ORIENTATION_TAG] = orientation
    options = {"quality": 95} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    data = encoded(gradient(), kind, exif=exif, **options)
    assert int(orientation_in_a_graph()(tf.constant(data))) == orientation
    from PIL import ImageOps

    upright = (
        ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB").resize((12, 12), Image.Resampling.BOX)
    )
    difference = abs(decode.decode(data, SPEC).astype(int) - np.asarray(upright).astype(int)).mean()
    assert difference < 3


@pytest.mark.one_backend
def test_bilinear_is_what_keras_loads(pictures):
    """`--interpolation bilinear` gives the pixels of image_dataset_from_directory, rounded."""
    import keras

    data = keras.utils.image_dataset_from_directory(
        pictures / "old", image_size=(12, 12), shuffle=False, batch_size=1, verbose=False
    )
    paths = data.file_paths
    for path, (images, _) in zip(paths[:4], data, strict=False):
        with open(path, "rb") as file:
            ours = decode.decode(file.read(), DecodeSpec(12, 12, interpolation="bilinear"))
        np.testing.assert_array_equal(ours, np.round(np.asarray(images)[0]).astype(np.uint8))


@pytest.mark.one_backend
@pytest.mark.parametrize("size", [(43, 61), (70, 37), (50, 80), (7, 30)])
def test_keraspad_is_what_keras_pads(tmp_path, size):
    """`keraspad` gives the pixels of Keras's loader with `pad_to_aspect_ratio`, also where a border is no whole pixel."""
    import keras

    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.png").write_bytes(encoded(gradient(*size)))
    data = keras.utils.image_dataset_from_directory(
        tmp_path, image_size=(32, 32), labels=None, pad_to_aspect_ratio=True, verbose=False
    )
    ours = decode.decode(encoded(gradient(*size)), DecodeSpec(32, 32, "keraspad", "bilinear"))
    np.testing.assert_array_equal(ours, np.round(next(iter(data))[0]).astype(np.uint8))


@pytest.mark.parametrize("resize", decode_spec.RESIZES)
@pytest.mark.parametrize("interpolation", decode_spec.INTERPOLATIONS)
@pytest.mark.parametrize("size", [(6, 9), (200, 31)])
@pytest.mark.one_backend
def test_every_way_of_resizing_gives_the_size_asked_for(resize, interpolation, size):
    """Every way of resizing gives the requested size: enlarging, and shrinking one side beside that."""
    import tensorflow as tf

    resize_one = decode_graph.resizer(DecodeSpec(30, 50, resize, interpolation))
    picture = resize_one(tf.constant(gradient(*size))).numpy()
    assert picture.shape == (30, 50, 3)
    assert picture.max() > 100


@pytest.mark.one_backend
def test_padding_is_black_and_cropping_keeps_the_middle():
    """`pad` keeps the whole picture between black bars; `crop` cuts the longer dimension."""
    wide = np.full((20, 40, 3), 200, np.uint8)
    wide[:, :10] = 0
    padded = decode.decode(encoded(wide), DecodeSpec(20, 20, "pad"))
    assert padded[:5].max() == 0
    assert padded[10, 15, 0] == 200
    cropped = decode.decode(encoded(wide), DecodeSpec(20, 20, "crop"))
    assert (cropped == 200).all()


@pytest.mark.one_backend
def test_a_bomb_is_refused_by_its_header():
    """A picture with more pixels than the limit is refused by its header and never decoded."""
    with pytest.raises(ImagesError, match="more than the limit of 100"):
        headers.read_header(encoded(gradient()), max_pixels=100)


# Cache and the prepare pass


@pytest.fixture
def cache(tmp_path):
    return Cache.open(SPEC, tmp_path / "cache")


@pytest.mark.one_backend
def test_each_picture_is_decoded_once_in_its_life(pictures, cache, quiet):
    """Each picture is decoded once: adding k pictures to n decodes k; an unchanged folder is not read."""
    old, new = list_images([pictures / "old"], quiet), list_images([pictures / "new"], quiet)
    first = prepare(old.files, SPEC, cache, quiet)
    assert (first.decoded, first.read) == (24, 24)
    second = prepare(old.files, SPEC, cache, quiet)
    assert (second.decoded, second.read) == (0, 0)
    assert [image.facts for image in first.images] == [image.facts for image in second.images]
    both = prepare((*old.files, *new.files), SPEC, cache, quiet)
    assert (both.decoded, both.read) == (18, 18)


@pytest.mark.one_backend
def test_the_cache_holds_exactly_what_decoding_gives(pictures, cache, quiet):
    """Training from the cache and from the files gives the same bytes."""
    files = list_images([pictures / "old"], quiet).files
    prepared = prepare(files, SPEC, cache, quiet)
    table = merging.merge(None, prepared, None, None, classes=CLASSES, val_split=None, generation=0).manifest
    rows = np.arange(len(table))
    cached = PictureReader(table, SPEC, Cache.open(SPEC, cache.folder.parent))(rows)
    streamed = PictureReader(table, SPEC, None)(rows)
    assert cached.tobytes() == streamed.tobytes()


@pytest.mark.one_backend
def test_a_damaged_cache_is_noticed_before_it_trains(pictures, cache, quiet):
    """A flipped byte in a cache shard is an error with a remedy, not a wrong picture."""
    files = list_images([pictures / "old"], quiet).files
    prepared = prepare(files, SPEC, cache, quiet)
    (shard,) = cache.folder.glob("*.bin")
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    again = Cache.open(SPEC, cache.folder.parent)
    with pytest.raises(ImagesError, match=r"damaged .*remove this folder"):
        again.read(again.find([image.facts.sha256 for image in prepared.images]))


@pytest.mark.one_backend
def test_a_damaged_row_of_the_cache_is_read_from_its_file(pictures, cache, quiet):
    """A damaged cache row is decoded again from its file to the same bytes; without the file it is broken."""
    prepared = prepare(list_images([pictures / "old"], quiet).files, SPEC, cache, quiet)
    table = merging.merge(None, prepared, None, None, classes=CLASSES, val_split=None, generation=0).manifest
    rows = np.arange(len(table))
    expected = PictureReader(table, SPEC, None)(rows)
    (shard,) = cache.folder.glob("*.bin")
    data = bytearray(shard.read_bytes())
    data[5 * cache.row_bytes + 7] ^= 1
    shard.write_bytes(data)
    reader = PictureReader(table, SPEC, Cache.open(SPEC, cache.folder.parent))
    for _ in range(2):
        assert reader(rows).tobytes() == expected.tobytes()


@pytest.mark.one_backend
def test_two_processes_may_trim_one_cache(pictures, cache, quiet, monkeypatch):
    """Two processes may trim one cache: a shard that disappears after listing is no error."""
    prepare(list_images([pictures / "old"], quiet).files, SPEC, cache, quiet)
    (index,) = cache.folder.glob("shard-*.npy")
    glob = Path.glob
    gone = [cache.folder / f"shard-{number}.bin" for number in (1, 2)]
    (cache.folder / "shard-3.npy").write_bytes(index.read_bytes())  # its rows were removed since it was listed
    monkeypatch.setattr(
        Path, "glob", lambda path, pattern: [*glob(path, pattern), *(gone if ".bin" in pattern else [])]
    )
    cache.trim()
    assert len(Cache.open(SPEC, cache.folder.parent)) == 24


@pytest.mark.one_backend
def test_a_limit_that_was_asked_for_holds_for_later_commands(tmp_path):
    """A requested cache limit holds for later commands: `kresume eval` does not trim the cache further."""
    assert Cache.open(SPEC, tmp_path).limit_bytes is None
    assert open_cache(SPEC, str(tmp_path)).limit_bytes == 50 * 10**9
    Cache.open(SPEC, tmp_path, limit_bytes=200 * 10**9)
    assert Cache.open(DecodeSpec(16, 16), tmp_path).limit_bytes == 200 * 10**9


@pytest.mark.one_backend
def test_what_cannot_be_read_is_set_aside_with_its_reason(tmp_path, cache, quiet):
    """A web page, an empty and a truncated file are quarantined with a reason; the others train."""
    write_pictures(tmp_path / "source", 2, 0, ("a", "b"))
    (tmp_path / "source/a/page.jpg").write_bytes(b"<!DOCTYPE html><html>404</html>")
    (tmp_path / "source/a/empty.jpg").write_bytes(b"")
    whole = encoded(gradient(200, 200), "JPEG")
    (tmp_path / "source/b/cut.jpg").write_bytes(whole[: len(whole) // 2])
    prepared = prepare(list_images([tmp_path / "source"], quiet).files, SPEC, cache, quiet)
    assert len(prepared.images) == 4
    reasons = {os.path.basename(row.path): row.reason for row in prepared.quarantine}
    assert set(reasons) == {"page.jpg", "empty.jpg", "cut.jpg"}
    assert "web page" in reasons["page.jpg"]


@pytest.mark.one_backend
def test_a_changed_file_is_read_again(tmp_path, cache, quiet):
    """A replaced file is read again, because its size or time differs."""
    write_pictures(tmp_path / "source", 1, 0, ("a",))
    (path,) = (tmp_path / "source/a").iterdir()
    before = prepare(list_images([tmp_path / "source"], quiet).files, SPEC, cache, quiet)
    time.sleep(0.01)
    path.write_bytes(encoded(gradient()))
    after = prepare(list_images([tmp_path / "source"], quiet).files, SPEC, cache, quiet)
    assert after.decoded == 1
    assert before.images[0].facts.sha256 != after.images[0].facts.sha256


@pytest.mark.one_backend
def test_a_torn_shard_does_not_count(pictures, cache, quiet):
    """A shard with truncated bytes or without an index is decoded again."""
    files = list_images([pictures / "old"], quiet).files
    prepare(files, SPEC, cache, quiet)
    (shard,) = cache.folder.glob("*.bin")
    shard.write_bytes(shard.read_bytes()[:-1])
    again = Cache.open(SPEC, cache.folder.parent)
    assert len(again) == 0
    assert prepare(files, SPEC, again, quiet).decoded == 24


@pytest.mark.one_backend
def test_the_limit_removes_what_was_unused_for_longest(pictures, tmp_path, quiet):
    """The cache limit removes what was unused longest; shards that this process uses stay.

    It holds for any size of pictures.
    """
    old, new = (list_images([pictures / name], quiet).files for name in ("old", "new"))
    other = Cache.open(DecodeSpec(16, 16), tmp_path / "cache")
    prepare(old, other.spec, other, quiet)
    prepare(old, SPEC, Cache.open(SPEC, tmp_path / "cache"), quiet)
    small = Cache.open(SPEC, tmp_path / "cache", limit_bytes=24 * 12 * 12 * 3 + 100)
    done = prepare(new, SPEC, small, quiet)
    assert not list(other.folder.glob("*.bin"))
    again = Cache.open(SPEC, tmp_path / "cache")
    assert len(again) == 18
    assert (again.find([image.facts.sha256 for image in done.images]) >= 0).all()


@pytest.mark.one_backend
def test_more_pictures_than_the_limit_are_not_cached(pictures, tmp_path, capsys):
    """More pictures than the limit are used without a cache; the message names the option that raises it."""
    cache = Cache.open(SPEC, tmp_path / "cache", limit_bytes=20 * 12 * 12 * 3)
    done = prepare(list_images([pictures / "old"], Reporter(quiet=True)).files, SPEC, cache, Reporter(quiet=True))
    assert (len(done.images), done.decoded, len(Cache.open(SPEC, tmp_path / "cache"))) == (24, 0, 0)
    assert "--cache-limit SIZE raises it" in " ".join(capsys.readouterr().err.split())


@pytest.mark.one_backend
def test_a_full_disk_is_refused_politely(pictures, tmp_path, capsys, monkeypatch):
    """On a short disk nothing is cached, and the warning says where the cache could be."""
    cache = Cache.open(SPEC, tmp_path / "cache")
    monkeypatch.setattr(Cache, "room_for", lambda self, count: False)
    done = prepare(list_images([pictures / "old"], Reporter(quiet=True)).files, SPEC, cache, Reporter(quiet=True))
    assert (len(done.images), done.decoded) == (24, 0)
    assert "--cache DIR" in capsys.readouterr().err


# Manifest


def merged(quiet, parent=None, *, data=None, add=None, val=None, generation=0, val_split=0.25, classes=CLASSES):
    prepared = [
        prepare(list_images([path], quiet).files, SPEC, None, quiet) if path else None for path in (data, add, val)
    ]
    return merging.merge(parent, *prepared, classes=classes, val_split=val_split, generation=generation)


@pytest.mark.one_backend
def test_an_images_side_is_decided_once(pictures, tmp_path, quiet):
    """An image's split is decided once: added images, moved folders and another split never change it."""
    first = merged(quiet, data=pictures / "old").manifest
    moved = tmp_path / "moved"
    shutil.copytree(pictures / "old", moved)
    second = merged(quiet, first, data=moved, add=pictures / "new", generation=1, val_split=0.9).manifest
    sides = dict(zip(second.sha256s.tolist(), second.is_val.tolist(), strict=True))
    for sha256, side in zip(first.sha256s.tolist(), first.is_val.tolist(), strict=True):
        assert sides[sha256] == side


@pytest.mark.one_backend
def test_old_and_new_are_told_apart_by_content(pictures, tmp_path, quiet):
    """Origin is decided by content: images that the parent knows stay old when added again."""
    first = merged(quiet, data=pictures / "old").manifest
    growing = tmp_path / "inbox"
    shutil.copytree(pictures / "old", growing)
    shutil.copytree(pictures / "new", growing, dirs_exist_ok=True)
    result = merged(quiet, first, add=growing, generation=1)
    assert (result.facts.added, result.facts.known) == (18, 24)
    assert np.bincount(result.manifest.origins).tolist() == [24, 18]


@pytest.mark.one_backend
def test_the_same_images_elsewhere_are_the_same_manifest(pictures, tmp_path, quiet):
    """The digest, and so the order of training, depends on contents and labels, not on paths."""
    shutil.copytree(pictures / "old", tmp_path / "elsewhere")
    here, there = merged(quiet, data=pictures / "old"), merged(quiet, data=tmp_path / "elsewhere")
    assert here.manifest.digest() == there.manifest.digest()


@pytest.mark.one_backend
def test_exact_duplicates_count_once_and_conflicts_are_left_out(tmp_path, quiet):
    """An exact duplicate counts once; under two labels an image is left out and named."""
    write_pictures(tmp_path, 3, 0, ("a", "b"))
    shutil.copy(tmp_path / "a" / "0.png", tmp_path / "a" / "copy.png")
    shutil.copy(tmp_path / "a" / "1.png", tmp_path / "b" / "wrong.png")
    result = merged(quiet, data=tmp_path, classes=("a", "b"), val_split=None)
    assert len(result.manifest) == 5
    assert result.facts.duplicates == 1
    assert [(label, other) for _, label, other in result.facts.conflicts] == [("b", "a")]
    assert any("two labels" in note for note in result.facts.notes)


@pytest.mark.one_backend
def test_every_class_gets_a_validation_image(pictures, quiet):
    """Every class has a validation image, even with a tiny split, so that no class is scored 0 of 0."""
    table = merged(quiet, data=pictures / "old", val_split=0.001).manifest
    assert np.bincount(table.labels[table.val_rows()], minlength=3).tolist() == [1, 1, 1]


@pytest.mark.one_backend
def test_validation_images_given_apart_never_train(pictures, quiet):
    """Images of `--val` never train; without a split, all others train."""
    table = merged(quiet, data=pictures / "old", val=pictures / "val", val_split=None).manifest
    assert len(table.val_rows()) == 9
    assert len(table.train_rows()) == 24
    assert not set(table.sha256s[table.val_rows()]) & set(table.sha256s[table.train_rows()])


@pytest.mark.one_backend
def test_unknown_class_folders_are_counted_not_trained(tmp_path, quiet):
    """Folders of unknown classes are counted and never enter the table."""
    write_pictures(tmp_path, 2, 0, ("circle", "zebra"))
    result = merged(quiet, data=tmp_path)
    assert result.facts.unknown == {"zebra": 2}
    assert len(result.manifest) == 2


@pytest.mark.one_backend
def test_a_manifest_survives_its_file(pictures, tmp_path, quiet):
    """A manifest is equal after writing and reading, with classes and order."""
    table = merged(quiet, data=pictures / "old").manifest
    table.write(tmp_path / "images.parquet")
    again = manifest.Manifest.read(tmp_path / "images.parquet")
    assert again.digest() == table.digest()
    assert again.table.equals(table.table)
    (tmp_path / "images.parquet").write_bytes(b"no parquet")
    with pytest.raises(ImagesError, match="restore it from a copy"):
        manifest.Manifest.read(tmp_path / "images.parquet")


# Conventions, augmentation, pipeline


@pytest.mark.parametrize(("name", "mode"), [("-1-1", "tf"), ("caffe", "caffe"), ("torch", "torch")])
@pytest.mark.one_backend
def test_conventions_are_those_of_keras(name, mode):
    """Pixel conventions equal keras.applications' preprocess_input, alone and inside tf.data."""
    import keras
    import tensorflow as tf

    images = np.random.default_rng(0).integers(0, 256, (2, 5, 4, 3)).astype(np.uint8)
    theirs = keras.applications.imagenet_utils.preprocess_input(images.astype("float32"), mode=mode)
    to_model = conventions.to_model_function(name)
    np.testing.assert_allclose(np.asarray(to_model(images)), np.asarray(theirs), atol=1e-5)
    (streamed,) = tf.data.Dataset.from_tensors(images).map(to_model)
    np.testing.assert_allclose(np.asarray(streamed), np.asarray(to_model(images)), atol=1e-6)


@pytest.mark.one_backend
def test_a_convention_of_ones_own(tmp_path):
    """FILE.py:FUNCTION is loaded as a convention and gets float pictures."""
    (tmp_path / "mine.py").write_text("def halve(images):\n    return images / 2\n")
    to_model = conventions.to_model_function(f"{tmp_path / 'mine.py'}:halve")
    assert float(np.asarray(to_model(np.full((1, 1, 1, 3), 9, np.uint8))).max()) == 4.5
    with pytest.raises(UsageError, match="no function"):
        conventions.to_model_function(f"{tmp_path / 'mine.py'}:nothing")
    with pytest.raises(UsageError, match="use auto, 0-255"):
        conventions.to_model_function("0-2")


@pytest.fixture
def table(pictures, quiet):
    return merged(quiet, data=pictures / "old", val_split=None).manifest


def _in_rows(labels):
    return SINGLE_LABEL.graph_targets(labels, ROWS, 3)


def digests(table, start, count, preset="light", mixup=0.0, **singles):
    rows = table.train_rows()
    data = pipeline.training_dataset(
        PictureReader(table, SPEC, None),
        rows,
        table.labels[rows],
        Order(3, len(rows), 5),
        start_step=start,
        image_size=(12, 12),
        pixels=conventions.to_model_function("0-1"),
        augment=augment.augmenter(preset, 3, mixup, **singles),
        targets=_in_rows if mixup or singles.get("cutmix") else None,
    )
    batches = [(images.numpy(), labels.numpy()) for images, labels in data.take(count)]
    return [hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest() for images, labels in batches]


@pytest.mark.parametrize(("preset", "mixup"), [("none", 0.0), ("light", 0.0), ("strong", 0.2)])
def test_the_stream_from_any_step_is_the_rest_of_the_whole(table, preset, mixup):
    """A stream started at step 4 has the bytes of the whole stream from there: augmentation too."""
    assert digests(table, 4, 5, preset, mixup) == digests(table, 0, 9, preset, mixup)[4:]


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize(
    "singles", [{"cutmix": 1.0}, {"rand_augment": 0.5}, {"erase": 1.0}, {"mixup": 0.2, "cutmix": 0.5}]
)
@pytest.mark.sample("singles1", "singles3")
def test_single_augmentations_know_their_position_too(table, singles):
    """CutMix, RandAugment and erasing give the same bytes from any step, and change the pictures."""
    whole = digests(table, 0, 5, "none", **singles)
    assert digests(table, 3, 2, "none", **singles) == whole[3:]
    assert len(set(whole)) == 5
    assert whole != digests(table, 0, 5, "none")
    with pytest.raises(UsageError, match="from 0 to 1"):
        augment.augmenter("none", 0, erase=2.0)


@pytest.mark.one_backend
def test_a_file_that_breaks_keeps_its_place(tmp_path, quiet):
    """A file that breaks is replaced by the next image of the order; all other indices stay the same.

    It is named once.
    """
    write_pictures(tmp_path, 4, 0, ("a", "b", "c"))
    table = merged(quiet, data=tmp_path, classes=("a", "b", "c"), val_split=None).manifest
    rows, order = table.train_rows(), Order(1, 12, 4)

    def batches(on_broken):
        data = pipeline.training_dataset(
            PictureReader(table, SPEC, None),
            rows,
            table.labels[rows],
            order,
            start_step=0,
            image_size=(12, 12),
            pixels=conventions.to_model_function("0-255"),
            augment=None,
            on_broken=on_broken,
        )
        return [(images.numpy(), labels.numpy()) for images, labels in data.take(6)]

    whole = batches(None)
    broken_row = int(rows[order.take(5, 1)[0]])
    (path,) = table.paths(np.array([broken_row]))
    os.remove(path)
    named = []
    after = batches(lambda row, reason: named.append((row, reason)))
    assert [row for row, _ in named] == [broken_row]
    assert "can no longer be read" in named[0][1]
    flat, flat_after = (np.concatenate([images for images, _ in each]) for each in (whole, after))
    labels, labels_after = (np.concatenate([label for _, label in each]) for each in (whole, after))
    for position, index in enumerate(order.take(0, 24)):
        source = position + 1 if rows[index] == broken_row else position
        np.testing.assert_array_equal(flat_after[position], flat[source])
        assert labels_after[position] == labels[source]


@pytest.mark.one_backend(trains=True)
def test_a_run_goes_on_without_a_file_that_broke(tmp_path, monkeypatch):
    """A run without a cache finishes although a training image vanished; its events name the file."""
    write_pictures(tmp_path / "old", 8, 0)
    arguments = {"data": [str(tmp_path / "old")], "cache": "off", "snapshot_every": "1", **TINY}
    with monkeypatch.context() as patch:
        patch.setattr(snapshot, "prune_snapshots", lambda *_: None)
        whole = Path(run_training(out=str(tmp_path / "run"), **arguments).run)
    table = manifest.Manifest.read(whole / "images.parquet")
    first = snapshot.list_snapshots(whole / "snapshots")[0][1].name
    make_interrupted(whole, first)
    gone = table.paths(table.train_rows())
    os.remove(gone[0])
    again = run_training(out=str(whole))
    assert runs.open_run(whole).status == "accepted"
    assert str(again)
    events = [json.loads(line) for line in (whole / "events.jsonl").read_text().splitlines()]
    broken = [event for event in events if event["event"] == "file broke"]
    assert [event["sha256"] for event in broken] == [table.sha256s[table.train_rows()[0]].decode()]
    assert gone[0] in broken[0]["reason"]


def test_augmentation_still_takes_our_seeds(table):
    """Keras's augmentation uses our seeds: pictures differ between positions, never at the same position.

    The hook through which positions become seeds exists.
    """
    assert len(set(digests(table, 0, 6, "light"))) == 6
    assert digests(table, 0, 1, "light") != digests(table, 0, 1, "none")
    pinned = augment.augmenter("strong", 1, 0.2)
    import tensorflow as tf

    images = tf.ones((2, 12, 12, 3)) * tf.reshape(tf.range(12.0), (1, 12, 1, 1)) * 20
    labels = tf.eye(2)
    # Inside tf.data, as in use: there Keras's layers consist of TensorFlow operations under either backend.
    positions = tf.data.Dataset.from_tensor_slices(tf.constant([8, 8, 16], tf.int64))
    one, same, other = (mixed.numpy() for mixed, _ in positions.map(lambda position: pinned(images, labels, position)))
    assert one.tobytes() == same.tobytes()
    assert one.tobytes() != other.tobytes()


@pytest.mark.one_backend
def test_scoring_sees_each_image_once(table):
    """Scoring predicts each image once, in padded batches of one shape; padding is not counted."""
    reader, rows = PictureReader(table, SPEC, None), np.arange(13)
    batches = list(pipeline.scoring_batches(reader, rows, 5, conventions.to_model_function("0-255")))
    assert [(images.shape, count) for images, count in batches] == [((5, 12, 12, 3), 5)] * 2 + [((5, 12, 12, 3), 3)]
    seen = np.concatenate([images[:count] for images, count in batches])
    np.testing.assert_array_equal(seen, reader(rows).astype("float32"))


@pytest.mark.one_backend
@pytest.mark.parametrize("lost", [(), (3,), (0, 1, 2, 3), (12, 0), tuple(range(1, 13))])
def test_what_stands_in_for_unreadable_images_does_not_depend_on_the_number_of_processes(table, lost):
    """The statistics of batch normalisation are those of one process, also where all images of a share are unreadable."""

    class Reader(PictureReader):
        def attempt(self, rows):
            pictures, wrong = super().attempt(rows)
            return pictures, {**wrong, **{place: "gone" for place, row in enumerate(rows.tolist()) if row in lost}}

    reader, rows, pixels = Reader(table, SPEC, None), np.arange(13), conventions.to_model_function("0-255")
    one = list(pipeline.full_batches(reader, rows, 6, pixels))
    left = PictureReader(table, SPEC, None)(np.array([row for row in rows if row not in lost])).astype("float32")
    known = {each.tobytes() for each in left}
    assert {each.tobytes() for batch in one for each in batch} == known
    for count in (2, 3, 6):
        shares = [list(pipeline.full_batches(reader, rows, 6, pixels, Process(index, count))) for index in range(count)]
        for place, batch in enumerate(one):
            assert np.concatenate([share[place] for share in shares]).tobytes() == batch.tobytes(), (count, place)


@pytest.mark.one_backend
def test_no_readable_image_at_all_is_an_error(table):
    """There is nothing to measure."""

    class Reader(PictureReader):
        def attempt(self, rows):
            return super().attempt(rows)[0], dict.fromkeys(range(len(rows)), "gone")

    batches = pipeline.full_batches(Reader(table, SPEC, None), np.arange(5), 4, conventions.to_model_function("0-255"))
    with pytest.raises(ImagesError, match="no training image can be read any more"):
        list(batches)


@pytest.mark.one_backend
def test_a_picture_that_changed_since_is_an_error_not_another_picture(tmp_path, quiet):
    """A picture that changed since the scan is an error.

    Without a cache, each file is checked against its recorded hash whenever it is drawn.
    """
    write_pictures(tmp_path, 2, 0, ("a", "b"))
    table = merged(quiet, data=tmp_path, classes=("a", "b"), val_split=None).manifest
    (tmp_path / "a" / "0.png").write_bytes(encoded(gradient()))
    with pytest.raises(ImagesError, match="has changed since it was recorded"):
        PictureReader(table, SPEC, None)(np.arange(4))


FILLING = """
import sys
from pathlib import Path
from kresume.images.cache import Cache
from kresume.values.decode_spec import DecodeSpec
from kresume.images.prepare import prepare
from kresume.images.sources import list_images
from kresume.reporter import Reporter
quiet, spec = Reporter(quiet=True), DecodeSpec(12, 12)
for _ in range(3):
    cache = Cache.open(spec, Path(sys.argv[2]))
    done = prepare(list_images([sys.argv[1]], quiet).files, spec, cache, quiet)
    assert (cache.find([image.facts.sha256 for image in done.images]) >= 0).all()
"""


@pytest.mark.one_backend
def test_processes_share_a_cache(pictures, tmp_path, quiet):
    """Three processes may fill one cache at once; its contents verify, and nothing is decoded again."""
    running = [forking.start([sys.executable, "-c", FILLING, pictures / "old", tmp_path / "cache"]) for _ in range(3)]
    assert [process.wait() for process in running] == [0, 0, 0]
    cache = Cache.open(SPEC, tmp_path / "cache")
    done = prepare(list_images([pictures / "old"], quiet).files, SPEC, cache, quiet)
    assert (done.decoded, done.read) == (0, 0)
    expected = [decode.decode(Path(image.found.path).read_bytes(), SPEC) for image in done.images]
    found = cache.find([image.facts.sha256 for image in done.images])
    assert cache.read(found).tobytes() == np.stack(expected).tobytes()
