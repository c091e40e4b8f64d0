"""Gives the steps of one model the outputs of a second one, which does not train.

    second = SecondModel(teacher)
    model.fit(second.feed(dataset))
    labels, outputs = second.split(x, y)        # inside the step's loss

TensorFlow's graph of a step reads the second model's variables where they are, so its step calls the second model. JAX would
copy its weights into the compiled step as constants; there it predicts each batch before the step, and its outputs travel with
the labels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kresume.backend import hosts
from kresume.backend.prediction import predict


class SecondModel:
    """A model that predicts every batch on which another one trains.

    Args:
        model: built; its variables stay as they are.
    """

    def __init__(self, model: Any) -> None:
        import keras

        self._model = model
        self._before_step = keras.config.backend() != "tensorflow"

    def feed(self, dataset: Any) -> Any:
        """Returns the data to give to `fit`.

        Args:
            dataset: a `tf.data.Dataset` of images and labels.
        """
        return self._predicted(dataset) if self._before_step else dataset

    def _predicted(self, dataset: Any) -> Iterator[Any]:
        for images, labels in dataset.as_numpy_iterator():
            this = hosts.this()
            outputs = predict(self._model, images)  # of all processes
            yield images, (labels, outputs[this.share(len(outputs))])

    def labels(self, labels: Any) -> Any:
        """Returns the labels without the second model's outputs."""
        return labels[0] if isinstance(labels, (tuple, list)) else labels

    def split(self, images: Any, labels: Any) -> tuple[Any, Any]:
        """Returns the labels and the second model's outputs, in the step that trains.

        The outputs are None while Keras only builds the loss.

        Args:
            images: a batch.
            labels: its labels, as `feed` gives them.
        """
        if not self._before_step:
            return labels, self._model(images, training=False)
        # Keras builds losses and metrics from labels alone, when a model is compiled again between two epochs.
        return tuple(labels) if isinstance(labels, (tuple, list)) else (labels, None)
