"""Reads what JPEG, PNG, WebP and GIF files store beside their pixels, with TensorFlow operations.

    orientation(encoded)            # scalar int32 from 1 to 8, the EXIF orientation
    webp_with_alpha(encoded)        # (n,) bool
    full_frame(encoded)             # (2,) int32, height and width
    jpeg_bits(data)                 # 12

TensorFlow's decoders ignore this. As operations of a graph the same code runs in training and in a served model.

Sources: EXIF 2.3 (JEITA CP-3451C) defines the orientation tag. ISO/IEC 10918-1 (JPEG), the PNG 3 specification and the
WebP container specification define where it is stored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

ORIENTATION_TAG = 0x0112
JPEG_MARK, PNG_MARK, GIF_MARK = b"\xff\xd8\xff", b"\x89PNG", b"GIF8"
EXIF_MARK = b"Exif\0\0"
MOST_BLOCKS = 2**14
"""Blocks before the first frame of a GIF that are walked: 4 MB of metadata. A damaged file may have any number."""


@dataclass(frozen=True)
class _File:
    """Reads text and numbers of an encoded file inside a graph.

    Attributes:
        encoded: the file, scalar `tf.string`.
        size: the number of its bytes.
        data: its bytes and 16 zeros: reads slightly past the end return zeros, so they need no bounds checks.
    """

    encoded: Any
    size: Any
    data: Any

    def text(self, index: Any, length: int) -> Any:
        """Returns `length` bytes from an index on."""
        import tensorflow as tf

        return tf.strings.substr(self.encoded, tf.clip_by_value(index, 0, self.size), length)

    def part(self, index: Any, count: int) -> Any:
        """Returns `count` bytes from an index on as numbers, `(count,) int32`."""
        import tensorflow as tf

        return tf.cast(tf.gather(self.data, tf.clip_by_value(index, 0, self.size) + tf.range(count)), tf.int32)

    def big(self, index: Any, count: int) -> Any:
        """Returns a big-endian number of `count` bytes."""
        return _number(self.part(index, count), count)

    def little(self, index: Any, count: int) -> Any:
        """Returns a little-endian number of `count` bytes."""
        import tensorflow as tf

        return tf.reduce_sum(self.part(index, count) * [256**power for power in range(count)])


def _file(encoded: Any) -> _File:
    import tensorflow as tf

    return _File(encoded, tf.strings.length(encoded), tf.pad(tf.io.decode_raw(encoded, tf.uint8), [[0, 16]]))


def _number(digits: Any, count: int) -> Any:
    """Returns the number of these bytes, the most significant one first."""
    import tensorflow as tf

    return tf.reduce_sum(digits * [256**power for power in reversed(range(count))])


Step = Callable[[Any], tuple[Any, Any]]
"""Position of a part of a file -> position of the next part, and the offset that is searched (0: not in this part)."""


def _walk(file: _File, start: int, step: Step) -> Any:
    """Walks the parts of a file until a step finds an offset; returns it, or 0."""
    import tensorflow as tf

    def body(position: Any, found: Any) -> tuple[Any, Any]:
        following, here = step(position)
        # A part of zero or negative length would make the walk endless.
        return tf.where(following > position, following, file.size), here

    _, found = tf.while_loop(
        lambda position, found: tf.logical_and(tf.equal(found, 0), position + 8 <= file.size),
        body,
        (tf.constant(start), tf.constant(0)),
    )
    return found


def _walk_jpeg(file: _File, find: Callable[[Any, Any], Any]) -> Any:
    """Walks the segments of a JPEG up to its pixels.

    Args:
        file: the file.
        find: (position of a segment, its marker) -> the offset that is searched, 0 if it is not in this segment.

    Returns:
        The offset, 0 if no segment has it.
    """
    import tensorflow as tf

    def step(position: Any) -> tuple[Any, Any]:
        marker = file.big(position, 2)
        ends = tf.logical_or(marker < 0xFF00, tf.equal(marker, 0xFFDA))
        following = tf.where(ends, file.size, position + 2 + file.big(position + 2, 2))
        return following, find(position, marker)

    return _walk(file, 2, step)


def has_palette(encoded: Any) -> Any:
    """Tests whether a file is a BMP whose pixels are 8-bit indices into a palette.

    TensorFlow's decoder returns the indices as grey levels.

    Args:
        encoded: scalar `tf.string`.

    Returns:
        A scalar bool.

    Source: BITMAPFILEHEADER and BITMAPINFOHEADER of the Windows API.
    """
    import tensorflow as tf

    head = _file(tf.strings.substr(encoded, 0, 32))
    return tf.equal(head.text(0, 2), "BM") & tf.equal(head.little(28, 2), 8)


def looked_up(encoded: Any, indices: Any) -> Any:
    """Replaces the indices of a BMP by the colours of its palette.

    Args:
        encoded: the file, for which `has_palette` is True.
        indices: `(height, width, 3) uint8`, as TensorFlow decodes it; the channels are equal.

    Returns:
        `(height, width, 3) uint8`. An index without a colour is black.
    """
    import tensorflow as tf

    head = _file(tf.strings.substr(encoded, 0, 64))
    # A damaged header must not fail the other files of a batch: it gives other colours.
    begin = tf.clip_by_value(14 + head.little(14, 4), 0, tf.strings.length(encoded))
    used = head.little(46, 4)
    count = tf.where((used > 0) & (used < 256), used, 256)
    raw = tf.strings.join([tf.strings.substr(encoded, begin, 4 * count), tf.constant(b"\0" * 1024)])
    colours = tf.reshape(tf.io.decode_raw(tf.strings.substr(raw, 0, 1024), tf.uint8), (256, 4))  # blue, green, red, 0
    return tf.gather(colours[:, 2::-1], tf.cast(indices[..., 0], tf.int32))


def jpeg_bits(data: bytes) -> int | None:
    """Reads the bits per sample from a JPEG's frame header; None if missing.

    Source: ISO/IEC 10918-1, B.2.2.
    """
    import tensorflow as tf

    def find(position: Any, marker: Any) -> Any:
        is_frame = (marker >= 0xFFC0) & (marker <= 0xFFCF)
        for other in (0xFFC4, 0xFFC8, 0xFFCC):
            is_frame &= tf.not_equal(marker, other)
        return tf.where(is_frame, position + 4, 0)

    offset = int(_walk_jpeg(_file(tf.constant(data)), find))
    return data[offset] if offset else None


def orientation(encoded: Any) -> Any:
    """Reads the EXIF orientation of a JPEG, PNG or WebP file with TensorFlow operations.

    Returns:
        Scalar `int32` from 1 to 8; 1 if the file states no valid orientation.
    """
    import tensorflow as tf

    file = _file(encoded)

    def jpeg_exif(position: Any, marker: Any) -> Any:
        is_exif = tf.logical_and(tf.equal(marker, 0xFFE1), tf.equal(file.text(position + 4, 6), EXIF_MARK))
        return tf.where(is_exif, position + 10, 0)

    def png_part(position: Any) -> tuple[Any, Any]:
        is_exif = tf.equal(file.text(position + 4, 4), b"eXIf")
        return position + 12 + file.big(position, 4), tf.where(is_exif, position + 8, 0)

    def webp_part(position: Any) -> tuple[Any, Any]:
        length = file.little(position + 4, 4)
        start = tf.where(tf.equal(file.text(position + 8, 6), EXIF_MARK), position + 14, position + 8)
        return position + 8 + length + length % 2, tf.where(tf.equal(file.text(position, 4), b"EXIF"), start, 0)

    kinds = [
        (tf.equal(file.text(tf.constant(0), 3), JPEG_MARK), lambda: _walk_jpeg(file, jpeg_exif)),
        (tf.equal(file.text(tf.constant(0), 4), PNG_MARK), lambda: _walk(file, 8, png_part)),
        (tf.equal(file.text(tf.constant(8), 4), b"WEBP"), lambda: _walk(file, 12, webp_part)),
    ]
    tiff = tf.case(kinds, default=lambda: 0)
    return tf.cond(tiff > 0, lambda: _orientation_tag(file, tiff), lambda: 1)


def _orientation_tag(file: _File, tiff: Any) -> Any:
    """Reads the orientation from the EXIF data that begin with a TIFF header at an offset."""
    import tensorflow as tf

    is_little = tf.equal(file.text(tiff, 2), b"II")

    def number(index: Any, count: int) -> Any:
        digits = file.part(index, count)
        return _number(tf.where(is_little, digits[::-1], digits), count)

    directory = tiff + number(tiff + 4, 4)
    entries = tf.clip_by_value(number(directory, 2), 0, 256)

    def entry(index: Any, found: Any) -> tuple[Any, Any]:
        start = directory + 2 + 12 * index
        return index + 1, tf.where(tf.equal(number(start, 2), ORIENTATION_TAG), number(start + 8, 2), found)

    _, value = tf.while_loop(
        lambda index, found: tf.logical_and(index < entries, tf.equal(found, 0)),
        entry,
        (tf.constant(0), tf.constant(0)),
    )
    return tf.where(tf.logical_and(value >= 1, value <= 8), value, 1)


def webp_with_alpha(encoded: Any) -> Any:
    """Finds WebP files with alpha and without animation, `(n,) tf.string` -> `(n,) bool`.

    TensorFlow decodes such a file to four channels only. Never request four channels of an animated file: TensorFlow's
    decoder crashes the process. Source: the container's flags and the lossless header, RFC 9649, sections 2.7 and 3.4.
    """
    import tensorflow as tf

    padded = tf.strings.substr(tf.strings.join([encoded, " " * 32]), 0, 32)
    head = tf.reshape(tf.io.decode_raw(padded, tf.uint8), (-1, 32))

    def says(start: int, mark: bytes) -> Any:
        return tf.equal(tf.strings.substr(padded, start, len(mark)), mark)

    def bits(index: int, mask: int) -> Any:
        return tf.bitwise.bitwise_and(head[:, index], tf.constant(mask, tf.uint8))

    extended = says(12, b"VP8X") & tf.equal(bits(20, 0x12), 0x10)  # the alpha flag is set, the animation flag is not
    lossless = says(12, b"VP8L") & tf.equal(bits(24, 0x10), 0x10)
    return says(0, b"RIFF") & says(8, b"WEBP") & (extended | lossless)


def full_frame(encoded: Any) -> Any:
    """Reads the size of a GIF's first frame if it covers the logical screen.

    TensorFlow's canvas is not the logical screen, but as large as the largest frame, and it is black beside the first frame.

    Args:
        encoded: scalar `tf.string`.

    Returns:
        `(2,) int32`, height and width; zeros if the frame leaves a part of the screen free, or is not found.

    Source: GIF89a specification, sections 15 to 26.
    """
    import tensorflow as tf

    file = _file(encoded)
    flags = file.part(tf.constant(10), 1)[0]
    colours = tf.where(flags >= 128, 3 * tf.bitwise.left_shift(2, flags % 8), 0)

    def body(position: Any, inside: Any, found: Any) -> tuple[Any, Any, Any]:
        # `inside` is True at a sub-block of an extension. It begins with its length; that of the last one is 0.
        value = file.part(position, 1)[0]
        is_extension, is_frame = tf.equal(value, 0x21), tf.equal(value, 0x2C)
        following = tf.where(inside, position + 1 + value, tf.where(is_extension, position + 2, file.size))
        return following, tf.where(inside, value > 0, is_extension), tf.where(~inside & is_frame, position, found)

    _, _, found = tf.while_loop(
        lambda position, inside, found: tf.equal(found, 0) & (position < file.size),
        body,
        (13 + colours, tf.constant(False), tf.constant(0)),
        maximum_iterations=MOST_BLOCKS,
    )
    screen = tf.stack([file.little(8, 2), file.little(6, 2)])
    corner = tf.stack([file.little(found + 3, 2), file.little(found + 1, 2)])
    size = tf.stack([file.little(found + 7, 2), file.little(found + 5, 2)])
    covers = (found > 0) & tf.reduce_all(tf.equal(corner, 0) & (size >= screen))
    return tf.where(covers, size, 0)
