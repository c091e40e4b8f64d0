"""Tests decoding: equal pixels from every format, a reason for every other file, bounded memory."""

import csv
import functools
import io
import sys

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from kresume.errors import ImagesError
from kresume.images import decode, decode_graph, headers
from kresume.images.cache import Cache
from kresume.images.prepare import prepare
from kresume.images.sources import Found
from kresume.values.decode_spec import DecodeSpec
from tests.helpers import forking
from tests.helpers.pictures import photo

pytestmark = [pytest.mark.one_backend, pytest.mark.optimized_graphs]

SPEC = DecodeSpec(16, 16)


def listed(paths):
    return [Found(str(path), "a", "s", path.stat().st_size, path.stat().st_mtime_ns) for path in paths]


def as_file(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def near(data, expected, most=3.0):
    """Returns True if the decoded picture differs by less than `most` grey levels from Pillow's reduction."""
    small = np.asarray(expected.resize((16, 16), Image.Resampling.BOX)).astype(int)
    return abs(decode.decode(data, SPEC).astype(int) - small).mean() < most


@functools.cache
def graph_of(spec):
    """Returns the graph with which a served model decodes; tracing it takes half a second."""
    return tf.function(
        lambda encoded: decode_graph.pixels(encoded, spec),
        input_signature=[tf.TensorSpec([], tf.string)],
        autograph=False,
    )


def as_a_graph(data, spec):
    """Decodes as a served model does."""
    return graph_of(spec)(data).numpy()


def negative(picture):
    """Returns a picture of indices, white first; Pillow's `fromarray(..., "P")` warns in some versions."""
    grey = picture.convert("L")
    made = Image.new("P", grey.size)
    made.frombytes((255 - np.asarray(grey)).tobytes())
    return made


@pytest.mark.parametrize("kind", ["256 colours", "16 colours", "grey", "grey, upside down", "negative", "two greys"])
def test_a_bmp_with_a_palette_has_its_colours(kind):
    """TensorFlow's decoder gives the indices as grey levels; a served model looks the colours up in the graph, too."""
    picture = Image.fromarray(photo(3)).resize((37, 51))
    made = {
        "256 colours": lambda: picture.quantize(256),
        "16 colours": lambda: picture.quantize(16),
        "grey": lambda: picture.convert("L"),
        "grey, upside down": lambda: picture.convert("L").transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        "negative": lambda: negative(picture),
        "two greys": lambda: picture.quantize(2),
    }[kind]()
    if kind == "negative":
        made.putpalette([255 - level for level in range(256) for _ in range(3)])
    data = as_file(made, "BMP")
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    spec = DecodeSpec(51, 37)
    assert (decode.decode(data, spec) == expected).all()
    if data[28:30] == b"\x08\0":
        assert (as_a_graph(data, spec) == expected).all()
        assert decode.as_served(data, spec) == data


@pytest.mark.parametrize(
    ("at", "value"), [(14, b"\xff\xff\xff\x7f"), (14, b"\0\0\0\x80"), (46, b"\xff" * 4), (46, b"\x03\0\0\0")]
)
def test_a_damaged_palette_does_not_fail_the_others(at, value):
    """The graph of a served model decodes a batch: one file with a wrong header is one wrong picture."""
    data = bytearray(as_file(Image.fromarray(photo(3)).quantize(256), "BMP"))
    data[at : at + 4] = value
    assert as_a_graph(bytes(data), SPEC).shape == (16, 16, 3)


@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("BMP", "P", {}),
        ("JPEG", "RGB", {"quality": 95}),
        ("JPEG", "RGB", {"quality": 95, "progressive": True}),
        ("JPEG", "CMYK", {"quality": 95}),
        ("PNG", "RGB", {}),
        ("PNG", "RGBA", {}),
        ("PNG", "P", {}),
        ("GIF", "P", {}),
        ("BMP", "RGB", {}),
        ("WEBP", "RGB", {"lossless": True}),
        ("TIFF", "RGB", {}),
        ("TIFF", "RGB", {"compression": "tiff_lzw"}),
        ("TIFF", "CMYK", {}),
        ("MPO", "RGB", {"quality": 95}),
        ("AVIF", "RGB", {"quality": 95}),
    ],
)
def test_every_format_gives_the_picture(kind, mode, options):
    """Every format decodes to the pixels of the picture."""
    image = Image.fromarray(photo(3))
    data = as_file(image.convert(mode), kind, **options)
    assert near(data, image.convert(mode).convert("RGB"), 6.0)


@pytest.mark.parametrize(
    ("kind", "mode", "as_it_is"),
    [("JPEG", "RGB", True), ("PNG", "RGBA", True), ("WEBP", "RGBA", True), ("TIFF", "RGB", False),
     ("TIFF", "I;16", False), ("AVIF", "RGB", False), ("BMP", "1", False)],
)  # fmt: skip
def test_a_served_model_gets_the_pixels_that_training_saw(kind, mode, as_it_is):
    """Bytes that are encoded again for serving decode, in a graph, to the original's pixels.

    Files that TensorFlow cannot decode are encoded again; others are served as they are.
    """
    image = Image.fromarray(photo(4))
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    data = as_file(image if mode == "I;16" else image.convert(mode), kind)
    served = decode.as_served(data, SPEC)
    assert (served is data) == as_it_is
    assert as_a_graph(served, SPEC).tobytes() == decode.decode(data, SPEC).tobytes()


@pytest.mark.parametrize("tall", [32, 33])
@pytest.mark.one_backend
def test_a_tiff_without_its_last_rows_is_damaged(tall):
    """Pillow makes the rows black that an uncompressed file lacks."""
    data = bytearray(as_file(Image.fromarray(np.full((32, 20, 3), 90, np.uint8)), "TIFF"))
    first = int.from_bytes(data[4:8], "little")
    for entry in range(first + 2, first + 2 + 12 * int.from_bytes(data[first : first + 2], "little"), 12):
        if int.from_bytes(data[entry : entry + 2], "little") == 257:  # ImageLength
            data[entry + 8 : entry + 12] = tall.to_bytes(4, "little")
    if tall == 32:
        assert (decode.decode(bytes(data), SPEC) == 90).all()
        return
    with pytest.raises(ImagesError, match="it says 20x33 pixels and holds 20x32 of them"):
        decode.decode(bytes(data), SPEC)


@pytest.mark.parametrize("mode", ["L", "1", "I;16"])
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_grey_of_any_depth_is_grey(mode, kind):
    """Grey pictures of 1, 8 and 16 bits decode to three equal channels of the right brightness.

    This holds for TensorFlow and for Pillow.
    """
    grey = Image.fromarray(photo(4)).convert("L")
    image = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257) if mode == "I;16" else grey.convert(mode)
    pixels = decode.decode(as_file(image, kind), SPEC)
    assert (pixels[..., 0] == pixels[..., 1]).all()
    assert (pixels[..., 0] == pixels[..., 2]).all()
    expected = grey if mode != "1" else image.convert("L")
    assert abs(pixels[..., 0].astype(int) - np.asarray(expected.resize((16, 16), Image.Resampling.BOX))).mean() < 3


def test_the_first_frame_of_an_animation_is_the_picture():
    """The first frame of a GIF, WebP or PNG animation is the picture."""
    first, second = Image.fromarray(photo(5)), Image.fromarray(photo(6))
    for kind, options in (("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {})):
        data = as_file(first, kind, save_all=True, append_images=[second], **options)
        assert near(data, first, 6.0)


def test_what_a_webp_file_says_of_itself_ends_no_process():
    """No header flag of a WebP file ends the process: the file decodes or gives a reason.

    Tried: alpha, animation, both, and wrong flags, for which TensorFlow's decoder can abort the process.
    """
    frames = [Image.fromarray(np.dstack([photo(seed), photo(seed + 1)[..., :1]])) for seed in (5, 7)]
    pictures = 0
    for options in ({}, {"lossless": True}):
        for animated in (False, True):
            data = as_file(
                frames[0], "WEBP", save_all=animated, append_images=frames[1:] if animated else [], **options
            )
            assert near(data, frames[0].convert("RGB"), 12.0)
            for place, bit in ((place, bit) for place in (12, 15, 20, 24) for bit in range(8)):
                changed = bytearray(data)
                changed[place] ^= 1 << bit
                try:
                    pictures += decode.decode(bytes(changed), SPEC).shape == (16, 16, 3)
                except ImagesError:
                    continue
    assert pictures > 0


def test_heic_is_read_with_the_extra_and_named_without(monkeypatch, real_data):
    """HEIC decodes with pillow-heif; without it the reason is the command that installs it."""
    data = (real_data / "nasty" / "pillow__hopper.heif").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(headers, "_register_heif", lambda: False)
        with pytest.raises(ImagesError, match=r"pip install 'kresume\[heif\]'"):
            raise ImagesError(headers._no_picture(data, ValueError()))
    pytest.importorskip("pillow_heif")
    with Image.open(real_data / "nasty" / "pillow__hopper.jpg") as image:
        assert near(data, image.convert("RGB"), 12.0)


def test_reasons_are_reasons(real_data):
    """Twelve bits, floats and films are refused with a helpful reason."""
    with pytest.raises(ImagesError, match="JPEG of 12 bits"):
        headers.read_header((real_data / "nasty" / "libjpeg-turbo__monkey12.jpg").read_bytes())
    with pytest.raises(ImagesError, match="floating-point"):
        decode.decode(as_file(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"), SPEC)
    with pytest.raises(ImagesError, match="a video or audio file"):
        headers.read_header(b"\0\0\0\x20ftypisom" + b"\0" * 100)


def test_what_is_served_is_what_was_trained_on(real_data, tmp_path, quiet):
    """`pixels` in a batched graph, as an exported model runs it, equals the cached bytes: no skew."""
    import tensorflow as tf

    paths = sorted((real_data / "clothing" / "old").rglob("*.jpg"))[::8]
    paths += [*sorted((real_data / "nasty").glob("pillow__hopper*.jpg")), real_data / "signdigits/new/7/IMG_5874.JPG"]
    for spec in (DecodeSpec(32, 32), DecodeSpec(24, 40, "crop", "antialias")):
        cache = Cache.open(spec, tmp_path / "cache")
        prepared = prepare(listed(paths), spec, cache, quiet)
        assert not prepared.quarantine
        cached = cache.read(cache.find([image.facts.sha256 for image in prepared.images]))

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
        def serve(encoded, spec=spec):
            out = tf.TensorSpec([spec.height, spec.width, 3], tf.uint8)
            return tf.map_fn(lambda one: decode_graph.pixels(one, spec), encoded, fn_output_signature=out)

        served = serve(tf.constant([path.read_bytes() for path in paths])).numpy()
        assert served.tobytes() == cached.tobytes()


CAPPED = """
import os, resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from kresume.values.decode_spec import DecodeSpec
from kresume.images.cache import Cache
from kresume.images.prepare import prepare, write_quarantine
from kresume.images.sources import Found
from kresume.reporter import Reporter

def listed(paths):
    return [Found(str(path), "a", "s", path.stat().st_size, path.stat().st_mtime_ns) for path in paths]

folders = [Path(folder) for folder in sys.argv[1:3]]
quiet, spec = Reporter(quiet=True), DecodeSpec(16, 16)
warm = listed([folders[0] / "pillow__hopper.jpg", folders[0] / "pillow__hopper.webp"])
prepare(warm, spec, None, quiet)
used = int(next(line for line in open("/proc/self/status") if line.startswith("VmData")).split()[1]) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (used + 2**30, used + 2**30))
paths = sorted(path for folder in folders for path in folder.iterdir() if path.suffix not in {".csv", ".md"})
done = prepare(listed(paths), spec, None, quiet)
write_quarantine(folders[1] / "quarantine.csv", done.quarantine)
print(len(done.images), len(done.quarantine))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts private mappings on Linux only")
def test_every_nasty_file_ends_as_its_note_says_within_a_gigabyte(real_data, tmp_path, request):
    """All 77 nasty files are decoded or quarantined as noted, with 1 GB of memory.

    The limit applies to all memory allocated after the imports. A picture of 98 million pixels, just within the limit,
    decodes beside them.
    """
    large = tmp_path / "large"
    large.mkdir()
    Image.new("1", (9900, 9900)).save(large / "98-megapixels.png")
    root = str(request.config.rootpath)
    done = forking.run([sys.executable, "-c", CAPPED, real_data / "nasty", large, root], cwd=tmp_path, check=True)
    with (real_data / "nasty" / "manifest.csv").open() as file:
        notes = {row["file"]: row["pillow_result"].startswith("ok") for row in csv.DictReader(file)}
    notes["pillow__hopper.heif"] = headers._register_heif()  # its note holds for Pillow alone
    with (large / "quarantine.csv").open() as file:
        reasons = {row["path"].rpartition("/")[2]: row["reason"] for row in csv.DictReader(file)}
    assert len(notes) == 77
    assert {name for name, fine in notes.items() if not fine} == set(reasons)
    assert all(5 < len(reason) < 300 for reason in reasons.values())
    assert done.stdout.split() == [str(78 - len(reasons)), str(len(reasons))]
