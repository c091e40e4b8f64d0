"""Lists tar and zip archives without unpacking them: class folders inside, or WebDataset shards.

A member of an uncompressed tar or of a zip is a range of bytes. In a tar that is compressed as a whole (`.tar.gz`) no
member can be read alone, so the prepare pass reads it once, in order, into the cache.

Sources: POSIX.1-2001 (pax) through Python's tarfile; PKWARE APPNOTE 6.3.10 section 4.3.7 for where a member's bytes
begin; the WebDataset format (github.com/webdataset/webdataset): files with the same stem are one example.
"""

from __future__ import annotations

import json
import lzma
import struct
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from kresume.errors import ImagesError
from kresume.images.sources import folders
from kresume.images.sources.found import NO_CLASS, Advance, Found, Listing, Source
from kresume.images.sources.members import label_members
from kresume.spelling import counted
from kresume.storage import locations

TAR_MARK = slice(257, 262)
LABEL_ENDINGS = (".cls", ".json")
LABEL_BYTES = 2**20
LABEL_KEYS = ("label", "cls", "class", "class_name", "category", "text")
LOCAL_HEADER = struct.Struct("<4s22xHH")
"""Local header of a zip's member: its signature, then the lengths of the name and of the extra field."""


@dataclass(frozen=True)
class _Member:
    name: str
    offset: int
    length: int
    coding: str


def is_tar(path: str) -> bool:
    """Tests by its first bytes whether a file is a tar archive, compressed or not."""
    if locations.is_folder(path):
        return False
    try:
        with locations.opened(path) as file:
            coding = locations.stream_coding(file.read(6))
        with locations.unpacked(path, coding) as stream:
            return stream.read(512)[TAR_MARK] == b"ustar"
    except (OSError, EOFError, zlib.error, lzma.LZMAError):
        return False


def is_zip(path: str) -> bool:
    """Tests by its first bytes whether a file is a zip archive."""
    if locations.is_folder(path):
        return False
    with locations.opened(path) as file:
        return file.read(4) in {b"PK\x03\x04", b"PK\x05\x06"}


def list_tar(source: Source, advance: Advance) -> Listing:
    """Lists a tar archive by its headers.

    Raises:
        ImagesError: if the archive is damaged, or holds no labelled image.
    """
    with locations.opened(source.path) as file:
        coding = locations.stream_coding(file.read(6))
    members: list[_Member] = []
    labels: dict[str, bytes] = {}
    try:
        with locations.unpacked(source.path, coding) as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
            for info in archive:
                if not info.isreg() or info.issparse():
                    continue
                members.append(_Member(info.name, info.offset_data, info.size, coding))
                content = archive.extractfile(info) if info.name.lower().endswith(LABEL_ENDINGS) else None
                if content is not None:
                    labels[info.name] = content.read(LABEL_BYTES)
                advance(1)
    except (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise ImagesError(f"{source.given} is a damaged tar archive ({error}): create or copy it again") from error
    return _listing(source, members, labels.__getitem__, [])


def list_zip(source: Source, advance: Advance) -> Listing:
    """Lists a zip archive by its directory.

    Raises:
        ImagesError: if the archive is damaged, or holds no labelled image.
    """
    members: list[_Member] = []
    labels: dict[str, bytes] = {}
    unread: Counter[str] = Counter()
    try:
        with locations.opened(source.path) as file, zipfile.ZipFile(file) as archive:
            for info in archive.infolist():
                if info.is_dir():
                    continue
                if info.flag_bits & 1 or info.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
                    unread["encrypted" if info.flag_bits & 1 else f"compressed by method {info.compress_type}"] += 1
                    continue
                file.seek(info.header_offset)
                mark, name_length, extra_length = LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size))
                if mark != b"PK\x03\x04":
                    raise zipfile.BadZipFile(f"no header where {info.filename} begins")
                start = info.header_offset + LOCAL_HEADER.size + name_length + extra_length
                coding = "deflate" if info.compress_type == zipfile.ZIP_DEFLATED else ""
                members.append(_Member(info.filename, start, info.compress_size, coding))
                advance(1)
            for member in members:
                if member.name.lower().endswith(LABEL_ENDINGS):
                    with archive.open(member.name) as content:
                        labels[member.name] = content.read(LABEL_BYTES)
    except (zipfile.BadZipFile, struct.error, OSError, EOFError, NotImplementedError, zlib.error) as error:
        raise ImagesError(f"{source.given} is a damaged zip archive ({error}): create or copy it again") from error
    notes = [f"{source.given}: {count:,} members were left out: {reason}" for reason, count in sorted(unread.items())]
    return _listing(source, members, labels.__getitem__, notes)


def _listing(source: Source, members: list[_Member], read: Callable[[str], bytes], notes: list[str]) -> Listing:
    facts = locations.stat(source.path)
    by_stem: dict[str, dict[str, str]] = {}
    for member in members:
        stem, kind = _stem(member.name)
        by_stem.setdefault(stem, {})[kind] = member.name
    paired = {
        kinds[kind]: next(name for ending, name in kinds.items() if ending in LABEL_ENDINGS)
        for kinds in by_stem.values()
        for kind in kinds
        if kind not in folders.NOT_PICTURES and any(ending in LABEL_ENDINGS for ending in kinds)
    }
    labels: dict[str, tuple[str, str | None]]
    if not source.labelled:
        labels, left_out = _without_labels(members)
        notes = [*notes, *folders.describe_left_out(left_out, source.given)]
    elif paired:
        labels = dict(_read_labels(paired, read, source.given))
        unlabelled = sum(
            member.name not in paired and folders.ending(member.name) not in folders.NOT_PICTURES
            for member in members
            if not folders.hidden(member.name.rpartition("/")[2])
        )
        if unlabelled:
            notes = [
                *notes,
                f"{source.given}: {counted(unlabelled, 'image')} without .cls or .json left out (no class)",
            ]
    else:
        names = (member.name for member in members)
        labels, about_folders, left_out = label_members(names, source.given, tests=source.tests)
        notes = [*notes, *about_folders, *folders.describe_left_out(left_out, source.given)]
    found = tuple(
        Found(
            source.path,
            labels[member.name][0],
            source.given,
            facts.st_size,
            facts.st_mtime_ns,
            labels[member.name][1],
            member.offset,
            member.length,
            member.coding,
            member.name,
        )
        for member in members
        if member.name in labels
    )
    if not found and not source.labelled:
        raise ImagesError(f"{source.given} contains no images")
    if not found:
        raise ImagesError(
            f"{source.given} contains no images: expected one folder per class in it, or WebDataset pairs"
        )
    classes = {each.label for each in found}
    numbered = bool(paired) and all(label.isdecimal() for label in classes)
    return Listing(found, tuple(notes), tuple(sorted(classes)), numbered=numbered)


def _without_labels(members: list[_Member]) -> tuple[dict[str, tuple[str, str | None]], Counter[str]]:
    """Returns every member that may be an image, and counts of the others by ending."""
    # `tar cf x.tar .` writes names such as `./cat/1.png`.
    pieces = {member.name: [piece for piece in member.name.split("/") if piece != "."] for member in members}
    visible = [name for name, found in pieces.items() if not any(map(folders.hidden, found))]
    pictures = [name for name in visible if folders.ending(name) not in folders.NOT_PICTURES]
    others = Counter(folders.ending(name) for name in visible if folders.ending(name) in folders.NOT_PICTURES)
    return dict.fromkeys(pictures, (NO_CLASS, None)), others


def _stem(name: str) -> tuple[str, str]:
    """Returns a member's WebDataset key and its last ending.

    The key is the path up to the first dot of the file's name.
    """
    folder, slash, last = name.rpartition("/")
    key, _, _ = last.partition(".")
    return folder + slash + key, folders.ending(last)


def _read_labels(
    paired: dict[str, str], read: Callable[[str], bytes], given: str
) -> Iterator[tuple[str, tuple[str, str | None]]]:
    for picture, label_name in paired.items():
        content = read(label_name)
        if label_name.lower().endswith(".cls"):
            label = content.decode("utf-8", "replace").strip()
        else:
            label = _label_of_json(content, f"{given}: {label_name}")
        if not label:
            raise ImagesError(f"{given}: {label_name} contains no label")
        yield picture, (label, None)


def _label_of_json(content: bytes, where: str) -> str:
    try:
        value = json.loads(content)
    except ValueError as error:
        raise ImagesError(f"{where} is not valid JSON ({error})") from error
    if isinstance(value, (str, int)) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, dict):
        for key in LABEL_KEYS:
            if isinstance(value.get(key), (str, int)):
                return str(value[key])
    raise ImagesError(f"{where} has no label: expected one of the keys {', '.join(LABEL_KEYS)}")
