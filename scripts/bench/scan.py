"""Measures whether JAX should run several training steps as one program, and whether that changes the result.

    python scripts/bench/scan.py

Keras's `fit` calls the device once a step, also with `steps_per_execution`, which under JAX is a loop in Python. A scanned
step is `jax.lax.scan` over K batches that are on the device: one call for K steps. Each way trains the same model from the
same state on the same batches; the table has the time of a step, and how many of the weights have the bits of plain `fit`.
"""

import os
import time

os.environ["KERAS_BACKEND"] = "jax"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import keras
import numpy as np
import pairs

STEPS, BATCH = 640, 16
PER_CALL = (8, 32)
ROUNDS = 3


def dense() -> keras.Model:
    """Builds a network whose step takes next to nothing."""
    layers = keras.layers
    return keras.Sequential(
        [keras.Input((64,)), layers.Dense(64, "relu"), layers.Dropout(0.2), layers.Dense(10, "softmax")]
    )


def convolutional() -> keras.Model:
    """Builds a small network of convolutions with batch normalisation."""
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((64,)),
            layers.Reshape((8, 8, 1)),
            layers.Conv2D(16, 3, padding="same"),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.GlobalAveragePooling2D(),
            layers.Dense(10, "softmax"),
        ]
    )


def compiled(build) -> keras.Model:
    """Returns a new model, always with the same state."""
    keras.utils.set_random_seed(0)
    model = build()
    model.compile(keras.optimizers.AdamW(1e-3), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def fitted(build, data, per_call: int) -> tuple[float, list[np.ndarray]]:
    """Trains by `fit`; returns the seconds of a step and the weights."""
    model, ends = compiled(build), []

    class Clock(keras.callbacks.Callback):  # type: ignore[misc]  # keras is untyped
        def on_train_batch_end(self, batch, logs=None):
            ends.append((batch, time.perf_counter()))

    model.steps_per_execution = per_call
    model.fit(*data, batch_size=BATCH, shuffle=False, verbose=0, callbacks=[Clock()])
    (first, begin), (last, end) = ends[0], ends[-1]
    return (end - begin) / (last - first), [np.array(weight) for weight in model.get_weights()]


def scanned(build, data, per_call: int) -> tuple[float, list[np.ndarray]]:
    """Trains by a scan over the batches of a call; returns the seconds of a step and the weights."""
    model = compiled(build)
    images, labels = (np.reshape(each, (-1, per_call, BATCH, *each.shape[1:])) for each in data)
    model._symbolic_build(data_batch=(images[0, 0], labels[0, 0]))

    def step(state, batch):
        logs, state = model.train_step(state, batch)
        return state, logs["loss"]

    run = jax.jit(lambda state, batches: jax.lax.scan(step, state, batches), donate_argnums=0)
    groups = [
        model.trainable_variables,
        model.non_trainable_variables,
        model.optimizer.variables,
        model.metrics_variables,
    ]
    state = tuple([np.array(variable.value) for variable in group] for group in groups)
    state = jax.tree.map(jax.numpy.array, state)
    begin = None
    for batches in zip(images, labels, strict=True):
        state, losses = run(state, batches)
        if begin is None:  # the first call compiles
            jax.block_until_ready(losses)
            begin = time.perf_counter()
    jax.block_until_ready(state)
    seconds = (time.perf_counter() - begin) / (STEPS - per_call)
    values = {
        id(variable): value
        for group, found in zip(groups, state, strict=True)
        for variable, value in zip(group, found, strict=True)
    }
    return seconds, [np.array(values[id(weight)]) for weight in model.weights]


def main() -> None:
    """Prints the table."""
    asked = pairs.parse(pairs.parser(__doc__, "one round"))
    busy, rows = pairs.Busy(), []
    rng = np.random.default_rng(0)
    data = rng.normal(size=(STEPS * BATCH, 64)).astype(np.float32), rng.integers(0, 10, STEPS * BATCH).astype(np.int32)
    for build in (dense, convolutional):
        ways = [("fit", fitted, 1), *(("fit, steps_per_execution", fitted, count) for count in PER_CALL)]
        ways += [("scan", scanned, count) for count in PER_CALL]
        times: dict[tuple[str, int], list[float]] = {}
        weights = {}
        for _ in range(1 if asked.quick else ROUNDS):
            busy.wait(asked.wait)
            for name, way, count in ways:
                step, weights[name, count] = way(build, data, count)
                times.setdefault((name, count), []).append(step)
        expected = weights["fit", 1]
        for (name, count), seconds in times.items():
            same = sum(
                one.tobytes() == other.tobytes() for one, other in zip(expected, weights[name, count], strict=True)
            )
            far = max(
                float(np.max(np.abs(one - other))) for one, other in zip(expected, weights[name, count], strict=True)
            )
            rows.append(
                [
                    build.__name__,
                    name,
                    str(count),
                    f"{1e6 * min(seconds):.0f}",
                    f"{same} of {len(expected)}",
                    f"{far:.1e}",
                ]
            )
    columns = [
        "model",
        "way",
        "steps a call",
        "microseconds a step (least)",
        "weights with equal bits",
        "largest difference",
    ]
    pairs.table(columns, rows, busy)


if __name__ == "__main__":
    main()
