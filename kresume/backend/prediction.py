"""Predicts a batch on all devices that share the training, of one host or several.

    outputs = predict(model, images)

Keras's `predict_on_batch` gives every device the whole batch. Here each device predicts its share, as it trains on it. With
several hosts each process gives its share of the images, and gets the outputs of all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from kresume.backend import hosts


def predict(model: Any, images: Any) -> np.ndarray:
    """Predicts a batch.

    Args:
        model: built.
        images: this process's share of the batch, `(share, ...)`, inputs of the model.

    Returns:
        Its outputs for the whole batch, `(batch, ...)`.
    """
    with _outputs_everywhere(model):
        return np.asarray(model.predict_on_batch(shared_out(images)))


@contextmanager
def _outputs_everywhere(model: Any) -> Iterator[None]:
    """Makes the model's predictions known to every process, when they are compiled in the block."""
    if hosts.this().alone:
        yield
        return
    import jax
    import keras

    mesh = keras.distribution.distribution().device_mesh.backend_mesh
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    before, own = model.predict_step, vars(model).get("predict_step")

    def predict_step(state: Any, data: Any) -> Any:
        outputs, variables = before(state, data)
        return keras.tree.map_structure(
            lambda each: jax.lax.with_sharding_constraint(each, everywhere), outputs
        ), variables

    model.predict_step = predict_step
    try:
        yield
    finally:
        if own is None:
            del model.predict_step
        else:
            model.predict_step = own


def shared_out(images: Any) -> Any:
    """Shares a batch out to the devices, if there are several and they can share it evenly."""
    import keras

    shared = keras.distribution.distribution()
    count = hosts.this().count
    if shared is None or len(images) * count % shared.device_mesh.devices.size:
        return images
    import jax

    images = np.asarray(images)
    return jax.make_array_from_process_local_data(shared.get_data_layout(images.shape).backend_layout, images)
