"""Decides what is wrong with a machine, and how to mend it.

    problems, notes = find(machine, {"jax": Seen(...), "tensorflow": Seen(...)})

A problem keeps kresume from training, or from training on an accelerator that is there. A note is good to know.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from kresume.backend.selection import BACKENDS
from kresume.reports.doctor.machine import Machine, Seen, missing

NAMES = {"jax": "JAX", "tensorflow": "TensorFlow"}
CUDA_13_DRIVER = 580
CUDA_12_DRIVER = 525
"""Oldest driver of CUDA 13 and 12, from NVIDIA's table of compatibility."""
TAKEN = 0.5
"""Share of a GPU's memory from which on other processes leave too little."""
LITTLE_DISK = 2 * 2**30
RESTART = "restart the session that holds it (in Colab: Runtime > Restart session)"


@dataclass(frozen=True)
class Finding:
    """Something to mend or to know.

    Attributes:
        what: what is wrong, in words.
        fix: a command or what to do; empty if nothing needs to be done.
    """

    what: str
    fix: str = ""


def find(machine: Machine, seen: Mapping[str, Seen]) -> tuple[list[Finding], list[Finding]]:
    """Returns the problems and the notes of a machine.

    Args:
        machine: its facts.
        seen: what each backend answered.
    """
    problems = [*_installation(machine, seen), *_choice(machine), *_gpu(machine, seen), *_tpu(machine, seen)]
    return problems, list(_notes(machine, seen))


def _installation(machine: Machine, seen: Mapping[str, Seen]) -> Iterator[Finding]:
    for name in missing(machine.packages):
        yield Finding(f"{name} is not installed", f"pip install {name}")
    for name, versions in machine.outside.items():
        yield Finding(f"{name} {versions}", f"pip install --upgrade {name}")
    for name, answer in seen.items():
        held = machine.accelerator == "tpu" and name == "jax"
        if answer.slow:
            why = ", perhaps because another process holds the TPU" if held else ""
            yield Finding(
                f"{NAMES[name]} does not start: {answer.error}{why}",
                RESTART if held else "run the command again; if it hangs again, reinstall the package",
            )
        elif answer.error:
            fix = (
                RESTART
                if held
                else f"python -c 'import {name}' shows the whole message; then pip install --force-reinstall {name}"
            )
            yield Finding(f"{NAMES[name]} does not start: {answer.error}", fix)


def _choice(machine: Machine) -> Iterator[Finding]:
    chosen = machine.keras_backend
    if chosen is not None and chosen not in BACKENDS:
        yield Finding(
            f"KERAS_BACKEND={chosen} is set, and kresume trains through TensorFlow or JAX",
            "unset KERAS_BACKEND (or give --backend tensorflow or --backend jax)",
        )
    elif chosen == "tensorflow" and machine.accelerator is not None and machine.accelerator in machine.drives:
        kind = machine.accelerator.upper()
        yield Finding(
            f"KERAS_BACKEND=tensorflow is set, so training does not go through JAX, which can use the {kind}",
            "unset KERAS_BACKEND (or give --backend jax)",
        )


def _gpu(machine: Machine, seen: Mapping[str, Seen]) -> Iterator[Finding]:
    if machine.accelerator != "gpu":
        return
    driver = min((_major(gpu.driver) for gpu in machine.gpus), default=CUDA_13_DRIVER)
    build = "cuda13" if driver >= CUDA_13_DRIVER else "cuda12"
    facts = seen["jax"].facts if "jax" in seen else {}
    if driver < CUDA_12_DRIVER:
        yield Finding(
            f"the NVIDIA driver is {machine.gpus[0].driver}: JAX needs {CUDA_12_DRIVER} or later", "update the driver"
        )
    elif "gpu" not in machine.drives:
        yield Finding("a GPU is there, but JAX has no CUDA build and cannot use it", f"pip install -U 'jax[{build}]'")
    elif "gpu" in facts.get("errors", {}):
        yield Finding(
            f"JAX has a CUDA build but cannot use the GPU: {facts['errors']['gpu']}", f"pip install -U 'jax[{build}]'"
        )
    for gpu in machine.gpus:
        if gpu.used > TAKEN * gpu.memory:
            yield Finding(
                f"other processes hold {_size(gpu.used)} of the {_size(gpu.memory)} of {gpu.name}; a notebook that imports "
                "TensorFlow reserves all of it",
                "end them (nvidia-smi lists them; in Colab: Runtime > Restart session), or set "
                "TF_FORCE_GPU_ALLOW_GROWTH=true before they import TensorFlow",
            )


def _tpu(machine: Machine, seen: Mapping[str, Seen]) -> Iterator[Finding]:
    if machine.accelerator != "tpu":
        return
    facts = seen["jax"].facts if "jax" in seen else {}
    if "tpu" not in machine.drives:
        yield Finding("a TPU is there, but its runtime (libtpu) is not installed", "pip install -U 'jax[tpu]'")
    elif "tpu" in facts.get("errors", {}):
        yield Finding(
            f"JAX cannot use the TPU: {facts['errors']['tpu']}",
            f"if another process uses it, {RESTART}; one can at a time",
        )


def _notes(machine: Machine, seen: Mapping[str, Seen]) -> Iterator[Finding]:
    tensorflow = seen.get("tensorflow", Seen()).facts
    if machine.accelerator == "gpu" and tensorflow and not _has(tensorflow.get("devices", ()), "gpu"):
        yield Finding(
            "TensorFlow finds no GPU; only training with --backend tensorflow would need it",
            "" if "gpu" in machine.drives else "pip install 'tensorflow[and-cuda]'",
        )
    if machine.accelerator is None:
        colab = ": choose one in Runtime > Change runtime type" if machine.colab else ""
        yield Finding(f"no GPU or TPU was found: training runs on the processor{colab}")
    if machine.threads < machine.cores:
        yield Finding(f"this process may use {machine.threads} of the {machine.cores} cores of the machine")
    if machine.free < LITTLE_DISK:
        yield Finding(
            f"{_size(machine.free)} are free where decoded pictures are kept ({machine.cache})",
            "make room, or give another folder: KRESUME_CACHE=DIR",
        )


def _has(devices: object, kind: str) -> bool:
    return isinstance(devices, (list, tuple)) and any(str(each).startswith(kind) for each in devices)


def _major(version: str) -> int:
    head = version.partition(".")[0]
    return int(head) if head.isdigit() else CUDA_13_DRIVER


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GB"
