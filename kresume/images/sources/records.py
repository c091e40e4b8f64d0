"""Lists TFRecord files of `tf.train.Example`, with the feature names of TensorFlow's own converters.

Sources: the TFRecord framing (tensorflow.org/tutorials/load_data/tfrecord, "TFRecords format details"): length, masked
CRC-32C of the length, bytes, masked CRC-32C of the bytes; CRC-32C as in RFC 3720, appendix B.4.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import lzma
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from kresume.errors import ImagesError, UsageError
from kresume.images.sources.examples import example_class
from kresume.images.sources.found import NO_CLASS, Advance, Found, Listing, Quarantined, Source
from kresume.spelling import joined, option
from kresume.storage import atomic, locations

USUAL = {"encoded": "image/encoded", "label": "image/class/label", "text": "image/class/text"}
FRAME = struct.Struct("<QI")


def masked_crc(data: bytes) -> int:
    """Returns the CRC-32C of some bytes, masked as TFRecord requires."""
    import google_crc32c

    value = int(google_crc32c.value(data))
    return ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF


def accepts(path: str) -> bool:
    """Returns True if a file begins with a record's length and its checksum."""
    if locations.is_folder(path):
        return False
    try:
        with locations.opened(path) as file:
            coding = locations.stream_coding(file.read(6))
        with locations.unpacked(path, coding) as stream:
            head = stream.read(FRAME.size)
    except (OSError, EOFError, zlib.error, lzma.LZMAError):
        return False
    return len(head) == FRAME.size and FRAME.unpack(head)[1] == masked_crc(head[:8])


def list_source(source: Source, advance: Advance) -> Listing:
    """Lists the examples of a TFRecord file; records with a wrong checksum are quarantined.

    The whole file is read, and only once if `source.memory` is set.

    Raises:
        ImagesError: if the file is damaged, or an example lacks an image or a label.
    """
    size, time, stamp = locations.version(locations.stat(source.path))
    names = USUAL | dict(source.features)
    with locations.opened(source.path) as file:
        coding = locations.stream_coding(file.read(6))
    kept = None
    if source.memory is not None:
        asked = [source.path, size, time, stamp, names, *([] if source.labelled else ["unlabelled"])]
        identity = json.dumps(asked, sort_keys=True)
        kept = source.memory / f"{hashlib.sha256(identity.encode()).hexdigest()}.json"
    recalled = _recalled(kept)
    examples, damaged = recalled or _read_examples(source, names, coding, advance)
    if recalled is not None:
        advance(len(examples))
    elif kept is not None and source.writes:
        with contextlib.suppress(OSError):  # the kept listing only saves the next reading
            atomic.write_text(kept, json.dumps([examples, damaged]))
    if not examples:
        raise ImagesError(f"{source.given} contains no {'undamaged ' if damaged else ''}record")
    found = tuple(
        Found(
            source.path,
            label,
            source.given,
            size,
            time,
            None,
            offset,
            length,
            coding,
            f"record-{number}",
            stamp=stamp,
            numbered=is_number,
        )
        for number, offset, length, label, is_number in examples
    )
    set_aside = tuple(
        Quarantined(f"{source.path}/record-{number}", "", "its checksum is wrong: the record is damaged")
        for number in damaged
    )
    return Listing(found, (), tuple(sorted({each.label for each in found})), set_aside, examples=True)


Example = tuple[int, int, int, str, bool]
"""Number of a record, offset and length of its image, its label, and True if the label is a number."""


def _recalled(kept: Path | None) -> tuple[list[Example], list[int]] | None:
    """Reads the kept listing of the unchanged file; returns None if there is none."""
    try:
        examples, damaged = json.loads(kept.read_text()) if kept is not None else (None, None)
        return None if examples is None else ([tuple(example) for example in examples], list(damaged or ()))
    except (OSError, ValueError, TypeError):
        return None


def _read_examples(
    source: Source, names: dict[str, str], coding: str, advance: Advance
) -> tuple[list[Example], list[int]]:
    """Reads the examples of a file.

    Returns:
        `(examples, numbers of records with a wrong checksum)`.
    """
    message = example_class()
    found: list[Example] = []
    damaged: list[int] = []
    with locations.unpacked(source.path, coding) as stream:
        for number, (start, record) in enumerate(_records(stream, source.given)):
            if record is None:
                damaged.append(number)
                continue
            try:
                feature = message.FromString(record).features.feature
            except Exception as error:  # protobuf's DecodeError has moved between its releases
                raise ImagesError(f"{source.given}: record {number:,} is not a tf.train.Example ({error})") from error
            if names["encoded"] not in feature or not feature[names["encoded"]].bytes_list.value:
                raise ImagesError(
                    f"{source.given}: record {number:,} has no image in the feature {names['encoded']}; its features are "
                    f"{', '.join(sorted(feature))}: name the right one with {option('feature', 'encoded=NAME')}"
                )
            encoded = feature[names["encoded"]].bytes_list.value[0]
            label, is_number = NO_CLASS, False
            if source.labelled:
                label, is_number = _label(feature, names, f"{source.given}: record {number:,}")
            # Equal bytes are the image, wherever they are in the record.
            found.append((number, start + record.index(encoded), len(encoded), label, is_number))
            advance(1)
    return found, damaged


def _records(stream: IO[bytes], given: str) -> Iterator[tuple[int, bytes | None]]:
    """Yields each record's offset and bytes; None if their checksum is wrong."""
    position = 0
    while True:
        try:
            head = stream.read(FRAME.size)
            if not head:
                return
            length, checksum = FRAME.unpack(head) if len(head) == FRAME.size else (-1, 0)
            if checksum != masked_crc(head[:8]) or length > locations.MAX_FILE_BYTES:
                raise ImagesError(f"{given} is damaged at byte {position:,}: create or copy it again")
            record = stream.read(length)
            mark = stream.read(4)
            whole = len(record) == length and len(mark) == 4
        except (OSError, EOFError, zlib.error, lzma.LZMAError):
            whole = False
        if not whole:
            raise ImagesError(f"{given} ends inside the record at byte {position:,}: create or copy it again")
        yield position + FRAME.size, record if masked_crc(record) == int.from_bytes(mark, "little") else None
        position += FRAME.size + length + 4


def _label(feature: Any, names: dict[str, str], where: str) -> tuple[str, bool]:
    if names["text"] in feature and feature[names["text"]].bytes_list.value:
        return feature[names["text"]].bytes_list.value[0].decode("utf-8", "replace"), False
    if names["label"] in feature:
        if feature[names["label"]].int64_list.value:
            return str(feature[names["label"]].int64_list.value[0]), True
        if feature[names["label"]].bytes_list.value:
            return feature[names["label"]].bytes_list.value[0].decode("utf-8", "replace"), False
    raise ImagesError(
        f"{where} has neither the feature {names['text']} nor {names['label']}; its features are "
        f"{', '.join(sorted(feature))}: name the right one with {option('feature', 'label=NAME')} or "
        f"{option('feature', 'text=NAME')}"
    )


def check_features(features: Mapping[str, str] | None, listings: Iterable[Listing]) -> None:
    """Raises UsageError if names of features were given, and no source has any."""
    if features and not any(listing.examples for listing in listings):
        given = joined(option("feature", f"{role}={name}") for role, name in features.items())
        raise UsageError(f"{given} names a feature of TFRecord files, and none of the images is in one: leave it out")


def parse_features(values: tuple[str, ...] | None) -> dict[str, str]:
    """Parses `("encoded=picture", "label=class")` to the names by role.

    Raises:
        UsageError: if a role is not `encoded`, `label` or `text`.
    """
    result = {}
    for value in values or ():
        role, equals, name = value.partition("=")
        if not equals or role not in USUAL or not name:
            raise UsageError(f"{option('feature', value)}: give encoded=NAME, label=NAME or text=NAME")
        result[role] = name
    return result
