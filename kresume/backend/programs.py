"""Keeps what JAX compiled in the run, so that a continued run does not compile it again.

    programs.use(run.path)       # after the backend was selected, before JAX computes; None for a new run
    programs.keep(run.path)      # after each snapshot: writes the archive if there are new programs
    programs.forget(run.path)    # the run is finished

JAX's persistent compilation cache reads and writes a temporary folder of this process. The run holds an archive of it,
one file in `compiled/` for each kind of machine, whose name is a digest of everything that a program depends on:
processor with its features, threads, JAX, platform, device. A program of another machine could crash or compute other
bits, so it has another name and is not found.

A program is machine code: who writes it into a run that somebody else continues runs code there. So an archive is
signed with a key of this user, and one with another signature is ignored, as a damaged one is. Nothing here can fail a
run: without an archive JAX compiles.

Source: https://docs.jax.dev/en/latest/persistent_compilation_cache.html.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import hmac
import io
import os
import platform
import secrets
import shutil
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kresume.backend.fingerprint import cpu_features, cpu_model, thread_count
from kresume.storage import atomic, locations
from kresume.storage.stores import DRIVE

FOLDER = "compiled"
KEY = "key"
"""Name of the file in the user's cache folder with the key that signs archives."""
PREFIX = "kresume-jax-"
ENDING = "-cache"
COLAB_DRIVE = Path(DRIVE, "MyDrive")
"""Where Colab mounts the user's own drive."""
SIGNATURE_BYTES = 32
MOST_BYTES = 2**30
"""Largest archive that is written."""
MOST_MACHINES = 3
"""Archives that a run keeps: a preempted run moves between a few kinds of machines."""
ABANDONED_SECONDS = 24 * 3600.0


@dataclass
class _Programs:
    """The programs of this process.

    Attributes:
        folder: where JAX reads and writes them.
        name: the name of their archive.
        key: signs the archive.
        kept: size of each program that the last archive holds.
    """

    folder: Path
    name: str
    key: bytes
    kept: dict[str, int] = field(default_factory=dict)


_ours: _Programs | None = None
"""JAX has one cache per process, so this is one, too."""


def use(run: Path | None, *, crashed: bool = False) -> None:
    """Lets JAX keep what it compiles, and gives it what the run holds. Call before JAX computes.

    Does nothing under TensorFlow, and where the user has a JAX compilation cache already (JAX_COMPILATION_CACHE_DIR).

    Args:
        run: the directory of an interrupted run; None for a new one.
        crashed: the process before this one crashed in native code: its programs are not used again.
    """
    global _ours  # noqa: PLW0603  # JAX's setting is global, too
    import keras

    if keras.config.backend() != "jax":
        return
    import jax

    if _ours is None:
        if jax.config.jax_compilation_cache_dir is not None or (key := _key()) is None:
            return
        try:
            _remove_abandoned()
            folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        except OSError:
            return
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        _ours = _Programs(folder, _name(key), key)
        # A damaged entry, or a temporary folder that is full: JAX compiles, and nobody needs to act.
        warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache", UserWarning)
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
        # Else the path of this folder becomes a part of a GPU program, and of the name under which it is found.
        jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
    _ours.kept = {}
    if run is not None and crashed:
        forget(run)
    elif run is not None:
        with contextlib.suppress(OSError):
            _ours.kept = _unpack((run / FOLDER / _ours.name).read_bytes(), _ours)


def keep(run: Path) -> None:
    """Writes the archive of the run, if JAX compiled anything since the last time.

    Args:
        run: its directory, whose lock this process holds.
    """
    if _ours is None:
        return
    with contextlib.suppress(OSError):  # a full or read-only disk: the next process compiles again
        found = {path.name: path.stat().st_size for path in _ours.folder.glob(f"*{ENDING}")}
        if found.items() <= _ours.kept.items() or sum(found.values()) > MOST_BYTES:
            return
        atomic.write_bytes(run / FOLDER / _ours.name, _pack(_ours, found))
        _ours.kept = found
        archives = sorted((run / FOLDER).iterdir(), key=lambda path: path.stat().st_mtime)
        for old in archives[:-MOST_MACHINES]:
            old.unlink()


def forget(run: Path) -> None:
    """Removes the programs from a run.

    Args:
        run: its directory.
    """
    shutil.rmtree(run / FOLDER, ignore_errors=True)


def _name(key: bytes) -> str:
    """Returns the name of the archive of this kind of machine and this key."""
    import jax
    from jaxlib.version import __version__ as jaxlib_version

    devices = jax.devices()
    facts = (
        jax.__version__, jaxlib_version, devices[0].client.platform_version, devices[0].platform,
        devices[0].device_kind, len(devices), platform.machine(), platform.system(), cpu_model(), cpu_features(),
        thread_count(), os.environ.get("XLA_FLAGS", ""), sys.byteorder,
    )  # fmt: skip
    digest = hmac.new(key, repr(facts).encode(), hashlib.sha256).hexdigest()
    return f"{devices[0].platform}-jaxlib-{jaxlib_version}-{digest[:16]}"


def _key() -> bytes | None:
    """Returns the key of this user, which is made at the first use; None if it cannot be kept."""
    path = _key_file()
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(secrets.token_bytes(SIGNATURE_BYTES))
        key = path.read_bytes()
        if len(key) == SIGNATURE_BYTES:
            return key
        path.unlink()  # torn by a crash, or another process writes it now: the next command has one
    return None


def _key_file() -> Path:
    """Returns the key's file: in the cache folder; on Colab on the drive, which outlasts the machine."""
    if "KRESUME_CACHE" not in os.environ and COLAB_DRIVE.is_dir():
        return COLAB_DRIVE / ".kresume" / KEY
    return locations.cache_root() / KEY


def _pack(ours: _Programs, found: Mapping[str, int]) -> bytes:
    """Returns the signed archive of the programs.

    It is 32 bytes of HMAC-SHA256, of the name and a zip file, and that zip file.
    """
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:  # stored: JAX compresses each program
        for name in sorted(found):
            archive.writestr(name, (ours.folder / name).read_bytes())
    return _signature(ours, packed.getvalue()) + packed.getvalue()


def _signature(ours: _Programs, packed: bytes) -> bytes:
    return hmac.new(ours.key, ours.name.encode() + packed, hashlib.sha256).digest()


def _unpack(data: bytes, ours: _Programs) -> dict[str, int]:
    """Gives JAX the programs of an archive, unless its signature is not ours; returns the size of each."""
    signature, packed = data[:SIGNATURE_BYTES], data[SIGNATURE_BYTES:]
    if not hmac.compare_digest(signature, _signature(ours, packed)):
        return {}
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        archive.extractall(ours.folder)
        return {entry.filename: entry.file_size for entry in archive.infolist()}


def _remove_abandoned() -> None:
    """Removes the folders of processes that were killed more than a day ago."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            if time.time() - folder.stat().st_mtime > ABANDONED_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)
