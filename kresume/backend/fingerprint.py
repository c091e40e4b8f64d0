"""Describes what equal bytes depend on: versions, backend, devices, processor, threads.

A cloud gives machines of several generations one name, such as `Intel(R) Xeon(R) CPU @ 2.20GHz`, so the processor's family,
model and instruction sets are recorded beside it: libraries choose their kernels by them, and sum in another order.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from kresume.backend import hosts, tpu
from kresume.version import __version__

PACKAGES = ("kresume", "keras", "tensorflow", "jax", "jaxlib", "numpy")
ONEDNN = "TF_ENABLE_ONEDNN_OPTS"
CPUINFO = Path("/proc/cpuinfo")
COMPUTES = re.compile(r"(sse|ssse|avx|fma|f16c|amx|bmi|asimd|neon|sve|sme(?!p)|fphp|bf16|i8mm)\w*")
"""Names of instruction sets, in Linux, that numeric libraries choose their kernels by."""
NUMBERS = {"cpu family": "family", "model": "model", "CPU part": "part"}
"""Fields of `/proc/cpuinfo` that tell generations of processors apart, and what they are called here."""
KIND = "cpu_kind"
MOST_NAMED = 4
"""Instruction sets that a difference names."""


def cpu_model() -> str:
    """Returns the name of this machine's processor."""
    return _cpu_facts().get("model name") or platform.processor() or platform.machine()


def cpu_features() -> str:
    """Returns the features of this machine's processor as Linux lists them; empty elsewhere."""
    facts = _cpu_facts()
    return facts.get("flags") or facts.get("Features", "")


def cpu_kind() -> str:
    """Returns the generation and the instruction sets of this machine's processor.

    For example `"family-6 model-85 avx avx2 fma"`; empty where Linux does not tell them.
    """
    facts = _cpu_facts()
    generation = [f"{name}-{facts[field]}" for field, name in NUMBERS.items() if field in facts]
    return " ".join([*generation, *sorted(each for each in cpu_features().split() if COMPUTES.fullmatch(each))])


def _cpu_facts() -> dict[str, str]:
    """Returns what Linux tells of the first processor; empty elsewhere."""
    try:
        text = CPUINFO.read_text()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


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
    versions = {"python": platform.python_version(), "packages": package_versions(), "cpu": cpu_model()}
    kind = cpu_kind()
    return {**versions, **({KIND: kind} if kind else {})}


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
    names = sorted({*flat[0], *flat[1]} - {"packages", KIND})
    found = [
        f"{name} {flat[0].get(name)} -> {flat[1].get(name)}" for name in names if flat[0].get(name) != flat[1].get(name)
    ]
    return [*found, *filter(None, [_another_kind(before.get(KIND), after.get(KIND))])]


def _another_kind(before: str | None, after: str | None) -> str:
    """Describes how two kinds of processors differ; empty if they do not, or one is unknown."""
    if before is None or after is None or before == after:
        return ""
    was, now = before.split(), after.split()
    parts = [
        f"{word} {', '.join(names[:MOST_NAMED])}{f' and {len(names) - MOST_NAMED} more' if len(names) > MOST_NAMED else ''}"
        for word, names in (
            ("without", [name for name in was if name not in now]),
            ("with", [name for name in now if name not in was]),
        )
        if names
    ]
    return f"another kind of processor, {' and '.join(parts)}"
