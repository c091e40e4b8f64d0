"""What listing a source gives: where each picture is, as values.

A picture is a range of bytes in a file: a whole file, a member of an archive, a feature of a record. So every kind of source
has random access through one reader.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

ONE_LABEL = (
    "kresume trains one image to one label; for several labels per image use kresume.BackupAndRestore in your own fit"
)
"""What is said wherever an image has several labels."""

Advance = Callable[[int], None]
"""Told how many more files were listed."""

STREAMS = ("gzip", "bz2", "xz")
"""Codings of a whole file: nothing in it can be reached without reading what stands before it."""


@dataclass(frozen=True, slots=True)
class Found:
    """A listed picture.

    Attributes:
        path: of the file that holds it, absolute.
        label: the name of its class.
        source: the path that the user gave.
        bytes: the file's size.
        mtime_ns: when the file was last changed, in nanoseconds.
        split: `"train"` or `"val"` where the source says it, else None.
        offset: where the picture begins in the file, or in what the file unpacks to where `coding` is one of `STREAMS`.
        length: of its bytes there, -1 for all that follow.
        coding: `""` for bytes as they are, `"deflate"` for a packed member of a zip, or one of `STREAMS`.
        member: its name inside an archive, empty for a file of its own.
        extra: further columns of a list, as a JSON object; empty for none.
    """

    path: str
    label: str
    source: str
    bytes: int
    mtime_ns: int
    split: str | None = None
    offset: int = 0
    length: int = -1
    coding: str = ""
    member: str = ""
    extra: str = ""

    @property
    def key(self) -> str:
        """Names the range of bytes, whatever its label."""
        return key_of(self.path, self.offset, self.length)

    @property
    def name(self) -> str:
        """What a person calls it."""
        return f"{self.path}/{self.member}" if self.member else self.path


def canonical(label: str) -> str:
    """A label as it is listed: what looks alike is alike.

    In Unicode's composed form (a Mac's archive decomposes it), without blanks around it, and without the fraction that a gap in
    its column gives a whole number.
    """
    composed = label if label.isascii() else unicodedata.normalize("NFC", label)
    composed = composed.strip()
    return (
        composed.removesuffix(".0") if composed.endswith(".0") and composed[:-2].lstrip("-").isdecimal() else composed
    )


def key_of(path: str, offset: int, length: int) -> str:
    """The key of a range of bytes; a whole file's is its path."""
    return path if length < 0 else f"{path}\0{offset}"


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a picture's content.

    Attributes:
        sha256: of its encoded bytes, in hexadecimal.
        width: in pixels, as the header says.
        height: likewise.
        format: as Pillow names it.
        phash: 64 bits that similar pictures share.
        thumb: 64 grey levels, as `likeness` makes them; empty where an earlier version recorded none.
    """

    sha256: str
    width: int
    height: int
    format: str
    phash: int
    thumb: bytes


Known = Mapping[str, tuple[int, int, Facts]]
"""Facts by `Found.key`, with the file's size and time for which they hold."""


@dataclass(frozen=True)
class Quarantined:
    """A picture that could not be used, and why."""

    path: str
    label: str
    reason: str


@dataclass(frozen=True)
class Listing:
    """What sources hold.

    Attributes:
        files: sorted by source, then by path.
        notes: what was left out, in words.
        classes: the names of the classes, sorted.
        quarantine: what a list names but is not there.
        known: facts that the source itself has recorded.
        numbered: whether the labels are numbers of outputs rather than names.
    """

    files: tuple[Found, ...]
    notes: tuple[str, ...]
    classes: tuple[str, ...]
    quarantine: tuple[Quarantined, ...] = ()
    known: Known = field(default_factory=dict)
    numbered: bool = False


@dataclass(frozen=True)
class Source:
    """One path that the user gave.

    Attributes:
        path: absolute, or with a scheme in front (`gs://bucket/folder`).
        given: as it was typed.
        features: names of TFRecord features that differ from the usual, by role (`encoded`, `label`, `text`).
        memory: a folder for listings that take reading a whole file; None remembers nothing.
        keeps: False looks into the memory and puts nothing there.
        follow_links: False does not enter folders behind symbolic links inside a class folder.
    """

    path: str
    given: str
    features: Mapping[str, str] = field(default_factory=dict)
    memory: Path | None = None
    keeps: bool = True
    follow_links: bool = True
