"""Tests tasks: targets, probabilities, answers and losses by hand, and that nobody else decides them."""

import ast
import typing
from pathlib import Path

import keras
import numpy as np
import pytest

import kresume
from kresume.models.losses import LossChoice
from kresume.options.table import TrainConfig
from kresume.tasks.table import (
    LOSSES,
    TASKS,
    class_count,
    form_of,
    head_named,
    head_of,
    task_of_loss,
    task_of_outputs,
)
from kresume.tasks.task import Head
from kresume.values.loss import Loss

CLASSES = {"single-label": 3, "binary": 2}

TARGETS = [
    ("single-label", "indices", [2, 0], [2, 0]),
    ("single-label", "rows", [2, 0], [[0, 0, 1], [1, 0, 0]]),
    ("binary", "binary", [1, 0], [1, 0]),
]
ANSWERS = [  # task, logits, outputs, probabilities, answers
    ("single-label", False, [[0.2, 0.3, 0.5], [0.4, 0.4, 0.2]], [[0.2, 0.3, 0.5], [0.4, 0.4, 0.2]], [2, 0]),
    ("single-label", True, [[0.0, np.log(2), 0.0]], [[0.25, 0.5, 0.25]], [1]),
    ("single-label", True, [[1000.0, 0.0, 0.0]], [[1.0, 0.0, 0.0]], [0]),
    ("binary", False, [[0.25], [0.5], [0.75]], [[0.75, 0.25], [0.5, 0.5], [0.25, 0.75]], [0, 0, 1]),
    ("binary", True, [[0.0], [np.log(3)], [-np.log(3)]], [[0.5, 0.5], [0.25, 0.75], [0.75, 0.25]], [0, 1, 0]),
]


@pytest.mark.one_backend
def test_the_tables_below_leave_no_task_out():
    """Every task, every form of its targets and both kinds of its outputs are in the tables of this file."""
    assert set(CLASSES) == set(TASKS)
    assert [(task, form) for task, form, *_ in TARGETS] == [
        (name, form) for name in TASKS for form in TASKS[name].forms
    ]
    assert {(task, logits) for task, logits, *_ in ANSWERS} == {(name, logits) for name in TASKS for logits in (0, 1)}


@pytest.mark.one_backend
@pytest.mark.parametrize(("name", "form", "labels", "expected"), TARGETS)
def test_labels_become_targets(name, form, labels, expected):
    """Labels become the targets that the loss expects, equal in numpy and in a graph; the spec is theirs."""
    import tensorflow as tf

    task, classes = TASKS[name], CLASSES[name]
    targets = task.targets(np.array(labels), form, classes)
    in_graph = task.graph_targets(tf.constant(labels, tf.int32), form, classes).numpy()
    np.testing.assert_array_equal(targets, expected)
    assert (in_graph.dtype, in_graph.tobytes()) == (targets.dtype, targets.tobytes())
    assert task.target_spec(form, 2, classes) == (targets.shape, targets.dtype.name)


@pytest.mark.one_backend
@pytest.mark.parametrize(("name", "from_logits", "outputs", "probabilities", "answers"), ANSWERS)
def test_outputs_become_probabilities_and_answers(name, from_logits, outputs, probabilities, answers):
    """Outputs become probabilities, alike in numpy and in a graph; the answer is the highest one.

    With one output it is the second class from above 0.5 on.
    """
    import tensorflow as tf

    head = Head(TASKS[name], from_logits)
    found = head.probabilities(np.array(outputs))
    np.testing.assert_allclose(found, probabilities, atol=1e-12)
    graph = head.graph_probabilities(tf.constant(outputs, tf.float32))
    np.testing.assert_allclose(graph.numpy(), probabilities, atol=1e-6)
    np.testing.assert_array_equal(head.task.answers(np.array(probabilities)), answers)
    assert head_named(head.kind) == head


@pytest.mark.one_backend
@pytest.mark.parametrize("name", TASKS)
def test_right_answers_are_counted(name):
    """One of two answers is right: accuracy 0.5, the loss by hand; -1 is never right."""
    task = TASKS[name]
    probabilities = np.array([[0.8, 0.2, 0.0], [0.6, 0.4, 0.0]])[:, : CLASSES[name]]
    labels, answers = np.array([0, 1]), task.answers(probabilities)
    np.testing.assert_array_equal(task.right(answers, labels), [True, False])
    assert not task.right(np.array([-1, -1]), labels).any()
    scores = task.scores(probabilities, answers, labels)
    assert (scores["images"], scores["accuracy"]) == (2, 0.5)
    assert scores["loss"] == pytest.approx(-(np.log(0.8) + np.log(0.4)) / 2)
    np.testing.assert_allclose(task.image_losses(probabilities, labels), -np.log([0.8, 0.4]))
    assert task.class_scores(answers, labels, ("a", "b"))["a"] == pytest.approx(
        {"images": 1, "recall": 1.0, "precision": 0.5, "f1": 2 / 3}
    )


@pytest.mark.parametrize("from_logits", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
def test_keras_trains_and_counts_as_the_task_scores(loss, from_logits):
    """The Keras loss and the training accuracy of a task equal its own scores on the same outputs."""
    task = task_of_loss(loss)
    form, classes = task.losses[loss], CLASSES[task.name]
    labels = np.array([0, 1, 1])
    outputs = np.stack([task.confident(label, task.units(classes), from_logits) for label in (0, 1, 0)])
    scores = task.scores(
        probabilities := Head(task, from_logits).probabilities(outputs), task.answers(probabilities), labels
    )
    choice = LossChoice(loss, from_logits, 0.0, "by hand", labels=form)
    targets = task.targets(labels, form, classes)
    if form == "binary":
        targets = targets[:, None]  # Keras's `fit` adds this axis
    assert float(choice.keras_loss()(targets, outputs)) == pytest.approx(scores["loss"], rel=1e-5)
    (accuracy,) = choice.keras_metrics()
    accuracy.update_state(targets, outputs)
    assert accuracy.name == "accuracy"
    assert (
        float(keras.ops.convert_to_numpy(accuracy.result()))
        == pytest.approx(scores["accuracy"])
        == pytest.approx(2 / 3)
    )


@pytest.mark.one_backend
def test_a_task_is_found_by_loss_outputs_and_record():
    """The form of targets in `run.json` names the task; older records name the loss alone."""
    assert [form_of(Loss(name, False, 0.0, "")) for name in LOSSES] == list(LOSSES.values())
    assert head_of(Loss("mine", True, 0.0, "", labels="rows")) == Head(TASKS["single-label"], from_logits=True)
    assert head_of(Loss("binary_crossentropy", False, 0.0, "")).kind == "binary"
    assert [task_of_outputs(count).name for count in (1, 2, 10)] == ["binary", "single-label", "single-label"]
    assert [class_count(count) for count in (1, 2, 10)] == [2, 2, 10]
    assert [TASKS[name].units(classes) for name, classes in CLASSES.items()] == [3, 1]
    assert task_of_loss("binary_focal_crossentropy") is TASKS["binary"]
    assert task_of_loss("mean_squared_error") is None


@pytest.mark.one_backend
def test_the_option_offers_the_losses_of_the_tasks():
    """`--loss` accepts the losses of the tasks, in their order."""
    choices, _ = typing.get_args(TrainConfig.model_fields["loss"].annotation)
    assert typing.get_args(choices) == tuple(LOSSES)


WORDS = ("argmax", "one_hot", "sparse_categorical_crossentropy", "categorical_crossentropy", "binary_crossentropy")
KINDS = ("binary", "binary-logits", "rows", "indices")
IMAGES = "indices of images, not of classes"
TABLE = "rows of a table, not of targets"
ELSEWHERE = {
    "options/of_model.py": "the choices of --loss, which the test above compares with the tasks",
    "drop_in/image_dataset.py": "label_mode, an argument of Keras's own loader in the user's own fit",
    "runtimes/scripts/keras.py": "a loss that nothing computes, in a process that cannot import kresume",
    "evaluation/answers.py": "the next most probable classes, behind the answer that the task chose",
    "evaluation/predictions.py": TABLE,
    "reports/page/render.py": TABLE,
    "reports/doctor/probe.py": "a network of ten classes whose speed is measured",
    "runtimes/process.py": IMAGES,
    "runtimes/scripts/litert.py": IMAGES,
    "runtimes/scripts/onnx.py": IMAGES,
    "runtimes/scripts/saved_model.py": IMAGES,
}


def _words(path):
    """Yields the words of a task in a module: names, arguments and texts."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [getattr(node, field, None) for field in ("id", "attr", "arg")]
        yield from (name for name in names if name in WORDS)
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from (word for word in WORDS if word in node.value)
            yield from (kind for kind in KINDS if kind == node.value)


@pytest.mark.one_backend
def test_nobody_else_decides_what_an_answer_is():
    """Outside `tasks/` no module names a loss of a task, a form of targets, an argmax or a one-hot row."""
    root = Path(kresume.__file__).parent
    modules = (path for path in sorted(root.rglob("*.py")) if "tasks" not in path.relative_to(root).parts)
    found = {str(path.relative_to(root)): sorted(set(_words(path))) for path in modules}
    found = {name: words for name, words in found.items() if words}
    assert set(found) == set(ELSEWHERE), found
