"""Lists the images of a manifest from `kresume data scan` or from another run."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kresume.errors import ImagesError
from kresume.images.sources.folder_order import spelled_by
from kresume.images.sources.found import STREAM_CODINGS, Advance, Facts, Found, Listing, Quarantined, Source, key_of_row
from kresume.storage import locations
from kresume.storage.damage import interpreting, reason

if TYPE_CHECKING:
    import pyarrow as pa

MARK = b"kresume_manifest"


def accepts(path: str) -> bool:
    """Returns True if a file is a Parquet table with kresume's mark."""
    if locations.is_folder(path):
        return False
    with locations.opened(path) as file:
        if file.read(4) != b"PAR1":
            return False
        import pyarrow as pa
        import pyarrow.parquet as parquet

        file.seek(0)
        try:
            return MARK in (parquet.read_schema(file).metadata or {})
        except (OSError, pa.ArrowException):
            return False


def list_source(source: Source, advance: Advance) -> Listing:
    """Lists the images of a manifest, with their splits and recorded facts.

    Missing files are quarantined.

    Raises:
        ImagesError: if the manifest is damaged, or none of its images exists.
    """
    import pyarrow as pa
    import pyarrow.parquet as parquet

    try:
        with locations.opened(source.path) as file:
            table = parquet.read_table(file)
        table.validate(full=True)
    except (OSError, pa.ArrowException) as error:
        raise ImagesError(
            f"{source.given} is a damaged manifest ({reason(error)}): scan its images again with `kresume data scan`"
        ) from error
    with interpreting(f"the manifest {source.given}", ImagesError):
        return _listing(source, table, advance)


def is_there(row: Mapping[str, Any]) -> bool:
    """Returns True if a picture is still where a manifest found it; its file may be a mere copy.

    False in a file that is compressed as a whole: each member would unpack all before it.

    Args:
        row: the picture's row: its location and `sha256`.
    """
    if row.get("coding") in STREAM_CODINGS:
        return False
    try:
        data = locations.read_range(row["path"], row["offset"], row["length"], row.get("coding") or "")
    except (ImagesError, OSError, EOFError, ValueError):
        return False
    return hashlib.sha256(data).hexdigest() == str(row["sha256"])


def still_there(record: Mapping[str, Any]) -> bool:
    """Returns True if the recorded place of an image still holds it.

    In a changed archive that is compressed as a whole it counts as there: to look would unpack everything before it.

    Args:
        record: the image's row: its location, `bytes`, `mtime_ns`, `stamp` and `sha256`.
    """
    try:
        facts = locations.stat(record["path"])
    except (OSError, ValueError):  # ValueError: no file can have this name
        return False
    if locations.version(facts) == _version(record):
        return True
    return record["coding"] in STREAM_CODINGS or is_there(record)


def _version(row: Mapping[str, Any]) -> locations.Version:
    """Returns the recorded version of a file; earlier kresumes wrote no stamp."""
    return row["bytes"], row["mtime_ns"], row.get("stamp") or 0


def _version_now(path: str) -> locations.Version | None:
    """Returns the version of a file; None if there is none."""
    try:
        return locations.version(locations.stat(path))
    except (OSError, ValueError):  # ValueError: no file can have this name
        return None


def _in_streams(rows: Sequence[Mapping[str, Any]], now: Mapping[str, locations.Version | None]) -> set[str]:
    """Returns the keys of members of changed files, compressed as a whole, that hold what was recorded.

    Files of another size or time are left out, without a look. Each of the others is read once.
    """
    changed: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        version = now.get(row["path"])
        if row.get("coding") not in STREAM_CODINGS or version is None or version == _version(row):
            continue
        if version[:2] == _version(row)[:2]:
            changed.setdefault(row["path"], []).append(row)
    held: set[str] = set()
    for path, members in changed.items():
        members.sort(key=lambda row: int(row["offset"]))
        ranges = [(row["offset"], row["length"]) for row in members]
        with contextlib.suppress(OSError, EOFError):
            for row, data in zip(members, locations.read_stream(path, members[0]["coding"], ranges), strict=True):
                if hashlib.sha256(data).hexdigest() == str(row["sha256"]):
                    held.add(key_of_row(row))
    return held


def _listing(source: Source, table: pa.Table, advance: Advance) -> Listing:
    names = set(table.column_names)
    found: list[Found] = []
    gone: list[Quarantined] = []
    known: dict[str, tuple[locations.Version, Facts]] = {}
    moved: set[str] = set()
    folder = locations.parent(source.path)
    rows = table.to_pylist()
    for row in rows:
        if source.moves.pairs:
            row["path"], old = source.moves.apply(row["path"], folder)
            moved |= old
    now = {path: _version_now(path) for path in dict.fromkeys(row["path"] for row in rows)}
    held = _in_streams(rows, now)
    for row in rows:
        path, version = row["path"], now[row["path"]]
        if version is None:
            gone.append(Quarantined(path, row["label"], f"listed in {source.given}, but it does not exist"))
            continue
        parts = {name: row[name] for name in ("offset", "length", "coding", "member", "extra") if name in names}
        if (
            parts.get("length", -1) >= 0
            and version != _version(row)
            and key_of_row(row) not in held
            and not is_there(row)
        ):
            gone.append(
                Quarantined(path, row["label"], f"{path} has changed since {source.given} was made: scan it again")
            )
            continue
        size, time, stamp = version
        each = Found(path, row["label"], source.given, size, time, split=row["side"], stamp=stamp, **parts)
        found.append(each)
        facts = Facts(row["sha256"], row["width"], row["height"], row["format"], row["phash"], row.get("thumb") or b"")
        known[each.key] = (_version(row), facts)
        advance(1)
    if not found:
        raise ImagesError(
            f"{source.given} is a manifest of {len(gone):,} images, and none is there, the first because of this: "
            f"{gone[0].reason}"
        )
    notes = (
        [f"{source.given}: {len(gone):,} of its images are missing or moved; the first is {gone[0].path}"]
        if gone
        else []
    )
    labels = tuple(sorted({each.label for each in found}))
    return Listing(
        tuple(found), tuple(notes), labels, tuple(gone), known, moved=frozenset(moved), spelled=spelled_by(found)
    )
