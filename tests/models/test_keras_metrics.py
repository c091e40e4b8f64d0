"""Tests the metrics of Keras that a training is asked for: each has its number from any targets."""

from functools import partial

import keras
import numpy as np
import pytest

from kresume import runs
from kresume.errors import UsageError
from kresume.models.keras_metrics import better, own_metrics
from kresume.tasks.binary import BINARY
from kresume.tasks.single_label import INDICES, ROWS, SINGLE_LABEL
from kresume.tasks.task import Head
from tests.helpers.runs import TINY, run_training

LABELS = np.array([0, 2, 1, 1, 0, 2, 2, 0])
LOGITS = np.random.default_rng(1).normal(size=(8, 3)).astype("float32")
ROWS_OF = np.eye(3, dtype="float32")[LABELS]
SHARES = np.exp(LOGITS) / np.exp(LOGITS).sum(axis=1, keepdims=True)
NAMES = {
    "AUC": keras.metrics.AUC,
    "Precision": keras.metrics.Precision,
    "F1Score": partial(keras.metrics.F1Score, average="macro"),
    "CategoricalCrossentropy": keras.metrics.CategoricalCrossentropy,
    "categorical_accuracy": keras.metrics.CategoricalAccuracy,
    "top_k_categorical_accuracy": keras.metrics.TopKCategoricalAccuracy,
    "mean_squared_error": keras.metrics.MeanSquaredError,
    "sparse_categorical_accuracy": keras.metrics.SparseCategoricalAccuracy,
    "SparseCategoricalCrossentropy": keras.metrics.SparseCategoricalCrossentropy,
}


@pytest.mark.parametrize("logits", [False, True])
@pytest.mark.parametrize("form", [INDICES, ROWS])
def test_each_metric_has_its_number_from_any_targets(form, logits):
    """The numbers are those of Keras given the targets that each metric expects, and probabilities."""
    made = own_metrics(tuple(NAMES), Head(SINGLE_LABEL, logits), form)
    assert len({metric.name for metric in made}) == len(NAMES)
    for metric, (name, expected) in zip(made, NAMES.items(), strict=True):
        metric.update_state(LABELS if form == INDICES else ROWS_OF, LOGITS if logits else SHARES)
        plain = expected()
        plain.update_state(LABELS if name.lower().startswith("sparse") else ROWS_OF, SHARES)
        assert float(metric.result()) == pytest.approx(float(plain.result()), rel=1e-5), name


@pytest.mark.parametrize("logits", [False, True])
def test_a_metric_of_two_classes_and_one_output(logits):
    """It gets zeros and ones, and the probability of the second class."""
    (metric,) = own_metrics(("AUC",), Head(BINARY, logits), INDICES)
    outputs = LOGITS[:, :1]
    metric.update_state(LABELS % 2, outputs if logits else 1 / (1 + np.exp(-outputs)))
    plain = keras.metrics.AUC()
    plain.update_state((LABELS % 2)[:, None], 1 / (1 + np.exp(-outputs)))
    assert float(metric.result()) == pytest.approx(float(plain.result()), rel=1e-5)


@pytest.mark.parametrize(
    ("name", "own", "best"),
    [
        ("val_loss", (), "min"), ("old.loss", (), "min"), ("all.ece", (), "min"), ("old.accuracy", (), "max"),
        ("classes.rose.recall", (), "max"), ("auc", ("AUC",), "max"), ("f1_score", ("F1Score",), "max"),
        ("categorical_crossentropy", ("CategoricalCrossentropy",), "min"), ("kl_divergence", ("kl_divergence",), "min"),
        ("mean_squared_error", ("mean_squared_error",), "min"), ("mean_absolute_error", ("MeanAbsoluteError",), "min"),
        ("top_k_categorical_accuracy", ("top_k_categorical_accuracy",), "max"),
    ],
)  # fmt: skip
def test_the_best_value_is_the_highest_or_the_lowest(name, own, best):
    """An error is best where it is lowest; what Keras does not say the best of cannot be monitored."""
    assert better(name, own) == best
    with pytest.raises(UsageError, match="whether a high or a low false_positives is better"):
        better("false_positives", ("FalsePositives",))


def test_a_training_logs_them_and_its_model_trains_in_plain_keras(tmp_path, pictures):
    """Their names are the same in every process; the file leaves out what plain Keras cannot compute."""
    options = {**TINY, "epochs": 1, "metric": ("AUC", "sparse_top_k_categorical_accuracy")}
    for name in ("first", "second"):
        run = run_training(data=[str(pictures / "old")], out=str(tmp_path / name), **options).run
        assert {"auc", "sparse_top_k_categorical_accuracy"} <= runs.read_metrics(tmp_path / name / "metrics.jsonl")[
            0
        ].keys()
    model = keras.saving.load_model(f"{run}/model.keras")
    found = model.evaluate(np.zeros((4, *model.input_shape[1:])), np.zeros(4), verbose=0, return_dict=True)
    assert set(found) == {"loss", "accuracy", "sparse_top_k_categorical_accuracy"}
