"""Tests `kresume.image_dataset`: every argument of `image_dataset_from_directory`, and `map`."""

import inspect
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
from PIL import Image

import kresume
from kresume.drop_in import image_dataset as room
from kresume.drop_in import user_map
from kresume.drop_in.stream import stream_of
from kresume.errors import ImagesError, UsageError
from tests.helpers.backends import few_under_jax
from tests.helpers.pictures import CLASSES, draw, write_pictures

pytestmark = pytest.mark.optimized_graphs

THEIRS = keras.utils.image_dataset_from_directory


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Writes three classes of seven pictures each, of various sizes and shapes."""
    top = tmp_path_factory.mktemp("dataset")
    for place, label in enumerate(CLASSES):
        for index in range(7):
            picture = Image.fromarray(draw(label, 100 * place + index, size=20 + 3 * index))
            (top / label / "inner").mkdir(parents=True, exist_ok=True)
            width = picture.width + (0, 9, 30)[index % 3]
            name = f"inner/{index}.png" if index % 2 else f"{9 - index}.png"
            picture.resize((width, picture.height)).save(top / label / name)
    return top


def ours(folder, **options):
    return kresume.image_dataset(folder, cache=None, **{"image_size": (12, 16), "verbose": False, **options})


def theirs(folder, **options):
    return THEIRS(folder, **{"image_size": (12, 16), "verbose": False, **options})


def arrays(data):
    """Concatenates all batches of a finite dataset."""
    items = [item if isinstance(item, tuple) else (item,) for item in data]
    return [[np.asarray(part) for part in item] for item in items]


@pytest.mark.one_backend
def test_the_arguments_are_those_of_the_installed_keras():
    """Names, order and defaults of the arguments are those of the installed Keras.

    An argument that Keras's next version adds fails here.
    """
    mine, keras_own = (inspect.signature(each).parameters for each in (kresume.image_dataset, THEIRS))
    assert [(name, mine[name].default) for name in keras_own] == [
        (name, parameter.default) for name, parameter in keras_own.items()
    ]
    assert list(mine)[: len(keras_own)] == list(keras_own)
    for name in list(mine)[len(keras_own) :]:
        assert mine[name].kind is inspect.Parameter.KEYWORD_ONLY
    for name in mine:
        assert f"\n    {name}: " in inspect.getdoc(kresume.image_dataset)


CROP, PAD = {"crop_to_aspect_ratio": True}, {"pad_to_aspect_ratio": True}
RESIZES = {
    "bilinear": [{}, CROP, PAD],
    "nearest": [{}, PAD],
    "bicubic": [{}, CROP],
    "area": [{}, PAD],
    "lanczos3": [CROP],
    "lanczos5": [PAD],
    "gaussian": [{}, PAD],  # Keras fails to crop with this and the next
    "mitchellcubic": [{}],
}


@pytest.mark.parametrize(
    "options",
    [
        *[
            pytest.param({"interpolation": name, **resize}, id=f"{name} {' '.join(resize)}")
            for name, resizes in RESIZES.items()
            for resize in resizes
        ],
        {"interpolation": "Bicubic"},
        {"image_size": 14},
        {"image_size": [40, 48]},
        {"image_size": (40, 48), "interpolation": "area"},
        {"label_mode": "categorical"},
        {"label_mode": "binary", "class_names": ["stripes", "circle"]},
        {"label_mode": None},
        {"labels": None},
        {"class_names": ["stripes", "circle", "square"]},
        {"class_names": ["square"]},
        {"color_mode": "grayscale"},
        {"data_format": "channels_first"},
        {"data_format": "channels_last"},
        {"data_format": "channels_first", "color_mode": "grayscale"},
        {"batch_size": 5},
        {"batch_size": None},
        {"batch_size": None, "labels": None, "data_format": "channels_first"},
        {"batch_size": 100},
        {"format": "tf"},
    ],
)
@pytest.mark.one_backend
@pytest.mark.sample(
    "bilinear crop_to_aspect_ratio",
    "bilinear pad_to_aspect_ratio",
    "nearest pad_to_aspect_ratio",
    "area ",
    "lanczos3 crop_to_aspect_ratio",
    "gaussian ",
    "options17",
    "options19",
    "options22",
    "options24",
    "options27",
    "options30",
)
def test_without_shuffling_the_batches_are_kerass(folder, options):
    """Without shuffling, the batches are Keras's: images and labels in order, shapes and types.

    Pixels agree to the rounding of grey levels.
    """
    mine, keras_own = (make(folder, shuffle=False, **options) for make in (ours, theirs))
    expected, found = arrays(keras_own), arrays(mine)
    assert mine.class_names == keras_own.class_names
    assert mine.file_paths == keras_own.file_paths
    assert len(mine) == len(keras_own) == len(found) == len(expected)
    for one, other in zip(expected, found, strict=True):
        assert [part.shape for part in one] == [part.shape for part in other]
        # With "nearest" Keras's pictures stay uint8.
        assert [part.dtype for part in one][1:] == [part.dtype for part in other][1:]
        assert other[0].dtype == "float32"
        assert one[0].dtype == (
            "uint8" if options.get("interpolation") == "nearest" and one[0].dtype == "uint8" else "float32"
        )
        assert np.abs(np.clip(one[0], 0, 255) - other[0]).max() <= (1.5 if "color_mode" in options else 0.51)
        np.testing.assert_array_equal(one[1:], other[1:])
    np.testing.assert_array_equal(arrays(mine)[-1][0], found[-1][0])  # the next epoch begins at the first image again


@pytest.mark.parametrize("follow_links", [False, True])
@pytest.mark.one_backend
def test_links_are_followed_where_keras_follows_them(folder, tmp_path, follow_links, capfd):
    """A linked class folder is always followed; a linked folder inside one only with follow_links.

    Otherwise a line says that it was skipped.
    """
    elsewhere = write_pictures(tmp_path / "elsewhere", 2, 900)
    (tmp_path / "top" / "circle").mkdir(parents=True)
    shutil.copy(elsewhere / "circle" / "900.png", tmp_path / "top" / "circle")
    (tmp_path / "top" / "circle" / "more").symlink_to(folder / "circle")
    (tmp_path / "top" / "square").symlink_to(elsewhere / "square")
    options = {"shuffle": False, "follow_links": follow_links, "verbose": True}
    assert ours(tmp_path / "top", **options).file_paths == theirs(tmp_path / "top", **options).file_paths
    assert ("follow_links=True follows them" in capfd.readouterr().err) is not follow_links


@pytest.mark.one_backend
def test_pictures_without_class_folders(tmp_path):
    """labels=None needs no classes, as in Keras; with labels the error names a remedy."""
    write_pictures(tmp_path, 5, 0, ("circle",))
    flat = tmp_path / "circle"
    assert ours(flat, labels=None, shuffle=False).file_paths == theirs(flat, labels=None, shuffle=False).file_paths
    with pytest.raises(ImagesError, match="no class folders"):
        ours(flat)


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"labels": [0, 1]}, "write a CSV file"),
        ({"color_mode": "rgba"}, "kresume.resumable"),
        ({"format": "grain"}, "image_dataset_from_directory"),
        ({"data_format": "channels_middle"}, "'channels_last' or 'channels_first'"),
        ({"batch_size": 0}, "None for single images"),
        ({"image_size": (3, 4, 5)}, "height, width"),
        ({"validation_split": 2, "subset": "both"}, "between 0 and 1"),
        ({"interpolation": "cubic"}, "'bicubic'"),
        ({"class_names": ["circle", "squares"]}, "class_names has squares"),
        ({"labels": None, "class_names": ["circle"]}, "leave class_names out"),
        ({"crop_to_aspect_ratio": True, "pad_to_aspect_ratio": True}, "give one of them"),
        ({"add": "nowhere"}, "no such path"),
        ({"map": lambda images, labels: images.nothing}, "map=<lambda> failed on float32"),
    ],
)
def test_what_is_refused_says_a_way_on_in_python(folder, options, words):
    """Each message names the argument in Python spelling, and no flag."""
    with pytest.raises((UsageError, ImagesError), match=words) as refused:
        ours(folder, **options)
    assert "--" not in str(refused.value)


@pytest.mark.one_backend
def test_no_message_of_the_images_wing_spells_a_flag():
    """Errors and lines of `image_dataset` name options through `option`, which spells them for the caller."""
    import ast
    import pathlib

    own = {"report.py", "sheet.py"}  # commands of the command line alone, as are those that are named whole
    for path in sorted(pathlib.Path(room.__file__).parent.rglob("*.py")):
        tree = ast.parse(path.read_text())
        documented = {
            id(node.value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documented:
                assert path.name in own or not node.value.lstrip("( ").startswith("--"), (path.name, node.value)
                assert path.name in own or " --" not in node.value.replace("kresume train --help", ""), node.value


@pytest.mark.one_backend
def test_a_csv_list_gives_labels_of_ones_own(folder, tmp_path):
    """A CSV list gives the user's own labels, as the error for a list of labels says."""
    rows = [f"{path},{'odd' if index % 2 else 'even'}" for index, path in enumerate(sorted(folder.rglob("*.png")))]
    (tmp_path / "labels.csv").write_text("\n".join(["path,label", *rows]))
    data = ours(tmp_path / "labels.csv", shuffle=False)
    assert data.class_names == ["even", "odd"]
    assert len(data.file_paths) == len(rows)


# map


def with_seed(images, labels, seed):
    import tensorflow as tf

    return tf.image.stateless_random_brightness(images, 50.0, seed), labels


def layers():
    return keras.Sequential([keras.layers.RandomFlip("horizontal_and_vertical"), keras.layers.RandomRotation(0.2)])


def of_layers():
    flip, noise = keras.layers.RandomFlip("horizontal_and_vertical"), keras.layers.RandomBrightness(0.3)

    def apply(images, labels, training):
        return noise(flip(images, training=training), training=training), labels

    return apply


def preprocess(images, labels):
    return keras.applications.mobilenet_v2.preprocess_input(images), labels


def of_functions(images, labels):
    """Marks functions that under JAX cannot be part of a TensorFlow graph."""
    noise = keras.random.normal(keras.ops.shape(images), stddev=9.0)
    return keras.applications.resnet50.preprocess_input(images + noise), labels


MAPS = {
    "a seed": lambda: with_seed,
    "layers": layers,
    "a function of layers": of_layers,
    "one layer": lambda: keras.layers.RandomErasing(factor=1.0, scale=(0.2, 0.4)),
    "preprocess_input": lambda: preprocess,
    "a function of Keras": lambda: of_functions,
}


MAPPED = [*((kind, 4) for kind in MAPS), ("layers", None), ("a function of layers", None)]


@pytest.mark.parametrize(
    ("kind", "batch_size"),
    few_under_jax(MAPPED, [("layers", 4), ("a function of layers", None), ("a function of Keras", 4)]),
)
@pytest.mark.sample("layers-4", "a function of layers-None", "a function of Keras-4", "a seed-4")
def test_a_users_function_is_exact_from_any_batch(folder, kind, batch_size):
    """A mapped function gives the same bits when started in the middle of an epoch.

    The layers are made anew with other seeds. Each batch and epoch gets other bits.
    """
    options = {"batch_size": batch_size, "image_size": 8}
    whole = ours(folder, map=MAPS[kind](), **options)
    plain = ours(folder, **options)
    epochs = [arrays(whole), arrays(whole)]
    later = ours(folder, map=MAPS[kind](), **options)
    for epoch, batch in ((0, 3), (1, 0), (1, 4)):
        stream_of(later).seek(epoch, batch)
        for one, other in zip(epochs[epoch][batch:], arrays(later), strict=False):
            assert one[0].tobytes() == other[0].tobytes()
            np.testing.assert_array_equal(one[1], other[1])
    untouched = arrays(plain)
    assert any(one[0].tobytes() != other[0].tobytes() for one, other in zip(untouched, epochs[0], strict=True))


def test_batches_and_images_draw_their_own_numbers(folder):
    """No two batches of two epochs are changed by the same random number."""
    import tensorflow as tf

    data = ours(
        folder, batch_size=4, map=lambda images, labels, seed: tf.random.stateless_uniform([], seed), image_size=8
    )
    drawn = [float(item[0]) for _ in range(2) for item in arrays(data)]
    assert len(set(drawn)) == len(drawn) == 12
    other = ours(folder, batch_size=4, seed=1, map=lambda images, labels, seed: tf.random.stateless_uniform([], seed))
    assert set(drawn).isdisjoint(float(item[0]) for item in arrays(other))


def random_flip(images, labels):
    import tensorflow as tf

    return tf.image.random_flip_left_right(images), labels


def numpy_noise(images, labels):
    return images + np.random.normal(), labels


def python_call(images, labels):
    import tensorflow as tf

    return tf.ensure_shape(tf.numpy_function(lambda x: x, [images], tf.float32), images.shape), labels


def python_call_with_seed(images, labels, seed):
    return python_call(images, labels)


def counting():
    import tensorflow as tf

    counter = tf.Variable(0.0)
    return lambda images, labels: (images + counter.assign_add(1.0), labels)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: random_flip, "random_flip draws random numbers"),
        (lambda: numpy_noise, "draws random numbers with numpy"),
        (lambda: python_call, "calls Python code"),
        (counting, "changes a variable"),
    ],
)
def test_a_function_that_counts_its_calls_is_refused(folder, make, words):
    """A function that counts its calls is refused, and the error says where to draw random numbers.

    Its pictures would differ after an interruption.
    """
    with pytest.raises(UsageError, match=words) as refused:
        ours(folder, map=make())
    assert "parameter seed" in str(refused.value)
    assert len(arrays(ours(folder, map=python_call_with_seed, image_size=8))) == 1


def test_validation_images_are_mapped_and_not_augmented(folder):
    """Both subsets are mapped; validation images are not augmented.

    A function that would augment them has to ask which subset it gets.
    """
    options = {"validation_split": 0.3, "subset": "both", "image_size": 8, "batch_size": None}
    _, plain = ours(folder, **options)
    for kind in ("layers", "a function of layers"):
        _, val = ours(folder, map=MAPS[kind](), **options)
        for one, other in zip(arrays(plain), arrays(val), strict=True):
            np.testing.assert_array_equal(one[0], other[0])
    _, val = ours(folder, map=preprocess, **options)
    for one, other in zip(arrays(plain), arrays(val), strict=True):
        np.testing.assert_allclose(one[0] / 127.5 - 1, other[0], rtol=1e-6, atol=1e-6)
    flip = keras.layers.RandomFlip()
    with pytest.raises(UsageError, match="parameter training"):
        ours(folder, map=lambda images, labels: (flip(images), labels), **options)
    with pytest.raises(UsageError, match="parameter training"):
        ours(folder, map=with_seed, **options)


def test_keras_draws_every_number_from_a_seed_generator():
    """Layers and `keras.random` draw from the one method that is replaced during tracing."""
    from keras.src.random import seed_generator

    assert "seed.next()" in inspect.getsource(seed_generator.draw_seed)
    user_map._replace_next()
    before = keras.random.SeedGenerator(5)
    first, second = (np.asarray(keras.ops.convert_to_numpy(before.next())).tolist() for _ in range(2))
    assert first == [5, 0]
    assert second == [5, 1]  # outside a trace it counts as usual


@pytest.mark.one_backend
def test_a_process_ends_with_an_iterator_at_hand(pictures):
    """A script that still holds an iterator ends, here after an error: Python's way to its end is the same without."""
    script = (
        "import time, kresume\nfrom kresume.images.reader import PictureReader\nread = PictureReader.__call__\n"
        "PictureReader.__call__ = lambda reader, rows: (time.sleep(0.5), read(reader, rows))[1]\n"  # busy when the script ends
        f"data = kresume.image_dataset({str(pictures / 'old')!r}, image_size=(8, 8), batch_size=2)\n"
        "iterator = iter(data)\nnext(iterator)\nraise ValueError('of the user')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 1, done.stderr
    assert done.stderr.endswith("ValueError: of the user\n")
