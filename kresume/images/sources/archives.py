"""Lists tar and zip archives without unpacking them: class folders inside, or WebDataset shards.

A member of an uncompressed tar or of a zip is a range of bytes. In a tar that is compressed as a whole (`.tar.gz`) no
member can be read alone, so the prepare pass reads it once, in order, into the cache.

Sources: POSIX.1-2001 (pax) through Python's tarfile; PKWARE APPNOTE 6.3.10 section 4.3.7 for where a member's bytes
begin.
"""

from __future__ import annotations

import lzma
import struct
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from kresume.errors import ImagesError
from kresume.images.sources import class_folders
from kresume.images.sources.class_folders import describe_left_out, walk
from kresume.images.sources.folder_order import Spelled, spelled_in
from kresume.images.sources.found import NO_CLASS, Advance, Found, Listing, Source, Top
from kresume.images.sources.names import ending
from kresume.images.sources.trees import InArchive, pieces_of
from kresume.images.sources.webdataset import LABEL_ENDINGS, read_labels
from kresume.spelling import counted
from kresume.storage import locations

TAR_MARK = slice(257, 262)
LABEL_BYTES = 2**20
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
    contents: dict[str, tuple[int, int]] = {}
    unread: Counter[str] = Counter()
    try:
        with locations.unpacked(source.path, coding) as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
            for info in archive:
                if info.isdir():
                    continue
                # tar writes a file's second name as a hard link to the first.
                where = contents.get(info.linkname) if info.islnk() else (info.offset_data, info.size)
                if where is None or info.issparse() or not (info.isreg() or info.islnk()):
                    unread[
                        "links: pack the files themselves, tar --dereference" if info.issym() else "no plain files"
                    ] += 1
                    continue
                contents[info.name] = where
                members.append(_Member(info.name, *where, coding))
                content = archive.extractfile(info) if info.name.lower().endswith(LABEL_ENDINGS) else None
                if content is not None:
                    labels[info.name] = content.read(LABEL_BYTES)
                advance(1)
    except (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise ImagesError(f"{source.given} is a damaged tar archive ({error}): create or copy it again") from error
    return _listing(source, members, labels.__getitem__, unread)


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
                if info.is_dir() or (info.filename.endswith("\\") and not info.file_size):
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
    return _listing(source, members, labels.__getitem__, unread)


def _listing(source: Source, members: list[_Member], read: Callable[[str], bytes], unread: Counter[str]) -> Listing:
    given = source.given
    size, time, stamp = locations.version(locations.stat(source.path))
    notes = [f"{given}: {counted(count, 'member')} left out: {reason}" for reason, count in sorted(unread.items())]
    last = _last(members)
    if len(last) < len(members):
        again = counted(len(members) - len(last), "member")
        notes.append(f"{given}: {again} left out: later ones have the same names, and count, as when it is unpacked")
    tree = InArchive(last)
    left_out: Counter[str] = Counter(tree.apart)
    own, about_keys = read_labels(last, read, given) if source.labelled else ({}, ())
    if own:
        notes += (*_notes_on_labels(tree, own, given), *about_keys)
    labels: dict[str, tuple[str, str | None]]
    tops: tuple[Top, ...] = ()
    spelled: tuple[Spelled, ...] = ()
    if not source.labelled:
        labels = {picture.path: (NO_CLASS, None) for picture in walk(tree, tree.root, left_out, labelled=False)}
    elif own:
        labels = {name: (label, None) for name, label in own.items()}
    else:
        _refuse_arrays(last, given)
        folders, about_folders, tops = class_folders.find(tree, source)
        spelled = spelled_in((folder.label, folder.split) for folder in folders)
        labels = {
            picture.path: (folder.label, folder.split)
            for folder in folders
            for picture in walk(tree, folder.path, left_out)
        }
        notes += about_folders
    notes += describe_left_out(left_out, given)
    numbered = bool(own) and all(label.isdecimal() for label in own.values())
    found = tuple(
        Found(
            source.path,
            labels[member.name][0],
            given,
            size,
            time,
            labels[member.name][1],
            member.offset,
            member.length,
            member.coding,
            member.name,
            stamp=stamp,
            numbered=numbered,
        )
        for member in last.values()
        if member.name in labels
    )
    if not found:
        expected = ": expected one folder per class in it, or WebDataset pairs" if source.labelled else ""
        raise ImagesError(f"{given} contains no images{expected}")
    return Listing(found, tuple(notes), tuple(sorted({each.label for each in found})), tops=tops, spelled=spelled)


def _last(members: list[_Member]) -> dict[str, _Member]:
    """Returns the last member of each place, by its name; `./a/1.png` and `a//1.png` are one place."""
    last = {"/".join(pieces_of(member.name)): member for member in members}
    return {member.name: member for member in last.values()}


def _notes_on_labels(tree: InArchive, labels: Mapping[str, str], given: str) -> list[str]:
    """Compares labels in `.cls` and `.json` members with the pictures and their folders.

    Returns:
        Notes on pictures without such a member, and on folders that say something else.

    Raises:
        ImagesError: most pictures have no such member, and lie in several folders.
    """
    pictures = {picture.path: pieces_of(picture.path)[:-1] for picture in walk(tree, tree.root, Counter())}
    folders = {tuple(pieces) for pieces in pictures.values() if pieces}
    without = len(pictures.keys() - labels.keys())
    if len(folders) > 1 and without > len(labels):
        labelled = counted(len(labels), "picture", "has", "have")
        raise ImagesError(
            f"{given}: {labelled} a label in a .cls or .json member, and {without:,} have none, but lie in folders such as "
            f"{', '.join(sorted({pieces[-1] for pieces in folders})[:3])}: remove those members to take the folders as "
            "classes, or add the others"
        )
    notes = []
    other = sum(label not in pictures.get(name, ()) for name, label in labels.items())
    if len(folders) > 1 and other:
        notes.append(
            f"{given}: labels are those of its .cls and .json members, not of the folders; {other:,} pictures differ"
        )
    if without:
        notes.append(f"{given}: {counted(without, 'image')} without .cls or .json left out (no class)")
    return notes


def _refuse_arrays(names: Collection[str], given: str) -> None:
    """Raises an error for a file of numpy.savez, which is a zip too."""
    if names and all(ending(name) == ".npy" for name in names):
        raise ImagesError(
            f"{given} holds {counted(len(names), 'array')} of NumPy, and no image files: write each image as a file into a "
            "folder of its class, PIL.Image.fromarray(array).save(...), or use kresume.BackupAndRestore in your own fit"
        )
