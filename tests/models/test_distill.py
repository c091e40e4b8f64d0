"""Tests the term of the loss that keeps a model near its parent, against scipy and plain Keras."""

import keras
import numpy as np
import pytest
import scipy.special

from kresume.backend.second_model import SecondModel
from kresume.errors import CheckpointError, UsageError
from kresume.models.distill import build_teacher, check_teachable, distance, taught, teacher_arrays
from kresume.tasks.table import head_of
from kresume.values.loss import Loss
from kresume.values.teaching import Teaching

layers = keras.layers
MANY, TWO = "sparse_categorical_crossentropy", "binary_crossentropy"


def loss_of(kind, from_logits):
    return Loss(kind, from_logits, 0.0, "")


def outputs_of(kind, from_logits, units, seed):
    """Returns logits and what a model of this kind gives for them."""
    logits = np.random.default_rng(seed).normal(0, 3, (7, units)).astype(np.float32)
    squash = scipy.special.softmax if kind == MANY else lambda values, axis: scipy.special.expit(values)
    return logits, logits if from_logits else squash(logits, axis=-1)


def log_probabilities(kind, logits):
    """Returns the logarithms of probabilities from logits, by scipy alone."""
    if kind == MANY:
        return scipy.special.log_softmax(logits.astype(np.float64), axis=-1)
    return np.concatenate([scipy.special.log_expit(-logits), scipy.special.log_expit(logits)], axis=-1).astype(
        np.float64
    )


@pytest.mark.parametrize("child", [(MANY, True), (MANY, False)])
@pytest.mark.parametrize("parent", [(MANY, True), (MANY, False), (TWO, True), (TWO, False)])
def test_the_distance_is_that_of_softened_answers(parent, child):
    """It equals 4 times the Kullback-Leibler divergence at temperature 2, over the parent's classes in its order."""
    classes = (3, 1)
    parent_logits, given = outputs_of(*parent, 2 if parent[0] == MANY else 1, 1)
    child_logits, answered = outputs_of(*child, 4, 2)
    teaching = Teaching(0.7, classes, loss_of(*parent))
    found = distance(teaching, head_of(teaching.answers), given, head_of(loss_of(*child)), answered)
    before = scipy.special.softmax(log_probabilities(parent[0], parent_logits) / 2, axis=-1)
    after = scipy.special.softmax(log_probabilities(child[0], child_logits)[:, list(classes)] / 2, axis=-1)
    expected = 0.7 * 4 * scipy.special.rel_entr(before, after).sum(axis=-1).mean()
    np.testing.assert_allclose(float(found), expected, rtol=2e-5)


def test_a_single_output_is_compared_as_two_classes():
    """A parent and a child with one sigmoid output each are compared on both classes."""
    teaching = Teaching(1.0, (0, 1), loss_of(TWO, False))
    same, other = (np.array([[value]], np.float32) for value in (0.9, 0.1))
    head = head_of(teaching.answers)
    assert float(distance(teaching, head, same, head, same)) == pytest.approx(0, abs=1e-6)
    assert float(distance(teaching, head, same, head, other)) > 1


def small(classes, normalised=False):
    """Builds a model that gives logits."""
    inner = [layers.BatchNormalization()] if normalised else []
    return keras.Sequential([keras.Input((5,)), layers.Dense(6, activation="tanh"), *inner, layers.Dense(classes)])


def test_training_with_a_teacher_equals_plain_keras():
    """The same weights come out of a plain Keras loss on labels that carry the teacher's probabilities."""
    import tensorflow as tf

    keras.utils.set_random_seed(3)
    teacher, student, plain = small(2), small(3), small(3)
    plain.set_weights(
        [np.array(each) for each in student.get_weights()]
    )  # JAX may train in the buffer that it is given
    rng = np.random.default_rng(0)
    images, labels = rng.normal(size=(24, 5)).astype("float32"), rng.integers(0, 3, 24).astype("int32")
    softened = scipy.special.softmax(keras.ops.convert_to_numpy(teacher(images)) / 2, axis=-1)

    def both(targets, outputs):
        own = keras.losses.sparse_categorical_crossentropy(targets[:, 0], outputs, from_logits=True)
        near = keras.losses.kl_divergence(targets[:, 1:], keras.ops.softmax(outputs[:, :2] / 2))
        return own + 0.5 * 4 * near

    plain.compile(keras.optimizers.SGD(0.1), both)
    plain.fit(images, np.column_stack([labels, softened]), batch_size=8, shuffle=False, epochs=2, verbose=0)
    student.compile(
        keras.optimizers.SGD(0.1),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    student._symbolic_build(data_batch=(images[:8], labels[:8]))
    kept = [weight.copy() for weight in teacher.get_weights()]
    teaching = Teaching(0.5, (0, 1), loss_of(MANY, True))
    dataset = tf.data.Dataset.from_tensor_slices((images, labels)).batch(8).repeat()
    with taught(student, SecondModel(teacher), teaching, head_of(loss_of(MANY, True))) as prepared:
        logs = student.fit(prepared(dataset), epochs=2, steps_per_epoch=3, shuffle=False, verbose=0).history
    for one, other in zip(student.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    assert 0 <= logs["accuracy"][-1] <= 1
    assert [weight.tobytes() for weight in teacher.get_weights()] == [weight.tobytes() for weight in kept]
    assert "compute_loss" not in vars(student)
    student.evaluate(images, labels, verbose=0)  # the loss is its own again


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("from_logits", [False, True])
def test_the_loss_over_new_classes_is_that_of_a_softmax_over_them(rows, from_logits):
    """Old outputs have no part in it: it equals Keras's loss on the new logits alone."""
    from kresume.models.distill import _of_new_classes

    teaching = Teaching(1.0, (0, 1), loss_of(MANY, from_logits), new_only=True)
    logits, outputs = outputs_of(MANY, from_logits, 5, 4)
    labels = np.array([2, 4, 3, 2, 4, 4, 3], np.int32)
    kind = "CategoricalCrossentropy" if rows else "SparseCategoricalCrossentropy"
    told = np.eye(5, dtype=np.float32)[labels] if rows else labels
    told, shown = _of_new_classes(teaching, head_of(teaching.answers), told, outputs)
    found = getattr(keras.losses, kind)(from_logits=from_logits)(told, shown)
    expected = keras.losses.SparseCategoricalCrossentropy(from_logits=True)(labels - 2, logits[:, 2:])
    np.testing.assert_allclose(float(found), float(expected), rtol=1e-5)


@pytest.mark.one_backend(trains=True)
def test_a_teacher_is_the_model_as_it_predicts():
    """The copy predicts with averages and recomputed statistics, to the bit, and draws nothing from a generator."""
    model = small(3, normalised=True)
    model.compile(keras.optimizers.Adam(use_ema=True, ema_momentum=0.5), "mse")
    images = np.random.default_rng(1).normal(size=(8, 5)).astype("float32")
    model.fit(images, np.zeros((8, 3), "float32"), epochs=2, verbose=0)
    statistics = {0: np.full(6, 0.25, np.float32), 1: np.full(6, 2.0, np.float32)}
    arrays = teacher_arrays(model, None, statistics)
    raw = model.get_weights()
    drawn = keras.random.uniform((3,))
    keras.utils.set_random_seed(5)
    expected_draw = keras.ops.convert_to_numpy(keras.random.uniform((3,)))
    keras.utils.set_random_seed(5)
    built = build_teacher(keras.saving.serialize_keras_object(model), arrays, (), trust=False)
    assert keras.ops.convert_to_numpy(keras.random.uniform((3,))).tobytes() == expected_draw.tobytes()
    assert drawn.shape == (3,)
    from kresume.models.averages import use_averages
    from kresume.models.statistics import assign_statistics

    assert all(one.tobytes() == other.tobytes() for one, other in zip(raw, model.get_weights(), strict=True))
    use_averages(model.optimizer)
    assign_statistics(model, statistics)
    assert model.predict(images, verbose=0).tobytes() == built.predict(images, verbose=0).tobytes()
    with pytest.raises(CheckpointError, match="does not fit its architecture"):
        build_teacher(keras.saving.serialize_keras_object(small(4, normalised=True)), arrays, (), trust=False)


class OwnStep(keras.Sequential):
    """A model whose own step may ignore the loss."""

    def train_step(self, *arguments):
        return super().train_step(*arguments)


@pytest.mark.one_backend(trains=True)
def test_a_model_with_its_own_step_is_refused():
    """Its step may minimise something else than the compiled loss."""
    check_teachable(small(2))
    with pytest.raises(UsageError, match="OwnStep has its own train_step"):
        check_teachable(OwnStep([keras.Input((2,)), layers.Dense(2)]))
