"""Runs a SavedModel with only TensorFlow, as a model server does.

    python -P saved_model.py request.json

The request names the model, a signature and its input, the images (files or an array), and the output file. Keras, JAX
and kresume cannot be imported in this process: a model that needs them fails to load.
"""

import gc
import importlib.util
import json
import os
import sys
from typing import Any

for _name in ("keras", "jax", "jaxlib", "kresume"):
    sys.modules[_name] = None  # type: ignore[assignment]  # makes an import of it fail
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf


def main(path: str) -> None:
    """Answers one request file."""
    with open(path, encoding="utf-8") as file:
        request = json.load(file)
    model = tf.saved_model.load(request["path"])
    function = model.signatures[request["signature"]]
    if "files" in request:
        count = len(request["files"])
        array: Any = None
    else:
        array = np.load(request["array"], mmap_mode="r")
        count = len(array)

    def batch_of(start: int, stop: int) -> Any:
        return _read(request["files"][start:stop]) if array is None else array[start:stop]

    parts: list[dict[str, np.ndarray]] = []
    indices: list[int] = []
    failed: dict[int, str] = {}
    size = request["batch_size"]
    for start in range(0, count, size):
        rows = range(start, min(start + size, count))
        try:
            parts.append(_call(function, request["input"], batch_of(rows.start, rows.stop)))
            indices += rows
        except tf.errors.OpError:
            # Retry one by one, so that an unreadable picture does not discard the predictions of the others.
            for row in rows:
                try:
                    parts.append(_call(function, request["input"], batch_of(row, row + 1)))
                    indices.append(row)
                except tf.errors.OpError as error:
                    failed[row] = str(error.message)[:300]
        with open(request["progress"], "a", encoding="utf-8") as file:
            file.write(f"{len(rows)}\n")
    facts = {"failed": failed, "warmed": _warm(model, request.get("warmup"))}
    names = parts[0] if parts else {}
    arrays = {f"output:{name}": np.concatenate([part[name] for part in parts]) for name in names}
    answer: dict[str, Any] = {"indices": np.asarray(indices, np.int64), "facts": json.dumps(facts), **arrays}
    np.savez(request["output"], **answer)


def _read(paths: list[str]) -> list[bytes]:
    contents = []
    for path in paths:
        with open(path, "rb") as file:
            contents.append(file.read())
    return contents


def _call(function: Any, name: str, batch: Any) -> dict[str, np.ndarray]:
    answer = function(**{name: tf.constant(batch)})
    arrays = {key: value.numpy() for key, value in answer.items()}
    return {key: value.astype("S") if value.dtype == object else value for key, value in arrays.items()}


def _warm(model: Any, warmup: Any) -> int:
    """Runs the warm-up requests that were exported with the model, and returns their number."""
    if warmup is None:
        return 0
    spec = importlib.util.spec_from_file_location("warmup", warmup["module"])
    if spec is None or spec.loader is None:
        raise ImportError(warmup["module"])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    requests = list(module.read_warmup(warmup["records"]))
    for request in requests:
        for name, value in module.feed(request, model.signatures).items():
            if value.dtype.is_floating and not np.isfinite(value.numpy()).all():
                raise ValueError(f"{name} of the warm-up request for {request.model_spec.signature_name} is not finite")
    return len(requests)


if __name__ == "__main__":
    main(sys.argv[1])
    gc.freeze()  # the last garbage collection would visit every object of the framework
