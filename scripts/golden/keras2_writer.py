"""Writes the Keras 2 goldens: checkpoints and SavedModels by tf_keras, and its next training steps.

The checkpoints are `tf.train.Checkpoint`s. Run as `python scripts/golden keras2`; needs tf_keras.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parent))
import tensorflow as tf
import tf_keras as keras
from inputs import IMAGES, LABELS
from keras2_models import MODELS

optimizers = keras.optimizers
OPTIMIZERS: dict[str, Callable[[], Any]] = {
    "adam": lambda: optimizers.Adam(1e-2),
    "adamw": lambda: optimizers.AdamW(1e-2, weight_decay=0.05),
    "sgd": lambda: optimizers.SGD(5e-2, momentum=0.9),
    "rmsprop": lambda: optimizers.RMSprop(1e-3),
    "legacy-adam": lambda: optimizers.legacy.Adam(1e-2),
    "legacy-sgd": lambda: optimizers.legacy.SGD(5e-2, momentum=0.9),
    "legacy-decay": lambda: optimizers.legacy.Adam(1e-2, decay=0.1),
}


def _checkpoint(model: Any, folder: Path) -> None:
    tf.train.Checkpoint(model=model).write(str(folder / "ckpt"))


def _roots(model: Any, folder: Path) -> None:  # as in TensorFlow's guide
    roots = tf.train.Checkpoint(step=tf.Variable(7), opt=model.optimizer, net=model)
    tf.train.CheckpointManager(roots, str(folder), max_to_keep=1).save()


def _weights(model: Any, folder: Path) -> None:  # ModelCheckpoint(save_weights_only=True) of Keras 2
    model.save_weights(str(folder / "cp.ckpt"))


def _saved_model(model: Any, folder: Path) -> None:
    # The graph of a training step's operations is large, and no reader uses it.
    keras.models.save_model(model, str(folder), save_format="tf", save_traces=False)


CASES = {
    "sequential-adam": ("sequential", "adam", _checkpoint),
    "sequential-legacy-sgd": ("sequential", "legacy-sgd", _roots),
    "nested-sgd": ("nested", "sgd", _roots),
    "nested-legacy-adam": ("nested", "legacy-adam", _checkpoint),
    "nested-legacy-decay": ("nested", "legacy-decay", _weights),
    "attention-adamw": ("attention", "adamw", _weights),
    "attention-legacy-adam": ("attention", "legacy-adam", _roots),
    "subclassed-adam": ("subclassed", "adam", _roots),
    "subclassed-rmsprop": ("subclassed", "rmsprop", _checkpoint),
    "transfer-adam": ("transfer", "adam", _checkpoint),
    "saved-transfer-adam": ("transfer", "adam", _saved_model),
    "saved-small-adam": ("small", "adam", _saved_model),
    "saved-small-legacy-sgd": ("small", "legacy-sgd", _saved_model),
}


def write(root: Path) -> Path:
    """Writes every case below `root/tf_keras-VERSION` and returns that folder."""
    folder = root / f"tf_keras-{keras.__version__}"
    expected = {}
    for name, (architecture, optimizer, save) in CASES.items():
        keras.utils.set_random_seed(1)
        model = MODELS[architecture]()
        logits = architecture != "nested"
        model.compile(OPTIMIZERS[optimizer](), keras.losses.SparseCategoricalCrossentropy(from_logits=logits))
        for _ in range(3):
            model.train_on_batch(IMAGES, LABELS)
        place = folder / name
        place.mkdir(parents=True)
        save(model, place)
        predictions = model.predict(IMAGES, verbose=0)
        expected[name] = {
            "model": architecture,
            "optimizer": optimizer.removeprefix("legacy-"),
            "rate": float(keras.backend.get_value(model.optimizer.learning_rate)),
            "step": 3,
            "predictions": predictions.tolist(),
            "next_losses": [float(model.train_on_batch(IMAGES, LABELS)) for _ in range(3)],
        }
    (folder / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
    return folder
