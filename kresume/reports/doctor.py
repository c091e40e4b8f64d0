"""Examines the machine: backends, devices, versions, and what is missing."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kresume.backend.fingerprint import PACKAGES, cpu_model, package_versions, thread_count
from kresume.backend.selection import accelerator_visible, default_backend, import_tensorflow, jax_drives


@dataclass(frozen=True)
class Diagnosis:
    """The findings of `kresume doctor`."""

    python: str
    packages: Mapping[str, str]
    missing: tuple[str, ...]
    backend: str
    devices: Mapping[str, tuple[str, ...]]
    threads: int
    cpu: str
    accelerator: str | None
    advice: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Returns the JSON form."""
        return {
            **vars(self),
            "packages": dict(self.packages),
            "missing": list(self.missing),
            "devices": {name: list(found) for name, found in self.devices.items()},
            "advice": list(self.advice),
        }

    def __str__(self) -> str:
        lines = [
            f"python      {self.python}",
            f"cpu         {self.cpu}, {self.threads} threads",
            *(f"{name:<12}{version}" for name, version in self.packages.items()),
            *(f"{name:<12}devices: {', '.join(found) or 'none'}" for name, found in self.devices.items()),
            f"backend     {self.backend} (the default of --backend here)",
        ]
        lines += [f"missing     {name}: pip install {name}" for name in self.missing]
        lines += [f"advice      {text}" for text in self.advice]
        return "\n".join(lines)


def diagnose() -> Diagnosis:
    """Finds the backends, devices and versions of this machine, and what is missing."""
    versions = package_versions()
    accelerator = accelerator_visible()
    advice = []
    if accelerator == "gpu" and not jax_drives("gpu"):
        advice.append("a GPU is visible but JAX has no CUDA plugin: pip install 'jax[cuda12]'")
    if accelerator == "tpu" and not jax_drives("tpu"):
        advice.append("a TPU is visible but libtpu is missing: pip install 'jax[tpu]'")
    found: dict[str, tuple[str, ...]] = {}
    if "tensorflow" in versions:
        tf = import_tensorflow()
        found["tensorflow"] = tuple(
            device.name.removeprefix("/physical_device:") for device in tf.config.list_physical_devices()
        )
        if accelerator and "jax" in versions:
            tf.config.set_visible_devices([], "GPU")
    if "jax" in versions:
        import jax

        found["jax"] = tuple(f"{device.platform}:{device.id} {device.device_kind}" for device in jax.devices())
    return Diagnosis(
        python=platform.python_version(),
        packages=versions,
        missing=tuple(name for name in PACKAGES if name not in versions),
        backend=default_backend(),
        devices=found,
        threads=thread_count(),
        cpu=cpu_model(),
        accelerator=accelerator,
        advice=tuple(advice),
    )
