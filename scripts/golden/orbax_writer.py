"""Writes the Orbax goldens: OrbaxCheckpoint folders, plain pytrees, and Keras's next training steps.

Run as `KERAS_BACKEND=jax python scripts/golden orbax`, and again with `tensorflow`; needs orbax-checkpoint.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parent))
import keras
import orbax.checkpoint as orbax
from inputs import IMAGES, LABELS

from tests.helpers.golden_models import MODELS

OPTIMIZERS: dict[str, Callable[[], Any]] = {
    "adam": lambda: keras.optimizers.Adam(1e-2),
    "sgd": lambda: keras.optimizers.SGD(5e-2, momentum=0.9),
    "cosine": lambda: keras.optimizers.AdamW(keras.optimizers.schedules.CosineDecay(1e-2, 50), use_ema=True),
}
CASES = {
    "nested-adam": ("nested", "adam", "callback"),
    "sequential-sgd": ("sequential", "sgd", "callback"),
    "attention-cosine": ("attention", "cosine", "callback"),
    "sequential-weights": ("sequential", "sgd", "list"),
    "nested-state": ("nested", "adam", "state"),
}


def _write(form: str, model: Any, place: Path) -> None:
    if form == "callback":
        callback = keras.callbacks.OrbaxCheckpoint(str(place), save_freq="epoch", max_to_keep=1)
        model.fit(IMAGES, LABELS, batch_size=16, shuffle=False, verbose=0, callbacks=[callback])
        return
    model.fit(IMAGES, LABELS, batch_size=16, shuffle=False, verbose=0)
    tree = model.get_weights() if form == "list" else model.get_state_tree(value_format="numpy_array")
    with orbax.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(place, tree)


def write(root: Path) -> Path:
    """Writes every case below `root/orbax-VERSION-BACKEND` and returns that folder."""
    folder = root / f"orbax-{orbax.__version__}-{keras.config.backend()}"
    folder.mkdir(parents=True)
    expected = {}
    for name, (architecture, optimizer, form) in CASES.items():
        keras.utils.set_random_seed(1)
        model = MODELS[architecture]()  # Keras's automatic names continue counting from case to case
        model.compile(OPTIMIZERS[optimizer](), keras.losses.SparseCategoricalCrossentropy(architecture != "nested"))
        model.train_on_batch(IMAGES, LABELS)
        model.train_on_batch(IMAGES, LABELS)
        # fit ends by replacing the weights by their averages (EMA); the golden holds the weights before that.
        model.optimizer.finalize_variable_values = lambda variables: None
        _write(form, model, folder.absolute() / name)
        expected[name] = {
            "model": architecture,
            "optimizer": optimizer if form == "callback" else None,
            "predictions": model.predict(IMAGES, verbose=0).tolist(),
            "next_losses": [float(model.train_on_batch(IMAGES, LABELS)) for _ in range(3)],
        }
    for note in folder.rglob("commit_success.txt"):  # written for the machine that saved it; no reader needs it
        note.unlink()
    (folder / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
    return folder
