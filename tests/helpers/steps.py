"""Brings a model into the state of one that was trained, without compiling a step."""

import keras
import numpy as np


def step_at_random(model, steps=3):
    """Makes steps of the model's optimizer with random gradients, and fills its statistics with random numbers.

    For tests that need weights, slots and counts unlike those of a fresh model, and not what it learned:
    `train_on_batch` traces or compiles the whole model for its first step.
    """
    rng = np.random.default_rng(0)
    weights, optimizer = model.trainable_variables, model.optimizer
    optimizer.build(weights)
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):  # it steps only in what JAX compiles
        optimizer.step_counter.assign(steps)
        optimizer = optimizer.inner_optimizer
    for _ in range(steps):
        gradients = [rng.normal(0, 0.1, weight.shape).astype("float32") for weight in weights]
        optimizer.apply([keras.ops.convert_to_tensor(each) for each in gradients], weights)
    for variable in model.non_trainable_variables:
        if "seed_generator" not in variable.path:
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
    return model
