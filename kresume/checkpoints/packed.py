"""Explains how to unpack an archive that contains a checkpoint.

    explain(Path("model.zip"))       # "model.zip is a zip archive that holds a .keras file: unpack it: ...", or None

Only member names are read; nothing is unpacked.
"""

from __future__ import annotations

import shlex
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from kresume.checkpoints import content

HELD = (
    ("saved_model.pb", "a SavedModel", True),
    (".keras", "a .keras file", False),
    (".weights.json", "a sharded .weights.json", False),
    (".weights.h5", "a .weights.h5", False),
    (".h5", "an .h5 of Keras", False),
    (".hdf5", "an .h5 of Keras", False),
    (".index", "a tf.train.Checkpoint", False),
    ("_CHECKPOINT_METADATA", "a folder of Orbax", True),
    ("_METADATA", "a folder of Orbax", True),
    (".safetensors", "a PyTorch state dict", False),
    (".pth", "a PyTorch state dict", False),
    (".pth.tar", "a PyTorch state dict", False),
    (".pt", "a PyTorch state dict", False),
    (".ckpt", "a PyTorch state dict", False),
)
"""Member name ending, format name, and True if `--from` expects the member's folder. The first match is used."""
GZIP, TAR, TAR_AT = b"\x1f\x8b", b"ustar", 257
LONGEST = 80
"""Number of characters of a member's name that a message shows."""


def explain(path: Path) -> str | None:
    """Returns what an archive holds and how to unpack it; None for other files.

    Args:
        path: a file that no reader recognises.
    """
    if not path.is_file():
        return None
    with path.open("rb") as stream:
        beginning = stream.read(TAR_AT + len(TAR))
    if beginning.startswith(GZIP) or beginning[TAR_AT:] == TAR:
        return (
            f"{path} is a tar or gzip archive, which kresume does not read: unpack it, for example with mkdir unpacked && "
            f"tar -xf {shlex.quote(str(path))} -C unpacked, and give the checkpoint in it"
        )
    if not beginning.startswith(content.ZIP):
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        return f"{path} is a zip archive that is truncated or damaged ({error}): use another copy"
    outside = next((name for name in names if content.points_outside(name)), None)
    if outside is not None:
        return f"{path} is a zip archive with the member {_shown(outside)}, which points outside the archive: refused"
    found = _checkpoint(names)
    if found is None:
        inside = ", ".join(_shown(name) for name in names[:3]) or "nothing"
        return f"{path} is a zip archive, and none of its names looks like a checkpoint: it holds {inside}"
    what, member = found
    folder = path.with_name(f"{path.name.removesuffix('.zip')}-unpacked")
    inner = folder / member
    return (
        f"{path} is a zip archive that holds {what}: unpack it with python -m zipfile -e {shlex.quote(str(path))} "
        f"{shlex.quote(str(folder))}, then give {shlex.quote(str(inner))}"
    )


def _checkpoint(names: Sequence[str]) -> tuple[str, str] | None:
    """Returns the format of the archived checkpoint and its path for `--from`.

    Of several members, returns the one in the fewest folders.
    """
    for ending, what, is_folder in HELD:
        inside = [name for name in names if name.endswith(ending) and "__MACOSX" not in name and name.isprintable()]
        if inside:
            member = min(inside, key=lambda name: (name.count("/"), name))
            chosen = str(PurePosixPath(member).parent) if is_folder else member.removesuffix(".index")
            return what, chosen
    return None


def _shown(name: str) -> str:
    return ascii(name[:LONGEST])
