"""Verifies records by a digest of themselves, and exports by a digest of every file, too.

    write(path, record)                     # `run.json`, `architecture.json`
    read(path)                              # an error if it was changed since
    write_json(folder / NAME, seal(record))
    check("serving/flowers/3")              # the whole export
    check("weights/model.weights.h5")       # this file of one

Several formats have no checksum of their own: a flipped bit in an `.h5` file or in the graph of a SavedModel would be
another number. A folder without the record of an export is not checked.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kresume.errors import CheckpointError
from kresume.storage import atomic

NAME, DIGEST, END = "export.json", "sha256", "\n}"
SEALED = re.compile(rb',\n  "sha256": "([0-9a-f]{64})"\n}\n?\Z')
OURS = (b'"export_format"', b'"parity"', b'"sha256"')
"""Each is in every record, so that one damaged byte leaves two."""


class Changed(ValueError):
    """A record does not match its digest."""


def seal(record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the record with a digest of itself as `sha256`."""
    return {**record, DIGEST: _digest(record)}


def sealed_text(record: Mapping[str, Any]) -> str:
    """Returns the record as indented JSON, with a digest of the text before it as the last field.

    Verifying the text is much cheaper than writing the JSON of a thousand records again.

    Raises:
        ValueError: a number is not finite.
    """
    text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return f'{text.removesuffix(END)},\n  "{DIGEST}": "{digest}"{END}\n'


def write(path: Path, record: Mapping[str, Any]) -> None:
    """Writes a record as `sealed_text`, atomically."""
    atomic.write_text(path, sealed_text(record))


def read(path: Path) -> Any:
    """Reads what `write` wrote, without its digest.

    A record that has none is of an earlier version, and not verified.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no JSON.
        Changed: it does not match its digest.
    """
    content = path.read_bytes()
    record = atomic.parse_json(content, path)
    if not isinstance(record, dict) or not any(_is_ours(name) for name in record):
        return record
    if not _matches(content):
        raise Changed(
            f"{path} does not match its digest: it is damaged, or was changed by hand. Restore it from a copy of the run; if "
            f"you changed it, remove `{DIGEST}` from it"
        )
    return {name: value for name, value in record.items() if name != DIGEST}


def _is_ours(name: str) -> bool:
    """Returns True for the name of the digest, also with one damaged character."""
    return len(name) == len(DIGEST) and sum(one != other for one, other in zip(name, DIGEST, strict=True)) <= 1


def _matches(content: bytes) -> bool:
    """Returns True if a text ends with its digest, and that is right."""
    found = SEALED.search(content)
    return (
        found is not None and hashlib.sha256(content[: found.start()] + END.encode()).hexdigest() == found[1].decode()
    )


def _digest(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def check(path: str | Path) -> None:
    """Verifies an export, or one file of it; does nothing where there is no export.

    Args:
        path: the folder of the export, a file in it, or the prefix of a `tf.train.Checkpoint` in it.

    Raises:
        CheckpointError: the bytes of a file were changed since the export; the message names it.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    listed = _read(folder / NAME)
    for name, facts in listed.items():
        if folder == path or name == path.name or name.startswith(f"{path.name}."):
            file = folder / name
            if not file.is_file():
                continue  # removed on purpose, or its reader says that it is missing
            if file.stat().st_size != facts["bytes"] or atomic.sha256_of_file(file) != facts["sha256"]:
                raise CheckpointError(
                    f"{file} is not the file that was exported, its bytes were changed: export again (if you changed it, "
                    f"remove {NAME}, and give the classes and pixels as options)"
                )


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """Returns the files that a record lists; none if it is not the record of an export."""
    if not path.is_file():
        return {}
    content = path.read_bytes()
    try:
        record = json.loads(content)
    except ValueError as error:
        if not any(mark in content for mark in OURS):
            return {}
        raise CheckpointError(f"{path} is damaged ({error}): export again") from error
    if not isinstance(record, dict):
        return {}
    digest = record.pop(DIGEST, None)
    sealed = isinstance(digest, str) and re.fullmatch(r"[0-9a-f]{64}", digest) is not None
    if digest is not None and (not sealed or digest != _digest(record)) and (sealed or "export_format" in record):
        raise CheckpointError(f"{path} does not match its digest, it was changed: export again")
    files = record.get("files") if "export_format" in record else None
    return files if isinstance(files, dict) else {}
