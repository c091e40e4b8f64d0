"""Reads and writes TensorBoard's event files, without TensorFlow.

    append(path, [scalar(412, time.time(), {"loss": 0.5})])
    keep_events(path, lambda event: event.step <= 400)

A file is a row of records: length, checksum, message, checksum
(https://github.com/tensorflow/tensorflow/blob/master/tensorflow/core/lib/io/record_writer.h).
"""

from __future__ import annotations

import contextlib
import io
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from kresume.storage import atomic

VERSION = "brain.Event:2"
MASK = 0xA282EAD8


def scalars(step: int, time: float, values: Mapping[str, float]) -> Any:
    """Returns the event with these scalars by tag."""
    event = _event(step, time)
    for tag, value in values.items():
        event.summary.value.add(tag=tag, simple_value=value)
    return event


def pictures(step: int, time: float, tag: str, image: np.ndarray) -> Any:
    """Returns the event with one picture, `(height, width, 3) uint8`."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    event = _event(step, time)
    value = event.summary.value.add(tag=tag)
    value.image.height, value.image.width, value.image.colorspace = image.shape
    value.image.encoded_image_string = file.getvalue()
    return event


def start(step: int, time: float) -> list[Any]:
    """Returns the first events of a file.

    A TensorBoard that has read later steps already forgets them when it reads these.

    Args:
        step: the first step that the file may hold.
        time: seconds since 1970.
    """
    version, begun = _event(0, time), _event(step, time)
    version.file_version = VERSION
    begun.session_log.status = 1  # START
    return [version, begun]


def _event(step: int, time: float) -> Any:
    from tensorboard.compat.proto.event_pb2 import Event

    return Event(step=step, wall_time=time)


def append(path: Path, events: Iterable[Any]) -> None:
    """Appends events, all or none.

    Raises:
        OSError: nothing was written.
    """
    data = b"".join(_record(event.SerializeToString()) for event in events)
    before = path.stat().st_size if path.exists() else 0
    try:
        with path.open("ab") as file:
            file.write(data)
    except OSError:
        with contextlib.suppress(OSError):
            os.truncate(path, before)
        raise


def read(path: Path) -> Iterator[Any]:
    """Yields the events of a file, up to one that a crash has torn or damaged."""
    from tensorboard.compat.proto.event_pb2 import Event

    data, at = path.read_bytes(), 0
    while at + 12 <= len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        record = data[at + 12 : at + 12 + length]
        if data[at : at + 16 + length] != _record(record):
            return
        yield Event.FromString(record)
        at += 16 + length


def keep_events(path: Path, holds: Callable[[Any], bool]) -> None:
    """Removes the events for which `holds` is False, atomically."""
    kept = b"".join(_record(event.SerializeToString()) for event in read(path) if holds(event))
    if kept != path.read_bytes():
        atomic.write_bytes(path, kept)


def _record(message: bytes) -> bytes:
    length = struct.pack("<Q", len(message))
    return length + _checksum(length) + message + _checksum(message)


def _checksum(data: bytes) -> bytes:
    value = int(google_crc32c.value(data))
    return struct.pack("<I", ((value >> 15 | value << 17) + MASK) & 0xFFFFFFFF)
