"""Runs an ONNX file in onnxruntime alone: `python -P onnx.py request.json`."""

import json
import sys
from typing import Any

import numpy as np
import onnxruntime

BATCH = 32


def main(path: str) -> None:
    """Answers one request file."""
    with open(path, encoding="utf-8") as file:
        request = json.load(file)
    session = onnxruntime.InferenceSession(request["path"], providers=["CPUExecutionProvider"])
    images = np.load(request["array"], mmap_mode="r")
    name, output = session.get_inputs()[0].name, session.get_outputs()[0].name
    parts = [
        session.run([output], {name: images[start : start + BATCH].astype(np.float32)})[0]
        for start in range(0, len(images), BATCH)
    ]
    answer: dict[str, Any] = {
        "indices": np.arange(len(images)),
        "facts": "{}",
        f"output:{output}": np.concatenate(parts),
    }
    np.savez(request["output"], **answer)


if __name__ == "__main__":
    main(sys.argv[1])
