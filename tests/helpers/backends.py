"""Chooses the parameters of a test by backend."""

import keras


def few_under_jax(every, few):
    """Returns `every` under TensorFlow, which runs the whole suite, and `few` of them under JAX.

    For a table whose entries take another way through kresume or through TensorFlow's data, but not through the backend:
    `few` are those that show that the backend's own part works.
    """
    every = list(every)
    assert set(map(str, few)) <= set(map(str, every))
    return every if keras.config.backend() == "tensorflow" else list(few)
