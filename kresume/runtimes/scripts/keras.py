"""Loads a `.keras` file, a `.weights.h5` file or a `tf.train.Checkpoint` with plain Keras.

    python -P keras.py request.json

Custom classes are registered by running the user's files, as every user of such a file has to do.
"""

import sys

sys.modules["kresume"] = None  # type: ignore[assignment]  # makes an import of it fail

import gc
import hashlib
import importlib.util
import json
from pathlib import Path
from typing import Any

import keras
import numpy as np

BATCH = 32


def main(path: str) -> None:
    """Answers one request file."""
    with open(path, encoding="utf-8") as file:
        request = json.load(file)
    own: dict[str, Any] = {}
    for code in request["code"]:
        own |= _run(code, f"kresume_user_{Path(code).stem}")
    with keras.saving.custom_object_scope(own):
        _answer(request)


def _answer(request: dict[str, Any]) -> None:
    folder, name = Path(request["path"]), request["file"]
    model = keras.saving.load_model(folder / name) if name.endswith(".keras") else _rebuilt(folder, request["compiled"])
    if name.endswith(".weights.h5"):
        model.load_weights(folder / name)
    elif not name.endswith(".keras"):
        _restore(model, str(folder / name))
    optimizer = getattr(model, "optimizer", None)
    values = np.load(request["array"])
    # Not `predict`: its tf.data autotuner would delay the end of this process by about its run time.
    parts = [model.predict_on_batch(values[start : start + BATCH]) for start in range(0, len(values), BATCH)]
    outputs = np.concatenate([np.asarray(part, np.float32) for part in parts])
    facts = {
        "weights": _digest(model.variables),
        "optimizer": _digest(optimizer.variables) if optimizer is not None else None,
    }
    answer: dict[str, Any] = {"indices": np.arange(len(values)), "facts": json.dumps(facts), "output:raw": outputs}
    np.savez(request["output"], **answer)


def _run(code: str, name: str) -> dict[str, Any]:
    """Runs a file and returns the classes and functions that it defines, by name."""
    spec = importlib.util.spec_from_file_location(name, code)
    if spec is None or spec.loader is None:
        raise ImportError(code)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return {key: value for key, value in vars(module).items() if getattr(value, "__module__", None) == name}


def _rebuilt(folder: Path, compiled: bool) -> Any:
    model = keras.saving.deserialize_keras_object(json.loads((folder / "model.json").read_text(encoding="utf-8")))
    if compiled:
        text = (folder / "optimizer.json").read_text(encoding="utf-8")
        optimizer = keras.saving.deserialize_keras_object(json.loads(text))
        model.compile(optimizer, "sparse_categorical_crossentropy", auto_scale_loss=False)
        optimizer.build(model.trainable_variables)
    return model


def _restore(model: Any, prefix: str) -> None:
    import tensorflow as tf

    optimizer = getattr(model, "optimizer", None)
    roots = {"model": model} if optimizer is None else {"model": model, "optimizer": optimizer}
    tf.train.Checkpoint(**roots).restore(prefix).assert_existing_objects_matched().expect_partial()
    for layer in model._flatten_layers():
        if type(layer).__name__ == "Normalization":
            layer.finalize_state()  # computes its constants from what was restored; Keras's own files do it by themselves


def _digest(variables: Any) -> str:
    """Computes the same digest as `kresume/exports/training_state.py`, without importing it."""
    hasher = hashlib.sha256()
    for variable in variables:
        if "seed_generator_state" in str(variable.path):
            continue
        array = np.asarray(keras.ops.convert_to_numpy(variable.value))
        array = array.astype(np.int64) if array.dtype.kind in "iu" else array
        hasher.update(f"{array.dtype} {array.shape}\n".encode() + array.tobytes())
    return hasher.hexdigest()


if __name__ == "__main__":
    main(sys.argv[1])
    gc.freeze()  # the last garbage collection would visit every object of the frameworks
