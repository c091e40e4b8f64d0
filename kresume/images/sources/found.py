"""Defines the values that listing a source returns.

An image is a range of bytes in a file: a whole file, a member of an archive, or a feature of a record. So one reader
gives random access to every kind of source.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kresume.images.sources.moves import NOTHING, Moves
from kresume.storage.locations import Version

ONE_LABEL = (
    "kresume trains one image to one label; for several labels per image use kresume.BackupAndRestore in your own fit"
)
"""The message wherever an image has several labels."""

NO_CLASS = "image"
"""The label of images that are listed without classes."""

Advance = Callable[[int], None]
"""Called with the number of newly listed files."""

STREAM_CODINGS = ("gzip", "bz2", "xz")
"""Compressions of a whole file: reading any part requires decompressing everything before it."""


@dataclass(frozen=True, slots=True)
class Found:
    """Holds the location and the label of a listed image.

    Attributes:
        path: absolute path of the file that holds it.
        label: name of its class.
        source: the path that the user gave.
        bytes: size of the file.
        mtime_ns: modification time of the file in nanoseconds.
        split: `"train"` or `"val"` if the source defines it, else None; `"test"` only if `Source.tests` asks for them.
        offset: where the image begins in the file, or in the decompressed file if `coding` is one of `STREAM_CODINGS`.
        length: number of its bytes there, -1 for all that follow.
        coding: `""` for uncompressed bytes, `"deflate"` for a compressed member of a zip, or one of `STREAM_CODINGS`.
        member: its name inside an archive; empty for a file of its own.
        extra: further columns of a list, as a JSON object; empty for none.
        stamp: what else tells a changed file, see `locations.version`; 0 if it is unknown.
        numbered: True if the label is the number of an output, not a name.
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
    stamp: int = 0
    numbered: bool = False

    @property
    def key(self) -> str:
        """Returns a key of the range of bytes, whatever its label."""
        return key_of(self.path, self.offset, self.length)

    @property
    def version(self) -> Version:
        """Returns what tells whether its file has changed."""
        return self.bytes, self.mtime_ns, self.stamp

    @property
    def name(self) -> str:
        """Returns the path, with the member if any, for messages."""
        return f"{self.path}/{self.member}" if self.member else self.path


def key_of(path: str, offset: int, length: int) -> str:
    """Returns the key of a byte range; a whole file's key is its path."""
    return path if length < 0 else f"{path}\0{offset}"


def key_of_row(row: Mapping[str, Any]) -> str:
    """Returns the key of an image that a manifest's row records."""
    return key_of(row["path"], row["offset"], row["length"])


@dataclass(frozen=True, slots=True)
class Facts:
    """Holds what is known about an image's content.

    Attributes:
        sha256: SHA-256 of its encoded bytes, in hexadecimal.
        width: width in pixels, from the header.
        height: height in pixels, from the header.
        format: Pillow's name of the format.
        phash: 64 bits that similar images share.
        thumb: 64 grey levels, from `likeness`; empty if an earlier version recorded none.
    """

    sha256: str
    width: int
    height: int
    format: str
    phash: int
    thumb: bytes


Known = Mapping[str, tuple[Version, Facts]]
"""Facts by `Found.key`, each with the version of the file for which they hold."""


@dataclass(frozen=True)
class Quarantined:
    """Names an image that cannot be used, and the reason."""

    path: str
    label: str
    reason: str


@dataclass(frozen=True)
class Top:
    """Names a single folder above the class folders of a source, which was skipped.

    Attributes:
        given: the source as the user gave it.
        path: the folder's path in it.
        name: the folder's name.
        inside: names of the folders in it.
        classes: names of the class folders below it.
        way: what to give to have it skipped; empty in an archive.
        last: True if the class folders are directly in it.
    """

    given: str
    path: str
    name: str
    inside: tuple[str, ...]
    classes: tuple[str, ...]
    way: str
    last: bool


@dataclass(frozen=True)
class Listing:
    """Holds the images of sources.

    Attributes:
        files: images, sorted by source, then by path.
        notes: messages about what was skipped.
        classes: names of the classes, sorted.
        quarantine: images that a source names but that are missing or damaged.
        known: facts that the source itself has recorded.
        moved: the folders of `Source.moves` from which images of a list have moved.
        examples: True if some of them are examples of a TFRecord.
        tops: the single folders above the class folders of one source, the highest first.
        spelled: names of class folders by the names of the classes, see `folder_order`; several if sources differ.
    """

    files: tuple[Found, ...]
    notes: tuple[str, ...]
    classes: tuple[str, ...]
    quarantine: tuple[Quarantined, ...] = ()
    known: Known = field(default_factory=dict)
    moved: frozenset[str] = frozenset()
    examples: bool = False
    tops: tuple[Top, ...] = ()
    spelled: tuple[Mapping[str, str], ...] = ()

    @property
    def numbered(self) -> bool:
        """Returns True if all labels are numbers of outputs, and none is a name."""
        return bool(self.files) and all(found.numbered for found in self.files)


@dataclass(frozen=True)
class Source:
    """Describes one path that the user gave.

    Attributes:
        path: absolute path, or one with a scheme (`gs://bucket/folder`).
        given: the path as it was typed.
        features: names of TFRecord features that differ from the usual, by role (`encoded`, `label`, `text`).
        memory: a folder for listings that require reading a whole file; None keeps none.
        writes: False reads `memory` but writes nothing to it.
        follow_links: False does not enter folders behind symbolic links inside a class folder.
        labelled: False lists every image, those without a label and those for testing too, all under `NO_CLASS`.
        tests: True lists the images for testing too.
        moves: where the images of a list have moved.
        classes: known names of classes. A single top folder of such a name is a class.
    """

    path: str
    given: str
    features: Mapping[str, str] = field(default_factory=dict)
    memory: Path | None = None
    writes: bool = True
    follow_links: bool = True
    labelled: bool = True
    tests: bool = False
    moves: Moves = NOTHING
    classes: frozenset[str] = frozenset()
