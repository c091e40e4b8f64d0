"""The graph that phones and other runtimes get: pictures of the model's size in, scores out. No strings, no decoding.

    function = picture_function(loaded)        # images (batch, height, width, 3) float32 in 0..255 -> scores

Such runtimes decode pictures by themselves; the values that the model eats are made in the graph.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kresume.evaluation.loaded import Loaded
from kresume.exports.graph import Served

INPUT, OUTPUT = "images", "scores"
LABELS = "labels.txt"


def picture_function(loaded: Loaded) -> Any:
    """A traced function `images (batch, height, width, 3) float32 0..255 -> {"scores": (batch, classes) float32}`."""
    import tensorflow as tf

    served = Served(loaded.model, loaded.card, loaded.loss.outputs, top_k=1)
    spec = tf.TensorSpec((None, *loaded.card.image_size, 3), tf.float32, name=INPUT)

    def scores(images: Any) -> dict[str, Any]:
        return {OUTPUT: served.scores(served.to_model(images))}

    return tf.function(scores, input_signature=[spec], autograph=False)


def write_labels(loaded: Loaded, directory: Path) -> None:
    """Writes the names of the outputs, one a line."""
    (directory / LABELS).write_text("".join(f"{name}\n" for name in loaded.card.classes), encoding="utf-8")


def facts(loaded: Loaded, file: str) -> dict[str, Any]:
    """What a program needs to know to feed such a file."""
    height, width = loaded.card.image_size
    return {
        "file": file,
        "input": {"name": INPUT, "dtype": "float32", "shape": [None, height, width, 3], "values": "0-255, RGB"},
        "output": {"name": OUTPUT, "dtype": "float32", "shape": [None, len(loaded.card.classes)]},
    }


def metadata(loaded: Loaded) -> dict[str, str]:
    """The same in a file's own metadata."""
    card = loaded.card.as_dict()
    return {name: json.dumps(card[name], ensure_ascii=False) for name in ("classes", "image_size", "resize")}
