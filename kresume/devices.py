"""Backends and devices: the one place where TensorFlow and JAX differ.

    select("jax", device="auto")      # before anything imports keras
    fingerprint()                     # what "bit for bit" depends on
    read_state(model, buffers)        # every array of a live model, without disturbing training

`select` must run before Keras is imported, because Keras fixes its backend on import; everything that imports Keras is
imported inside functions of the story for that reason.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from kresume.errors import MissingPackage, UsageError

BACKENDS = ("tensorflow", "jax")
PACKAGES = ("kresume", "keras", "tensorflow", "jax", "jaxlib", "numpy")
ONEDNN = "TF_ENABLE_ONEDNN_OPTS"
RANDOM, GLOBAL_SEED = "random", "global_seed_generator"
CLOCK = "kresume_clock"
"""The name of the variable that a schedule reads its time from; it stands among the optimizer's, so that both backends hand
it to a compiled step."""


def accelerator_visible() -> str | None:
    """`"tpu"`, `"gpu"` or None, from device files and environment alone: importing a framework to find out takes seconds."""
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
    """`KERAS_BACKEND` if it is set, else `jax` with an accelerator that JAX can drive, else `tensorflow`.

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
) -> str:
    """Fixes the backend and the devices for this process, before Keras is imported.

    Under JAX, TensorFlow (which feeds the images) is kept off the accelerator: it would reserve all of its memory.

    Args:
        backend: `"tensorflow"`, `"jax"` or None for `default_backend()`.
        device: `"auto"` (or None), `"cpu"`, `"gpu"` or `"tpu"`.
        count: how many devices share each batch; None for as many as divide it.
        batch_size: images per batch, which the devices share evenly; None uses one device.
        exact: ask accelerators for deterministic kernels (`--exact on`); CPUs repeat without it.

    Returns:
        The backend's name.

    Raises:
        UsageError: no such backend, Keras runs on another one already, there are no such devices, or they cannot share a
            batch evenly.
        MissingPackage: the backend's package is not installed.
    """
    name = backend or default_backend()
    if name not in BACKENDS:
        raise UsageError(
            f"unknown backend {name!r} (from {'--backend' if backend else 'KERAS_BACKEND'}): use tensorflow or jax"
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
    if name == "jax":
        _share_batches(count, batch_size)
    return name


def _share_batches(count: int | None, batch_size: int | None) -> None:
    """Lets several JAX devices share each batch; every one holds all of the weights."""
    import jax
    import keras

    found = [f"{device.platform}:{device.id}" for device in jax.devices()]
    if count is not None and count > len(found):
        raise UsageError(f"--devices {count}: JAX finds {len(found)} here ({', '.join(found)})")
    if batch_size is None:
        used = 1
    elif count is None:
        used = max(number for number in range(1, len(found) + 1) if batch_size % number == 0)
    elif batch_size % count:
        raise UsageError(
            f"--devices {count}: they share each batch evenly, and {batch_size} images do not divide by {count}: "
            f"give --batch-size {max(1, batch_size // count) * count}"
        )
    else:
        used = count
    distribution = None
    if used > 1:
        distribution = keras.distribution.DataParallel(devices=found[:used], auto_shard_dataset=False)
    if distribution is not None or keras.distribution.distribution() is not None:
        keras.distribution.set_distribution(distribution)


@contextmanager
def without_native_notes() -> Iterator[None]:
    """Keeps what TensorFlow's C++ prints (on import, on optimizing a graph) off the terminal: nothing silences it in 2.21."""
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
    """Keeps TensorFlow, which feeds the images, off accelerators that JAX trains on: it would reserve their memory."""
    tf = import_tensorflow()
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
            f"--device {device}: JAX finds no such device here ({error}); `kresume doctor` lists them"
        ) from error


def _select_tensorflow(device: str | None, count: int | None) -> None:
    if count is not None and count > 1:
        raise UsageError(f"--devices {count}: several devices share a batch through JAX: give --backend jax too")
    tf = import_tensorflow()
    if device == "cpu":
        tf.config.set_visible_devices([], "GPU")
    elif device in {"gpu", "tpu"} and not tf.config.list_physical_devices(device.upper()):
        raise UsageError(f"--device {device}: TensorFlow finds no such device here; `kresume doctor` lists them")


def cpu_model() -> str:
    """Returns the name of this machine's processor."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def thread_count() -> int:
    """How many CPUs this process may use: the frameworks size their thread pools by it."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def package_versions() -> dict[str, str]:
    """Installed versions of what training depends on; a package that is not there is left out."""
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
    """Kind and count of the devices that the running backend computes on, for example `("cpu", 1)`."""
    import keras

    if keras.config.backend() == "jax":
        import jax

        shared = keras.distribution.distribution()
        used = 1 if shared is None else int(shared.device_mesh.devices.size)
        return str(jax.devices()[0].device_kind), used
    import tensorflow as tf

    gpus = tf.config.get_visible_devices("GPU")
    if not gpus:
        return "cpu", 1
    return str(tf.config.experimental.get_device_details(gpus[0]).get("device_name", "gpu")), 1


@cache
def _fixed_fingerprint() -> dict[str, Any]:
    return {"python": platform.python_version(), "packages": package_versions(), "cpu": cpu_model()}


def fingerprint() -> dict[str, Any]:
    """What "bit for bit" depends on: versions, backend, device kind and count, CPU model and thread count."""
    import keras

    kind, count = backend_devices()
    backend = keras.config.backend()
    # TensorFlow's CPU kernels are others without oneDNN; noted where it was asked for.
    kernels = {"onednn": "off"} if backend == "tensorflow" and os.environ.get(ONEDNN) in {"0", "false", "False"} else {}
    return {
        **_fixed_fingerprint(),
        **kernels,
        "backend": backend,
        "device": kind,
        "devices": count,
        "threads": thread_count(),
    }


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What changed between two fingerprints, as `"backend tensorflow -> jax"`; empty where bits will be equal."""
    flat = [{**fingerprint, **fingerprint.get("packages", {})} for fingerprint in (before, after)]
    names = sorted({*flat[0], *flat[1]} - {"packages"})
    return [
        f"{name} {flat[0].get(name)} -> {flat[1].get(name)}" for name in names if flat[0].get(name) != flat[1].get(name)
    ]


def live_arrays(model: Any) -> dict[str, list[Any]]:
    """The backend's own arrays of a model in training, by group, in the order of `TrainState`.

    Under JAX the values live in the trainer's loop between steps; reading them through the variables would force a
    synchronisation that triples the cost of a step, so they are taken where they are. They are valid until the next
    step only (it donates their memory): copy before returning from the callback.
    """
    state = getattr(model, "_jax_state", None)
    if state and not model._jax_state_synced:
        return {
            "trainable": list(state["trainable_variables"]),
            "non_trainable": list(state["non_trainable_variables"]),
            "optimizer": [
                value
                for variable, value in zip(model.optimizer.variables, state["optimizer_variables"], strict=True)
                if variable.name != CLOCK
            ],
            "metrics": list(state["metrics_variables"]),
            **{group: [variable.value for variable in found] for group, found in _outside().items()},
        }
    return {group: [variable.value for variable in variables] for group, variables in variables_of(model).items()}


def variables_of(model: Any) -> dict[str, list[Any]]:
    """A compiled model's Keras variables by group, in the order of `TrainState`."""
    return {
        "trainable": list(model.trainable_variables),
        "non_trainable": list(model.non_trainable_variables),
        "optimizer": optimizer_variables(model.optimizer) if model.optimizer is not None else [],
        "metrics": list(model.metrics_variables),
        **_outside(),
    }


def _outside() -> dict[str, list[Any]]:
    """State that no model holds: Keras's own seed generator, once something drew from it without a seed of its own."""
    generator = _global_state().get_global_attribute(GLOBAL_SEED)
    return {RANDOM: [generator.state]} if generator is not None else {}


def _global_state() -> Any:
    """Where Keras keeps its seed generator. Private: used here alone, pinned by a test."""
    from keras.src.backend.common import global_state

    return global_state


def inner(optimizer: Any) -> Any:
    """The optimizer inside loss scaling (mixed_float16), or itself."""
    return getattr(optimizer, "inner_optimizer", optimizer)


def optimizer_variables(optimizer: Any) -> list[Any]:
    """What an optimizer remembers. A schedule's clock is none of it: it follows from the place in the run."""
    return [variable for variable in optimizer.variables if variable.name != CLOCK]


def read_state(model: Any, buffers: dict[str, list[np.ndarray]] | None = None) -> dict[str, list[np.ndarray]]:
    """Copies every array of a live model to the host.

    Args:
        model: a compiled and built model; may be in the middle of `fit`, between two steps.
        buffers: arrays of an earlier call to copy into: fresh pages cost more than the copy itself.

    Returns:
        Arrays by group, owned by the caller.
    """
    arrays = live_arrays(model)
    if buffers is not None and _fits(buffers, arrays):
        for group, values in arrays.items():
            for buffer, value in zip(buffers[group], values, strict=True):
                np.copyto(buffer, host_array(value))
        return buffers
    return {group: [host_array(value).copy() for value in values] for group, values in arrays.items()}


def host_array(value: Any) -> np.ndarray:
    """The numbers of a backend's array, or of a variable of `tf.distribute`: what its replicas hold together."""
    replicated = hasattr(value, "values") and hasattr(value, "read_value")
    return np.asarray(value.read_value() if replicated else value)


def _fits(buffers: Mapping[str, Sequence[np.ndarray]], arrays: Mapping[str, Sequence[Any]]) -> bool:
    return all(
        len(buffers.get(group, ())) == len(values)
        and all(
            buffer.shape == tuple(value.shape) and buffer.dtype == np.dtype(_dtype(value))
            for buffer, value in zip(buffers[group], values, strict=True)
        )
        for group, values in arrays.items()
    )


def _dtype(value: Any) -> Any:
    dtype = value.dtype
    return getattr(dtype, "as_numpy_dtype", dtype)


def assign(variables: Sequence[Any], arrays: Sequence[np.ndarray]) -> None:
    """Assigns host arrays to variables, one to one. Shapes were checked by whoever matched them.

    Each array is copied: on a CPU JAX may keep an aligned host buffer as the variable itself.
    """
    for variable, array in zip(variables, arrays, strict=True):
        variable.assign(np.array(array, copy=True))


def renew_constants(model: Any) -> None:
    """Makes the constants anew that layers compute from their variables; call after assigning a model's variables.

    An adapted Normalization keeps its mean and variance once more, as constants in which the graph of the model is traced.
    """
    for layer in model._flatten_layers():
        if type(layer).__name__ == "Normalization" and hasattr(layer, "finalize_state"):
            layer.finalize_state()


def set_precision(precision: str | None) -> None:
    """Sets the policy for the layers of a new model: `"float32"`, `"mixed_bfloat16"` or `"mixed_float16"`."""
    import keras

    if precision is not None:
        keras.config.set_dtype_policy(precision)


def seed_everything(seed: int) -> None:
    """Seeds Python, numpy, the backend and Keras's own generator, for what begins fresh: initial weights, seeds of layers."""
    import keras

    keras.utils.set_random_seed(seed)
    _global_state().set_global_attribute(GLOBAL_SEED, keras.random.SeedGenerator(seed))


def assign_random(arrays: Sequence[np.ndarray]) -> None:
    """Gives Keras's own seed generator the state of a snapshot, `read_state(...)[RANDOM]`; nothing where it has none."""
    import keras

    if not arrays:
        return
    if not _outside():
        _global_state().set_global_attribute(GLOBAL_SEED, keras.random.SeedGenerator(0))
    assign(_outside()[RANDOM], arrays)
