"""Tests that a GIF is its first frame on its screen, and a TIFF is turned once, wherever pictures are read."""

import io
from functools import cache

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import kresume
from kresume.exports import graph
from kresume.images import containers, decode, headers
from kresume.images.cache import Cache
from kresume.images.prepare import prepare
from kresume.images.read_ahead import read_ahead
from kresume.images.sources import Found
from kresume.values.decode_spec import DecodeSpec
from tests.helpers.gifs import blocks, gif
from tests.helpers.pictures import photo

pytestmark = [pytest.mark.one_backend, pytest.mark.optimized_graphs]

WHOLE, SMALL, MOVED = (0, 0, 20, 16), (0, 0, 9, 7), (6, 5, 9, 7)
LONG = b"!\xfe" + blocks(b"c," * 3000) + b"!\xff\x0bNETSCAPE2.0\x03\x01\0\0\0"
GIFS = {
    "the whole screen": (gif((20, 16), [WHOLE]), True),
    "a smaller frame": (gif((20, 16), [SMALL]), False),
    "a smaller frame, elsewhere": (gif((20, 16), [MOVED]), False),
    "a frame of the screen's size, elsewhere": (gif((20, 16), [(6, 5, 20, 16)]), False),
    "narrower than its screen": (gif((20, 16), [(0, 0, 20, 7)]), False),
    "larger than its screen": (gif((9, 7), [WHOLE]), True),
    "beyond its screen": (gif((9, 7), [MOVED]), False),
    "transparent": (gif((20, 16), [WHOLE], 5), True),
    "transparent, smaller": (gif((20, 16), [MOVED], 5), False),
    "animated": (gif((20, 16), [WHOLE, MOVED]), True),
    "animated, first smaller": (gif((20, 16), [MOVED, WHOLE]), False),
    "animated, first smaller and transparent": (gif((20, 16), [MOVED, WHOLE], 5), False),
    "animated, later larger": (gif((20, 16), [WHOLE, (0, 0, 31, 33)]), False),
    "extensions before the frame": (gif((20, 16), [WHOLE], before=LONG), True),
    "extensions before a smaller frame": (gif((20, 16), [MOVED], before=LONG), False),
    "metadata of many blocks": (gif((20, 16), [WHOLE], before=b"!\xfe" + b"\x01," * 2**14 + b"\0"), False),
}
"""Each file, and whether TensorFlow alone decodes it as it is meant, in a served model."""


def found(path):
    """Returns the listed file."""
    return Found(str(path), "a", "s", path.stat().st_size, path.stat().st_mtime_ns)


def shown(data):
    """Returns the first frame on its screen as Pillow gives it; transparent pixels are black."""
    rgba = np.array(Image.open(io.BytesIO(data)).convert("RGBA"))
    return rgba[..., :3] * (rgba[..., 3:] > 0)


def by_cache(path, spec, quiet):
    cache = Cache.open(spec, path.parent.parent.parent / "cache")
    (image,) = prepare([found(path)], spec, cache, quiet).images
    assert (image.facts.height, image.facts.width) == (spec.height, spec.width)
    return cache.read(cache.find([image.facts.sha256]))[0]


def by_data_set(path, spec, _quiet):
    data = kresume.image_dataset(
        path.parent.parent,
        image_size=(spec.height, spec.width),
        batch_size=1,
        label_mode=None,
        cache=None,
        verbose=False,
        **{name: value for name, value in (("interpolation", spec.interpolation),) if value != "area"},
    )
    return next(iter(data)).numpy()[0]


def by_prediction(path, spec, _quiet):
    (read,) = read_ahead([found(path)], spec)
    assert not read.reason
    return read.picture


@cache
def in_a_graph(spec, examine):
    """Returns what decodes files in a served model."""
    return tf.function(
        lambda files: graph.decode_batch(files, spec, examine=examine),
        input_signature=[tf.TensorSpec([None], tf.string)],
        autograph=False,
    )


@pytest.mark.parametrize("route", [by_cache, by_data_set, by_prediction])
@pytest.mark.parametrize("case", GIFS)
def test_a_gif_is_its_first_frame_on_its_screen(tmp_path, quiet, case, route):
    """TensorFlow takes the largest frame for the canvas: a smaller first frame was cut, moved or black."""
    data, _ = GIFS[case]
    path = tmp_path / "data" / "a" / "picture.gif"
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    expected = shown(data)
    spec = DecodeSpec(*expected.shape[:2], "stretch", "bilinear")
    np.testing.assert_array_equal(route(path, spec, quiet), expected)


@pytest.mark.parametrize("case", GIFS)
def test_a_served_model_refuses_what_it_would_show_otherwise(case):
    """In the graph of a served model such a GIF is an error, alone or among others, and the others are answered."""
    data, alone = GIFS[case]
    expected = shown(data)
    spec = DecodeSpec(*expected.shape[:2])
    other = io.BytesIO()
    Image.fromarray(expected).save(other, "PNG")
    for examine in (True, False):
        for files in ([data], [other.getvalue(), data]):
            images, errors = in_a_graph(spec, examine)(files)
            assert [bool(error) for error in errors.numpy()] == [False] * (len(files) - 1) + [not alone]
            np.testing.assert_array_equal(images[0], expected if alone or len(files) > 1 else 0 * expected)
            assert alone or b"a GIF whose first frame is not its whole screen" in errors.numpy()[-1]
    served = decode.as_served(data, spec)
    assert (served == data) == alone
    np.testing.assert_array_equal(in_a_graph(spec, True)([served])[0][0], expected)


@pytest.mark.parametrize("cut", [6, 10, 13, 400, 781, 785, 800])
def test_a_gif_that_is_cut_off_is_no_other_picture(cut):
    """A header that ends early is an error of that file, in the graph, too."""
    data = GIFS["a smaller frame"][0][:cut]
    _, errors = in_a_graph(DecodeSpec(16, 20), True)([data])
    assert errors.numpy()[0]


@pytest.mark.parametrize("mode", ["RGB", "L", "I;16"])
@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_tiff_is_turned_once(orientation, compression, mode):
    """Each orientation gives the pixels that a PNG of the same picture gives."""
    picture = Image.fromarray(photo(3)).resize((37, 51))
    if mode == "I;16":
        picture = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)
    elif mode == "L":
        picture = picture.convert("L")
    exif = Image.Exif()
    exif[containers.ORIENTATION_TAG] = orientation
    files = []
    for kind, options in (("TIFF", {"compression": compression}), ("PNG", {})):
        file = io.BytesIO()
        picture.save(file, kind, exif=exif, **options)
        files.append(file.getvalue())
    spec = DecodeSpec(37, 51) if orientation > 4 else DecodeSpec(51, 37)
    turned, expected = (decode.decode(data, spec) for data in files)
    np.testing.assert_array_equal(turned, expected)
    assert np.ptp(expected) > 50
    header = headers.read_header(files[0])
    assert (header.width, header.height) == (37, 51)  # as stored, as of the other formats
