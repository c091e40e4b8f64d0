"""Provides the models of the golden checkpoints in Keras 3, for `--model tests.golden.specs:cnn`."""

from functools import partial

import keras

from tests.golden import models

cnn, mobilenet, sequential, subclassed = (
    partial(function, keras) for function in (models.cnn, models.mobilenet, models.sequential, models.subclassed)
)
