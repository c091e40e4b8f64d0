"""Collects the facts of this machine, without importing a framework.

machine = look()                        # at once
seen = ask("jax", 60)                   # in a process of its own, with a time limit
"""

from __future__ import annotations

import csv
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kresume import crash
from kresume.backend.fingerprint import PACKAGES, cpu_model, package_versions, thread_count
from kresume.backend.selection import accelerator_visible, default_backend, jax_drives
from kresume.runtimes.process import last_words
from kresume.storage import locations

PRESENT = Path(__file__).parents[3]
"""The folder that holds the package."""


@dataclass(frozen=True)
class Gpu:
    """A GPU as NVIDIA's driver lists it; memory in bytes."""

    name: str
    memory: int
    used: int
    driver: str


@dataclass(frozen=True)
class Machine:
    """The facts of a machine that need no framework.

    Attributes:
        system: the operating system in words.
        cpu: the processor.
        threads: how many CPUs this process may use.
        cores: how many the machine has.
        memory: in bytes; 0 if unknown.
        free: bytes that are free where decoded pictures are kept.
        cache: where that is.
        accelerator: `"gpu"`, `"tpu"` or None: what the machine has, whatever JAX and TensorFlow think of it.
        gpus: as the driver lists them.
        drives: which of `"gpu"` and `"tpu"` JAX has a plugin for.
        packages: versions of the installed packages.
        outside: packages whose version is outside the range that kresume needs, with that range.
        keras_backend: the environment variable; None if it is not set.
        backend: what `--backend` is without being given.
        colab: True in Google Colab.
    """

    system: str = ""
    python: str = ""
    cpu: str = ""
    threads: int = 1
    cores: int = 1
    memory: int = 0
    free: int = 0
    cache: str = ""
    accelerator: str | None = None
    gpus: tuple[Gpu, ...] = ()
    drives: tuple[str, ...] = ()
    packages: Mapping[str, str] = field(default_factory=dict)
    outside: Mapping[str, str] = field(default_factory=dict)
    keras_backend: str | None = None
    backend: str = "tensorflow"
    colab: bool = False


@dataclass(frozen=True)
class Seen:
    """The answer of a probe.

    Attributes:
        facts: what it found; empty if it failed.
        error: why it failed, in one line; empty if it did not.
        slow: True if it did not answer in time.
    """

    facts: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""
    slow: bool = False


def busy_share(seconds: float, statistics: Path = Path("/proc/stat")) -> float:
    """Returns the share of the processors' time that processes use during the next seconds.

    0 where the system has no such file: see `proc_stat(5)` of the Linux manual.
    """
    if not statistics.is_file():
        return 0.0
    before = _ticks(statistics)
    time.sleep(seconds)
    passed = [after - first for first, after in zip(before, _ticks(statistics), strict=True)]
    idle = passed[3] + passed[4]  # idle, and idle while a disk is at work
    return 1 - idle / max(sum(passed), 1)


def _ticks(statistics: Path) -> list[int]:
    """Returns the ticks of all processors so far, by what they did; those of guests are among them."""
    return [int(word) for word in statistics.read_text().split("\n", 1)[0].split()[1:9]]


def look() -> Machine:
    """Collects the facts of this machine."""
    gpus = _gpus()
    return Machine(
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        cpu=cpu_model(),
        threads=thread_count(),
        cores=os.cpu_count() or 1,
        memory=_memory(),
        free=_free(locations.cache_root()),
        cache=str(locations.cache_root()),
        accelerator=accelerator_visible() or ("gpu" if gpus else None),
        gpus=gpus,
        drives=tuple(kind for kind in ("gpu", "tpu") if jax_drives(kind)),
        packages=package_versions(),
        outside=_outside(),
        keras_backend=os.environ.get("KERAS_BACKEND") or None,
        backend=default_backend(),
        colab="COLAB_RELEASE_TAG" in os.environ,
    )


def ask(probe: str, seconds: float) -> Seen:
    """Runs a probe in a process of its own.

    Args:
        probe: a name of `probe.PROBES`.
        seconds: how long it may take.
    """
    with tempfile.TemporaryDirectory(prefix="kresume-") as folder:
        answer = Path(folder) / "answer.json"
        paths = os.pathsep.join(filter(None, [str(PRESENT), os.environ.get("PYTHONPATH")]))
        environment = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "TF_FORCE_GPU_ALLOW_GROWTH": "true"}
        try:
            done = subprocess.run(
                [sys.executable, "-P", "-m", "kresume.reports.doctor.probe", probe, str(answer)],
                env={**os.environ, **environment, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": paths},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return Seen(error=f"no answer within {seconds:.0f} s", slow=True)
        if answer.is_file() and not done.returncode:
            return Seen(json.loads(answer.read_text(encoding="utf-8")))
        return Seen(error=crash.death(done.returncode) or last_words(done.stderr))


def _gpus() -> tuple[Gpu, ...]:
    """Returns the GPUs that `nvidia-smi` lists; none without it."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total,memory.used,driver_version", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
        rows = csv.reader(done.stdout.splitlines(), skipinitialspace=True)
        return tuple(Gpu(name, int(total) * 2**20, int(used) * 2**20, driver) for name, total, used, driver in rows)
    except (OSError, ValueError, subprocess.SubprocessError):
        return ()


def _memory() -> int:
    """Returns the bytes of memory that this machine, or its container, has; 0 if unknown."""
    found = []
    try:
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
        found.append(int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="utf-8")))
    except (OSError, ValueError, AttributeError):  # "max", or not Linux
        pass
    return min(found, default=0)


def _free(folder: Path) -> int:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return 0


def _outside() -> dict[str, str]:
    """Returns the packages whose version is not in the range that kresume was installed with."""
    try:
        required = importlib.metadata.requires("kresume") or []
    except importlib.metadata.PackageNotFoundError:  # used from its sources
        return {}
    from packaging.requirements import InvalidRequirement, Requirement

    found = {}
    for text in required:
        try:
            requirement = Requirement(text)
            if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
                continue
            version = importlib.metadata.version(requirement.name)
        except (InvalidRequirement, importlib.metadata.PackageNotFoundError):
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            found[requirement.name] = f"{version} is installed, kresume needs {requirement.specifier}"
    return found


def missing(packages: Mapping[str, str]) -> tuple[str, ...]:
    """Returns the packages of training that are not installed."""
    return tuple(name for name in PACKAGES if name not in packages and name != "kresume")
