"""Selects the backend and the devices of this process.

    select("jax", device="auto")      # before anything imports keras

`select` must run before Keras is imported, because Keras fixes its backend on import. That is why modules import Keras inside
functions where they may run before it.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from kresume.backend import hosts, tpu
from kresume.backend.keras_settings import require_whole_floats
from kresume.errors import MissingPackage, UsageError
from kresume.reporter import Reporter
from kresume.spelling import option

BACKENDS = ("tensorflow", "jax")


def accelerator_visible() -> str | None:
    """Returns `"tpu"`, `"gpu"` or None, without importing a framework, which takes seconds."""
    if os.environ.get("TPU_NAME") or os.environ.get("TPU_ACCELERATOR_TYPE") or list(Path("/dev").glob("accel*")):
        return "tpu"
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return None
    return "gpu" if Path("/dev/nvidiactl").exists() else None


def jax_drives(accelerator: str | None) -> bool:
    """Returns True if JAX has what it needs to use a `"gpu"` or `"tpu"`."""
    if accelerator == "tpu":
        return importlib.util.find_spec("libtpu") is not None
    if accelerator == "gpu":
        return any(importlib.util.find_spec(f"jax_cuda{version}_plugin") is not None for version in (12, 13))
    return False


def default_backend() -> str:
    """Returns `KERAS_BACKEND`, else `jax` with an accelerator that JAX can use, else `tensorflow`.

    On a CPU TensorFlow trains convolutional networks several times faster than JAX (docs/benchmarks.md).
    """
    return os.environ.get("KERAS_BACKEND") or ("jax" if jax_drives(accelerator_visible()) else "tensorflow")


def select(
    backend: str | None,
    device: str | None = None,
    count: int | None = None,
    batch_size: int | None = None,
    *,
    exact: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> str:
    """Fixes the backend and the devices for this process, before Keras is imported.

    Under JAX, TensorFlow (which feeds the images) is kept off the accelerator: it would reserve all of its memory.

    Args:
        backend: `"tensorflow"`, `"jax"` or None for `default_backend()`.
        device: `"auto"` (or None), `"cpu"`, `"gpu"` or `"tpu"`.
        count: how many devices share each batch; None for as many as divide it.
        batch_size: images per batch, which the devices share evenly; None uses one device.
        exact: ask accelerators for deterministic kernels (`--exact on`); CPUs repeat without it.
        say: told how several devices share a batch.

    Returns:
        The backend's name.

    Raises:
        UsageError: no such backend, Keras runs on another one already, there are no such devices, or they cannot share a
            batch evenly; or Keras is set to 16-bit floats.
        MissingPackage: the backend's package is not installed.
    """
    name = backend or default_backend()
    if name not in BACKENDS:
        raise UsageError(
            f"unknown backend {name!r} (from {option('backend') if backend else 'KERAS_BACKEND'}): use tensorflow or jax"
        )
    if importlib.util.find_spec(name) is None:
        raise MissingPackage(f"the {name} backend needs the package `{name}`: pip install {name}")
    running = sys.modules.get("keras")
    if running is not None and running.config.backend() != name:
        raise UsageError(
            f"Keras runs on {running.config.backend()} in this process already and cannot change to {name}: "
            f"set KERAS_BACKEND={name} before anything imports keras"
        )
    os.environ["KERAS_BACKEND"] = name
    if name == "jax":
        if exact:  # before JAX looks for its devices, which is when it reads them
            os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_deterministic_ops=true".strip()
        _select_jax(device)
    else:
        _select_tensorflow(device, count)
        if exact:
            import_tensorflow().config.experimental.enable_op_determinism()
    with without_native_notes():
        import keras  # noqa: F401  # fixes the backend now, and brings the rest of the notes
        import tensorflow as tf

        tf.zeros(1)
    require_whole_floats()
    # A model may take its one picture by name, {"image": tensor}. Keras accepts the tensor alone and warns each time.
    warnings.filterwarnings("ignore", "The structure of `inputs` doesn't match", UserWarning)
    if name == "jax":
        _share_batches(count, batch_size, say)
    return name


def loading(reporter: Reporter) -> AbstractContextManager[None]:
    """Says that the block imports the frameworks; says nothing if they are imported.

    Args:
        reporter: shows it.
    """
    if {"tensorflow", "keras"} <= sys.modules.keys():
        return nullcontext()
    return reporter.waiting("loading TensorFlow and Keras", now=True)


def _share_batches(count: int | None, batch_size: int | None, say: Callable[[str], None]) -> None:
    """Shares each batch among several JAX devices; each of them holds all weights."""
    import jax
    import keras

    processes = hosts.joined().count
    by_process: dict[int, list[str]] = {}
    # JAX goes on listing the devices of other processes after this one has left them.
    for device in jax.devices() if processes > 1 else jax.local_devices():
        by_process.setdefault(device.process_index, []).append(f"{device.platform}:{device.id}")
    found = [name for index in sorted(by_process) for name in by_process[index]]
    if count is not None and count > len(found):
        raise UsageError(f"{option('devices', count)}: JAX finds {len(found)} here ({', '.join(found)})")
    used = 1 if batch_size is None else devices_for(batch_size, count, len(found), processes)
    deciding = processes > 1 and hosts.this().alone  # one process decides for all, by itself
    if batch_size is not None and len(found) > 1 and not deciding:
        say(f"devices:  {describe_share(batch_size, used, count or len(found))}")
    distribution = None
    if used > 1 and not deciding:
        each = used // processes
        chosen = [name for index in sorted(by_process) for name in by_process[index][:each]]
        distribution = keras.distribution.DataParallel(devices=chosen, auto_shard_dataset=False)
    if distribution is not None or keras.distribution.distribution() is not None:
        keras.distribution.set_distribution(distribution)


def devices_for(batch_size: int, count: int | None, found: int, processes: int = 1) -> int:
    """Returns how many devices share each batch.

    Args:
        batch_size: images per batch.
        count: as many are asked for; None for as many as share a batch evenly.
        found: how many there are.
        processes: how many processes of several hosts they belong to; each uses equally many.

    Raises:
        UsageError: those that are asked for, or the processes, cannot share a batch evenly.
    """
    fitting = [number for number in range(processes, found + 1, processes) if batch_size % number == 0]
    if not fitting:
        raise UsageError(
            f"{processes} processes share each batch evenly, and {batch_size} images do not divide by {processes}: give "
            f"{_either('batch-size', _nearest(batch_size, processes))}, or start "
            f"{' or '.join(_dividing(batch_size, processes))}"
        )
    if count is None:
        return fitting[-1]
    if count not in fitting:
        near = [number for number in fitting if number < count][-1:]
        near += [number for number in fitting if number > count][:1]
        raise UsageError(
            f"{option('devices', count)}: they share each batch evenly, and {batch_size} images do not divide by {count}: "
            f"give {_either('batch-size', _nearest(batch_size, count))}, or {_either('devices', near)}"
        )
    return count


def describe_share(batch_size: int, used: int, found: int) -> str:
    """Describes how devices share a batch, and how all of them would."""
    each = batch_size // used
    if used == found:
        return f"{used} share each batch, {each:,} image{'s' * (each > 1)} each"
    sharing = f"{used} of {found} share" if used > 1 else f"1 of {found} takes"
    return (
        f"{sharing} each batch, because {batch_size:,} images do not divide by {found}: "
        f"{_either('batch-size', _nearest(batch_size, found))} uses all"
    )


def _dividing(batch_size: int, processes: int) -> list[str]:
    """Returns the nearest counts of processes that divide a batch."""
    counts = [count for count in range(1, batch_size + 1) if batch_size % count == 0]
    near = [
        *[count for count in counts if count < processes][-1:],
        *[count for count in counts if count > processes][:1],
    ]
    return [f"{count} process{'es' * (count > 1)}" for count in near]


def _nearest(batch_size: int, count: int) -> list[int]:
    """Returns the nearest sizes of a batch below and above that divide by `count`."""
    below = batch_size // count * count
    return [size for size in (below, below + count) if size]


def _either(name: str, values: Sequence[int]) -> str:
    """Formats an option with the values to choose from."""
    return " or ".join([option(name, values[0]), *map(str, values[1:])])


@contextmanager
def without_native_notes() -> Iterator[None]:
    """Hides what TensorFlow's C++ prints; no setting of 2.21 silences it."""
    sys.stderr.flush()
    try:
        before = os.dup(2)
    except OSError:  # no standard error at all
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)
        os.close(nowhere)


def import_tensorflow() -> Any:
    """Imports TensorFlow without its notes about the CPU's instructions."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if "tensorflow" in sys.modules:
        return sys.modules["tensorflow"]
    with without_native_notes():
        import tensorflow as tf
    return tf


def keep_tensorflow_on_cpu() -> None:
    """Keeps TensorFlow off accelerators that JAX trains on: it would reserve their memory."""
    tf = import_tensorflow()
    with without_native_notes():  # looking for a GPU where CUDA is installed and no GPU is
        for kind in ("GPU", "TPU"):
            if tf.config.list_physical_devices(kind):
                tf.config.set_visible_devices([], kind)


def _select_jax(device: str | None) -> None:
    import jax

    keep_tensorflow_on_cpu()
    if device not in {None, "auto"}:
        jax.config.update("jax_platforms", {"gpu": "cuda"}.get(str(device), device))
    try:
        jax.devices()
    except RuntimeError as error:
        raise UsageError(
            f"{option('device', device)}: JAX finds no such device here ({error}); `kresume doctor` lists them"
        ) from error


def _select_tensorflow(device: str | None, count: int | None) -> None:
    if count is not None and count > 1:
        raise UsageError(
            f"{option('devices', count)}: several devices share a batch through JAX: give {option('backend', 'jax')} too"
        )
    tf = import_tensorflow()
    if device == "cpu":
        tf.config.set_visible_devices([], "GPU")
    elif device == "gpu" and not tf.config.list_physical_devices("GPU"):
        raise UsageError(
            f"{option('device', 'gpu')}: TensorFlow finds no such device here; `kresume doctor` lists them"
        )
    elif device == "tpu" or (device in {None, "auto"} and tf.config.list_physical_devices("TPU")):
        tpu.use_tpu()


@contextmanager
def policy_kept() -> Iterator[None]:
    """Restores Keras's dtype policy after a block that may set another one.

    In a notebook the next run, and the user's own layers, have nothing to do with the precision of this one.
    """
    running = sys.modules.get("keras")
    before = running.config.dtype_policy() if running is not None else None
    try:
        yield
    finally:
        running = sys.modules.get("keras")
        if running is not None:
            running.config.set_dtype_policy(before if before is not None else running.config.floatx())


def set_precision(precision: str | None) -> None:
    """Sets the policy for the layers of a new model: `"float32"`, `"mixed_bfloat16"` or `"mixed_float16"`."""
    import keras

    if precision is not None:
        keras.config.set_dtype_policy(precision)
