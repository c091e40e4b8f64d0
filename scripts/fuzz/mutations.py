"""Damages files in the ways that disks, networks and attackers do.

    damaged = mutate({"model.keras": data}, {"model.keras": other}, random.Random(7))

One input is a mapping from relative names to bytes, because many checkpoints are folders. The same random state gives
the same damage. Half of the time the damage is done inside of what a checksum covers (a member of a zip archive, a
snapshot's records, a record of a TFRecord), and the checksum is computed again, so that the readers behind it are reached.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import random
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable

Files = dict[str, bytes]
EXTREMES = (0, 1, -1, 2**7, 2**15 - 1, 2**15, 2**31 - 1, 2**31, -(2**31), 2**63 - 1, -(2**63), 2**40, 10**6)
VALUES = (
    b"null",
    b"-1",
    b"1e999",
    b'"x"',
    b"[]",
    b"{}",
    b"true",
    b"99999999999999999999",
    b"NaN",
    b'"\\ud800"',
    b"[[]]",
)
TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?|true|false|null')
END_OF_ZIP = b"PK\x05\x06"
DIRECTORY = b"PK\x01\x02"


def mutate(files: Files, other: Files, rng: random.Random) -> Files:
    """Returns the files with one to three mutations.

    Args:
        files: a good input, not changed.
        other: another good input; parts of its files are spliced in.
        rng: decides everything.
    """
    result = dict(files)
    if len(result) > 1 and rng.random() < 0.05:
        del result[rng.choice(sorted(result))]
        return result
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        name = rng.choice(sorted(result))
        result[name] = damaged(name, result[name], rng.choice(sorted(other.values())), rng)
    return result


def damaged(name: str, data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Returns one file with one mutation, sometimes behind its checksum."""
    if rng.random() < 0.5:
        for inside in (_inside_zip, _inside_gzip, _inside_records, _inside_snapshot):
            found = inside(name, data, other, rng)
            if found is not None:
                return found
    if data.lstrip()[:1] in {b"{", b"["} and rng.random() < 0.7:
        return _token(data, rng)
    return rng.choice(KINDS)(data, other, rng)


def _cut(data: bytes, other: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _delete(data: bytes, other: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data) + 1)
    return data[:start] + data[start + rng.choice((1, 2, 4, 8, 64, 512)) :]


def _insert(data: bytes, other: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data) + 1)
    return data[:start] + rng.randbytes(rng.choice((1, 2, 4, 8, 64, 512))) + data[start:]


def _flip(data: bytes, other: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8)) if data else 0):
        changed[_spot(data, rng)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _spot(data: bytes, rng: random.Random) -> int:
    """Returns an index; the structure of most formats is at the beginning or the end."""
    size = len(data)
    near = min(size, 256)
    return rng.choice((rng.randrange(size), rng.randrange(near), size - 1 - rng.randrange(near)))


def _extreme(data: bytes, other: bytes, rng: random.Random) -> bytes:
    size = rng.choice((1, 2, 4, 8))
    if len(data) < size:
        return data
    number = rng.choice(EXTREMES) % 2 ** (8 * size)
    start = min(_spot(data, rng), len(data) - size)
    start -= start % size if rng.random() < 0.5 else 0
    return data[:start] + number.to_bytes(size, rng.choice(("little", "big"))) + data[start + size :]


def _splice(data: bytes, other: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data) + 1)
    return data[:start] + other[rng.choice((start, rng.randrange(len(other) + 1))) :]


def _repeat(data: bytes, other: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data) + 1)
    part = data[start : start + rng.choice((8, 64, 512))]
    where = rng.randrange(len(data) + 1)
    return data[:where] + part * rng.choice((1, 2, 100)) + data[where:]


def _zeros(data: bytes, other: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data) + 1)
    size = min(rng.choice((8, 64, 512, 4096)), len(data) - start)
    return data[:start] + bytes(size) + data[start + size :]


def _end_of_archive(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Cuts or changes the directory at a zip archive's end."""
    place = data.rfind(END_OF_ZIP)
    first = data.find(DIRECTORY)
    if place < 0 or first < 0:
        return _flip(data, other, rng)
    if rng.random() < 0.3:
        return data[: rng.randrange(first, len(data))]
    changed = bytearray(data)
    index = rng.randrange(first, len(data))
    changed[index : index + 4] = (rng.choice(EXTREMES) % 2**32).to_bytes(4, "little")
    return bytes(changed)


def _token(data: bytes, rng: random.Random) -> bytes:
    """Replaces a name or a value of a JSON text, which often stays valid JSON."""
    found = list(TOKEN.finditer(data))
    if not found:
        return data
    token = rng.choice(found)
    is_name = data[token.end() : token.end() + 3].lstrip()[:1] == b":"
    new = rng.choice((b'"renamed"', b'"config"', b'"class_name"')) if is_name else rng.choice(VALUES)
    return data[: token.start()] + new + data[token.end() :]


KINDS: tuple[Callable[[bytes, bytes, random.Random], bytes], ...] = (
    _cut, _delete, _insert, _flip, _flip, _extreme, _extreme, _splice, _repeat, _zeros, _end_of_archive,
)  # fmt: skip


def _inside_zip(name: str, data: bytes, other: bytes, rng: random.Random) -> bytes | None:
    if not data.startswith(b"PK\x03\x04"):
        return None
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {info.filename: archive.read(info) for info in archive.infolist()}
    except Exception:  # damaged by an earlier mutation
        return None
    if not members:
        return None
    # Small members describe the large ones.
    chosen = rng.choice(sorted(members, key=lambda each: len(members[each]))[: rng.randrange(1, len(members) + 1)])
    members[chosen] = damaged(chosen, members[chosen], other, rng)
    file = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w") as archive:
        warnings.simplefilter("ignore")
        for member, content in members.items():
            archive.writestr(zipfile.ZipInfo(member), content)
    return file.getvalue()


def _inside_gzip(name: str, data: bytes, other: bytes, rng: random.Random) -> bytes | None:
    if not data.startswith(b"\x1f\x8b"):
        return None
    try:
        inner = gzip.decompress(data)
    except (OSError, EOFError, zlib.error):
        return None
    return gzip.compress(damaged(name, inner, other, rng), mtime=0)


def _inside_records(name: str, data: bytes, other: bytes, rng: random.Random) -> bytes | None:
    if not name.endswith(".tfrecord"):
        return None
    from kresume.images.sources.records import masked_crc

    records, position = [], 0
    while position + 12 <= len(data):
        (length,) = struct.unpack_from("<Q", data, position)
        records.append(data[position + 12 : position + 12 + length])
        position += 16 + length
    if not records:
        return None
    index = rng.randrange(len(records))
    records[index] = rng.choice(KINDS)(records[index], other, rng)
    parts = []
    for record in records:
        head = struct.pack("<Q", len(record))
        parts += [head, struct.pack("<I", masked_crc(head)), record, struct.pack("<I", masked_crc(record))]
    return b"".join(parts)


def _inside_snapshot(name: str, data: bytes, other: bytes, rng: random.Random) -> bytes | None:
    if not name.endswith("meta.json"):
        return None
    try:
        facts = json.loads(_token(data, rng))
    except ValueError:
        return None
    facts.pop("sha256", None)
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return json.dumps({**facts, "sha256": digest}).encode()
