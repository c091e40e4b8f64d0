"""Tests that slots started fresh at a high count of iterations update as in a fresh optimizer."""

import keras
import numpy as np
import pytest

from kresume.models import own_counts, slots
from tests.helpers.backends import few_under_jax

CLASSES = ["Adam", "AdamW", "Nadam", "Adamax", "Lamb", "RMSprop", "Adafactor"]
BEFORE, STEPS = 50, 4


def value(variable):
    return np.asarray(keras.ops.convert_to_numpy(variable)).copy()


def gradients(seed, steps, shape=(3, 2)):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape).astype("float32") for _ in range(steps)]


def variable(at):
    return keras.Variable(np.full((3, 2), at, "float32"))


def steps(optimizer, variables, rows):
    for row in zip(*rows, strict=True):
        optimizer.apply([keras.ops.convert_to_tensor(gradient) for gradient in row], variables)


@pytest.mark.parametrize(("name", "accumulate"), [*((name, None) for name in CLASSES), ("Adam", 2)])
def test_fresh_slots_step_as_a_fresh_optimizers_do(name, accumulate):
    """A weight with fresh slots moves as under its own optimizer; the other weight continues unchanged."""

    def make(weights, begun):
        optimizer = getattr(keras.optimizers, name)(1e-2, gradient_accumulation_steps=accumulate)
        optimizer.build(weights)
        optimizer._iterations.assign(begun)
        if begun and name == "Nadam":
            optimizer._u_product.assign(1e-4)
        for attribute, listed in slots.slot_lists(optimizer).items():
            if begun and attribute != slots.ACCUMULATED:  # the first weight's slots are in the middle of a training
                listed[0].assign(np.full(listed[0].shape, 0.3, "float32"))
        return optimizer

    old, new = gradients(0, STEPS), gradients(1, STEPS)
    both, whole, alone = [variable(1.0), variable(2.0)], variable(1.0), variable(2.0)
    optimizer = make(both, BEFORE)
    own_counts.begin(optimizer, {1: own_counts.count_of(optimizer)})
    steps(optimizer, both, [old, new])
    steps(make([whole], BEFORE), [whole], [old])
    steps(make([alone], 0), [alone], [new])
    np.testing.assert_allclose(value(both[0]), value(whole), rtol=1e-5)
    np.testing.assert_allclose(value(both[1]), value(alone), rtol=1e-5)
    assert int(optimizer._iterations) == BEFORE + STEPS


COUNTED = ["Adam", "AdamW", "Nadam", "Adamax", "Lamb", "RMSprop"]
CHANGES = [(1, 3, 7), (2, 1, 12), (2, 4, 10), (4, 3, 9)]
EACH_ONCE = [(name, *CHANGES[index % len(CHANGES)]) for index, name in enumerate(COUNTED)]


@pytest.mark.parametrize(
    ("name", "before", "now", "begun"),
    few_under_jax([(name, *change) for name in COUNTED for change in CHANGES], EACH_ONCE),
)
def test_slots_continue_at_their_update_under_another_number_of_batches(name, before, now, begun):
    """The count of batches was divided by the new number: the bias of Adam's moments was corrected as at another update."""

    def make(batches):
        optimizer = getattr(keras.optimizers, name)(1e-2, gradient_accumulation_steps=batches if batches > 1 else None)
        optimizer.build(weights := [variable(1.0), variable(2.0)])
        return optimizer, weights

    old, weights = make(before)
    own_counts.begin(old, {1: before})  # the second weight's slots began an update later
    steps(old, weights, [gradients(0, begun), gradients(1, begun)])
    # Whole groups of equal gradients are one update of an optimizer that adds up none.
    alone = [value(weight) for weight in weights]
    plain, theirs = make(1)
    own_counts.begin(plain, {1: 1})
    for group in range(begun // before):
        mean = [
            [np.mean(rows[group * before : (group + 1) * before], axis=0)]
            for rows in (gradients(0, begun), gradients(1, begun))
        ]
        steps(plain, theirs, mean)
    for mine, other in zip(alone, theirs, strict=True):
        np.testing.assert_allclose(mine, value(other), rtol=1e-5)
    new, _ = make(now)
    slots.carry(old, new)
    for weight, other in zip(new._trainable_variables, weights, strict=True):
        weight.assign(np.array(value(other)))
    for accumulated in slots.slot_lists(new).get(slots.ACCUMULATED, ()):  # begin a group
        accumulated.assign(np.zeros(accumulated.shape, "float32"))
    short = now - begun % now
    one, two = gradients(5, 1), gradients(6, 1)
    scale = now / short if now > 1 else 1.0  # Keras divides the first, short group by the whole number
    steps(new, new._trainable_variables, [[one[0] * scale] * short, [two[0] * scale] * short])
    steps(plain, theirs, [one, two])
    for mine, other in zip(new._trainable_variables, theirs, strict=True):
        np.testing.assert_allclose(value(mine), value(other), rtol=1e-5)


@pytest.mark.parametrize("name", ["Adam", "AdamW", "Adamax", "Lamb"])
def test_matured_moments_step_the_same_under_plain_keras(name):
    """Matured moments step the same under plain Keras, which has a single count.

    This holds under a constant gradient, for one step.
    """
    grown = [variable(1.0), variable(2.0)]
    optimizer = getattr(keras.optimizers, name)(1e-2)
    optimizer.build(grown)
    optimizer._iterations.assign(BEFORE)
    own_counts.begin(optimizer, {1: BEFORE})
    one, two = gradients(1, 1) * STEPS, gradients(2, 1) * STEPS
    steps(optimizer, grown, [one, two])
    plain, other = getattr(keras.optimizers, name)(1e-2), [variable(0.0), variable(0.0)]
    plain.build(other)
    for theirs, mine in zip([*plain.variables, *other], [*optimizer.variables, *grown], strict=True):
        theirs.assign(np.array(value(mine)))  # JAX may step in the buffer that it is given
    own_counts.begin(plain, own_counts.counts_of(optimizer))
    own_counts.scale_to_one_count(plain)
    assert own_counts.counts_of(plain) == {}
    before = [value(weight) for weight in grown]
    steps(optimizer, grown, [one[:1], two[:1]])
    steps(plain, other, [one[:1], two[:1]])
    for start, mine, theirs in zip(before, grown, other, strict=True):
        np.testing.assert_allclose(value(theirs) - start, value(mine) - start, rtol=1e-2)


def test_another_class_begins_its_moments_with_a_count_of_their_own():
    """SGD's momentum is not carried to Adam, whose first step equals the rate at any iteration count."""
    weights = [variable(1.0)]
    old = keras.optimizers.SGD(1e-2, momentum=0.9)
    old.build(weights)
    steps(old, weights, [gradients(0, 1)])
    old.iterations.assign(BEFORE)
    new = keras.optimizers.Adam(1e-2)
    new.build(weights)
    assert slots.carry(old, new) == ([], ["_momentums", "_velocities"])
    before = value(weights[0])
    steps(new, weights, [gradients(1, 1)])
    np.testing.assert_allclose(np.abs(value(weights[0]) - before), 1e-2, rtol=1e-3)
    assert int(new.iterations) == BEFORE + 1
