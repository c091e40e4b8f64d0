"""Describes what equal bytes depend on: versions, backend, devices, processor, threads."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from kresume.backend import hosts, tpu
from kresume.version import __version__

PACKAGES = ("kresume", "keras", "tensorflow", "jax", "jaxlib", "numpy")
ONEDNN = "TF_ENABLE_ONEDNN_OPTS"


def cpu_model() -> str:
    """Returns the name of this machine's processor."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def cpu_features() -> str:
    """Returns the instruction sets of this machine's processor as Linux lists them; empty elsewhere.

    Cloud machines of several generations have the same name.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(("flags", "Features"))), "")


def thread_count() -> int:
    """Returns how many CPUs this process may use. The frameworks size their thread pools by it."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def package_versions() -> dict[str, str]:
    """Returns the installed versions of the packages that training depends on, without missing ones."""
    versions = {}
    for name in PACKAGES:
        for distribution in (name, f"{name}-cpu"):
            try:
                versions[name] = importlib.metadata.version(distribution)
                break
            except importlib.metadata.PackageNotFoundError:
                continue
    return versions


def backend_devices() -> tuple[str, int]:
    """Returns kind and count of the devices that the running backend uses, for example `("cpu", 1)`."""
    import keras

    if keras.config.backend() == "jax":
        import jax

        shared = keras.distribution.distribution()
        used = 1 if shared is None else int(shared.device_mesh.devices.size)
        return str(jax.local_devices()[0].device_kind), used
    if tpu.on_tpu():
        return "tpu", 1
    import tensorflow as tf

    gpus = tf.config.get_visible_devices("GPU")
    if not gpus:
        return "cpu", 1
    return str(tf.config.experimental.get_device_details(gpus[0]).get("device_name", "gpu")), 1


@cache
def source_digest() -> str:
    """Returns the version of kresume with a digest of its source."""
    root, hasher = Path(__file__).resolve().parents[1], hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        hasher.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    return f"{__version__} ({hasher.hexdigest()[:12]})"


@cache
def _fixed_fingerprint() -> dict[str, Any]:
    return {"python": platform.python_version(), "packages": package_versions(), "cpu": cpu_model()}


def fingerprint() -> dict[str, Any]:
    """Returns what equal bytes depend on: versions, backend, devices, CPU model, threads."""
    import keras

    kind, count = backend_devices()
    backend = keras.config.backend()
    # Without oneDNN TensorFlow uses other CPU kernels.
    kernels = {"onednn": "off"} if backend == "tensorflow" and os.environ.get(ONEDNN) in {"0", "false", "False"} else {}
    return {
        **_fixed_fingerprint(),
        **kernels,
        "backend": backend,
        "device": kind,
        "devices": count,
        "threads": thread_count(),
        **({} if hosts.this().alone else {"processes": hosts.this().count}),
    }


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Lists what differs between two fingerprints, such as `"backend tensorflow -> jax"`."""
    flat = [{"processes": 1, **fingerprint, **fingerprint.get("packages", {})} for fingerprint in (before, after)]
    names = sorted({*flat[0], *flat[1]} - {"packages"})
    return [
        f"{name} {flat[0].get(name)} -> {flat[1].get(name)}" for name in names if flat[0].get(name) != flat[1].get(name)
    ]
