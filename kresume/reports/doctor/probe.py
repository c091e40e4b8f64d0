"""Answers one question about this machine, in a process of its own.

    python -m kresume.reports.doctor.probe jax ANSWER.json

A framework may crash, hang or take all memory of an accelerator when it is imported: then only this process does.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

SIDE = 224
PHOTO = (375, 500)
"""Height and width of the JPEGs that are decoded, those of a usual photograph of ImageNet."""
BATCH = 32
SECONDS = 1.5
"""How long each speed is measured."""


def tensorflow() -> dict[str, Any]:
    """Returns the devices that TensorFlow finds."""
    from kresume.backend.selection import import_tensorflow, without_native_notes

    tf = import_tensorflow()
    with without_native_notes():
        found = tf.config.list_physical_devices()
    devices = []
    for device in found:
        kind = device.device_type.lower()
        details = tf.config.experimental.get_device_details(device) if kind == "gpu" else {}
        devices.append(f"{kind}:{device.name.rpartition(':')[2]} {details.get('device_name', '')}".strip())
    return {"version": tf.__version__, "devices": devices, "cuda": tf.test.is_built_with_cuda()}


def jax() -> dict[str, Any]:
    """Returns the devices that JAX finds, and why it cannot use an accelerator for which it has a plugin."""
    import jax

    from kresume.backend.selection import jax_drives

    errors = {}
    for kind, platform in (("gpu", "cuda"), ("tpu", "tpu")):
        if jax_drives(kind):
            try:
                jax.devices(platform)
            except RuntimeError as error:
                errors[kind] = " ".join(str(error).split())
    devices = [f"{device.platform}:{device.id} {device.device_kind}" for device in jax.devices()]
    return {"version": jax.__version__, "devices": devices, "errors": errors}


def feeding() -> dict[str, Any]:
    """Measures how many pictures a second this machine decodes, and how many its cache gives."""
    import numpy as np

    from kresume.backend.fingerprint import thread_count
    from kresume.backend.selection import import_tensorflow
    from kresume.images.augment import augmenter
    from kresume.images.cache import Cache, checksum
    from kresume.images.conventions import to_model_function
    from kresume.images.decode import decode_many
    from kresume.images.headers import read_header
    from kresume.images.order import Order
    from kresume.images.pipeline import training_dataset
    from kresume.values.decode_spec import DecodeSpec

    tf = import_tensorflow()
    spec, count = DecodeSpec(SIDE, SIDE), 8 * BATCH
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (8, *(side // 25 for side in PHOTO), 3)).astype(np.uint8)
    photos = tf.cast(tf.image.resize(coarse, PHOTO, "bicubic"), tf.float32) + rng.normal(0, 8, (8, *PHOTO, 3))
    jpegs = [tf.io.encode_jpeg(tf.cast(tf.clip_by_value(photo, 0, 255), tf.uint8)).numpy() for photo in photos]
    headers = [read_header(jpeg) for jpeg in jpegs]
    with ThreadPoolExecutor(thread_count()) as pool:  # as the prepare pass does
        decoded = _rate(_together(pool, lambda: decode_many(jpegs, spec, headers)), len(jpegs))
    with tempfile.TemporaryDirectory(prefix="kresume-") as folder:
        cache = Cache.open(spec, Path(folder))
        names = [f"{number:064d}" for number in range(count)]
        with cache.writer() as writer:
            for name in names:
                pixels = rng.integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)
                writer.add(name, pixels, checksum(pixels))
        cache.refresh()
        found = cache.find(names)
        batches = training_dataset(
            lambda rows: cache.read(found[rows]),
            np.arange(count),
            np.zeros(count, np.int32),
            Order(0, count, BATCH),
            start_step=0,
            image_size=(SIDE, SIDE),
            pixels=to_model_function("0-255"),
            augment=augmenter("light", 0),
        )
        cached = _rate(iter(batches), BATCH)
    return {"decoded": decoded, "cached": cached, "threads": thread_count()}


def training() -> dict[str, Any]:
    """Measures how many pictures a second the default backend trains on."""
    from kresume.backend import selection

    backend = selection.select(None)
    import keras
    import numpy as np
    import tensorflow as tf

    from kresume.backend.fingerprint import backend_devices
    from kresume.images.tf_data import for_fit, without_autotuner
    from kresume.models.build import convnet

    model = convnet(10, (SIDE, SIDE))
    model.compile("adamw", "sparse_categorical_crossentropy")
    images = np.random.default_rng(0).integers(0, 256, (BATCH, SIDE, SIDE, 3)).astype(np.float32)
    batches = tf.data.Dataset.from_tensors((images, np.zeros(BATCH, np.int32))).repeat().prefetch(2)
    batches = without_autotuner(batches)
    ends = [time.perf_counter()]

    class Clock(keras.callbacks.Callback):  # type: ignore[misc]  # keras is untyped
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            float(logs["loss"])  # waits for the device
            ends.append(time.perf_counter())
            if len(ends) > 3 and ends[-1] - ends[2] > SECONDS:
                model.stop_training = True

    with for_fit(batches) as lent:
        model.fit(lent, steps_per_epoch=500, epochs=1, verbose=0, shuffle=False, callbacks=[Clock()])
    speed = BATCH * (len(ends) - 3) / (ends[-1] - ends[2])
    return {"backend": backend, "device": backend_devices()[0], "trained": speed, "first": ends[1] - ends[0]}


def _together(pool: ThreadPoolExecutor, work: Callable[[], object]) -> Iterator[None]:
    """Yields each time that one of many calls is done, which run in all threads of the pool."""
    waiting = [pool.submit(work) for _ in range(2 * pool._max_workers)]
    try:
        while True:
            waiting.pop(0).result()
            waiting.append(pool.submit(work))
            yield
    finally:
        for each in waiting:
            each.cancel()


def _rate(each: Iterator[Any], size: int) -> float:
    """Returns the elements a second that an iterator gives, after the first ones.

    Args:
        each: endless.
        size: elements that count as one.
    """
    for _ in range(8):
        next(each)
    start, number = time.perf_counter(), 0
    while (seconds := time.perf_counter() - start) < SECONDS:
        next(each)
        number += 1
    return size * number / seconds


PROBES: dict[str, Callable[[], dict[str, Any]]] = {
    "tensorflow": tensorflow,
    "jax": jax,
    "feeding": feeding,
    "training": training,
}


def main(name: str, path: str) -> None:
    """Writes the answer of a probe as JSON.

    Args:
        name: which one.
        path: the file to write.
    """
    answer = PROBES[name]()
    Path(path).write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
    with contextlib.suppress(OSError):
        sys.stderr.flush()
    os._exit(0)  # the answer is written: what a framework does as it ends can neither fail nor delay it
