"""Runs a LiteRT file in its own interpreter: `python -P litert.py request.json`."""

import json
import sys
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter

BATCH = 32


def main(path: str) -> None:
    """Answers one request file."""
    with open(path, encoding="utf-8") as file:
        request = json.load(file)
    images = np.load(request["array"], mmap_mode="r")
    interpreter = Interpreter(model_path=request["path"])
    given, got = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    parts = []
    for start in range(0, len(images), BATCH):
        batch = images[start : start + BATCH].astype(np.float32)
        interpreter.resize_tensor_input(given["index"], batch.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(given["index"], batch)
        interpreter.invoke()
        parts.append(interpreter.get_tensor(got["index"]))
    answer: dict[str, Any] = {"indices": np.arange(len(images)), "facts": "{}", "output:scores": np.concatenate(parts)}
    np.savez(request["output"], **answer)


if __name__ == "__main__":
    main(sys.argv[1])
