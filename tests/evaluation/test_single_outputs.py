"""Tests models with one output for two classes, served as SavedModels: read, scored and replaced."""

import os
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

import kresume
from kresume.errors import CheckpointError, UsageError
from kresume.evaluation.evaluate import evaluate
from kresume.evaluation.served import to_pairs
from kresume.exports import saved_model
from kresume.exports.export import export
from kresume.reporter import Reporter
from kresume.runtimes.operations import last_operation
from kresume.runtimes.signatures import Output, read_signatures, understand
from kresume.tasks.binary import BINARY
from kresume.tasks.task import Head
from tests.helpers import forking

LEVELS = {"dark": (20, 60, 100, 120), "light": (140, 170, 200, 240)}
WRITER = """
import sys
import numpy as np, tensorflow as tf, tf_keras
layers = tf_keras.layers
for kind in ("sigmoid", "linear"):
    model = tf_keras.Sequential([
        layers.Rescaling(1 / 255, input_shape=(12, 12, 3)), layers.GlobalAveragePooling2D(), layers.Dense(1, kind),
    ])
    model.set_weights([np.full((3, 1), 4.0), np.array([-6.0])])
    model.save(f"{sys.argv[1]}/{kind}", save_format="tf")
    if kind == "linear":
        spec = tf.TensorSpec((None, 12, 12, 3), name="sent")
        own = tf.function(lambda sent: {"light": tf.sigmoid(model(sent * 255.0))}, input_signature=[spec])
        model.save(f"{sys.argv[1]}/own", save_format="tf", signatures=own)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Writes grey pictures, SavedModels of Keras 2 that tell dark from light, and their Keras 3 twin."""
    pytest.importorskip("tf_keras")
    folder = tmp_path_factory.mktemp("single")
    for label, levels in LEVELS.items():
        (folder / "data" / label).mkdir(parents=True)
        for level in levels:
            Image.new("RGB", (12, 12), (level,) * 3).save(folder / "data" / label / f"{level}.png")
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1"}
    forking.run([sys.executable, "-c", WRITER, folder], check=True, env=environment)
    twin = keras.Sequential(
        [
            keras.Input((12, 12, 3)),
            keras.layers.Rescaling(1 / 255),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(1),
        ]
    )
    twin.set_weights([np.full((3, 1), 4.0), np.array([-6.0])])
    twin.save(folder / "twin.keras")
    return folder


def expected_loss():
    """Computes the mean cross-entropy by numpy."""
    logits = {label: 12 * np.array(levels) / 255 - 6 for label, levels in LEVELS.items()}
    return float(np.mean([np.log1p(np.exp(logits["dark"])), np.log1p(np.exp(-logits["light"]))]))


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize("kind", ["sigmoid", "linear"])
def test_eval_reads_one_number_and_the_pixels_as_the_first_and_last_layers_say(place, kind):
    """`eval` of a SavedModel with its Keras architecture needs neither `--pixels` nor other options."""
    found = evaluate(place / kind, data=place / "data")
    assert found.scores["all"]["accuracy"] == 1.0
    assert found.scores["all"]["loss"] == pytest.approx(expected_loss(), rel=1e-4)


@pytest.mark.one_backend(trains=True)
def test_a_signature_of_the_users_own_is_not_read_as_the_model_behind_it(place):
    """A user's own signature is not read as the model behind it: its pixels must be given.

    It expects 0-1 and returns a probability; the model expects 0-255 and returns a logit.
    """
    with pytest.raises(UsageError, match="expects pixel values as numbers and does not record which: give pixels="):
        evaluate(place / "own", data=place / "data")
    found = evaluate(place / "own", data=place / "data", pixels="0-1")
    assert found.scores["all"]["loss"] == pytest.approx(expected_loss(), rel=1e-4)


@pytest.mark.one_backend(trains=True)
def test_like_gives_one_number_of_the_same_meaning(place, tmp_path):
    """`like` a model that returns one logit exports one logit, which `eval` reads alike."""
    import tensorflow as tf

    result = export(
        place / "twin.keras",
        tmp_path / "serving" / "light",
        like=place / "linear",
        like_pixels="0-255",
        data=place / "data",
        classes=("dark", "light"),
    )
    levels = np.array([level for levels in LEVELS.values() for level in levels], np.float32)
    values = np.tile(levels[:, None, None, None], (1, 12, 12, 3))
    answers = []
    for folder in (place / "linear", result.path):
        model = tf.saved_model.load(str(folder))
        signature = model.signatures["serving_default"]
        (name,) = signature.structured_input_signature[1]
        answers.append({key: np.asarray(value) for key, value in signature(**{name: values}).items()})
    assert answers[0].keys() == answers[1].keys()
    for name, numbers in answers[0].items():
        assert numbers.shape == (8, 1)
        np.testing.assert_allclose(answers[1][name], numbers, atol=1e-4)
    found = evaluate(result.path, data=place / "data")
    assert found.scores["all"]["loss"] == pytest.approx(expected_loss(), rel=1e-4)


@pytest.mark.parametrize(
    ("head", "operation", "numbers", "expected"),
    [
        (Head(BINARY), "", [[0.25], [1.0]], [[0.75, 0.25], [0.0, 1.0]]),
        (None, "Sigmoid", [0.25, 1.0], [[0.75, 0.25], [0.0, 1.0]]),
        (None, "BiasAdd", [0.0, np.log(3)], [[0.5, 0.5], [0.25, 0.75]]),
        (Head(BINARY, from_logits=True), "", [[0.0], [np.log(3)]], [[0.5, 0.5], [0.25, 0.75]]),
    ],
)
@pytest.mark.one_backend
def test_one_number_is_the_score_of_the_second_class(head, operation, numbers, expected):
    """One output is the score of the second class: a probability or a logit, in a column or a row.

    The model says which, or the operation that computes it.
    """
    np.testing.assert_allclose(to_pairs(np.array(numbers), head, operation), expected, atol=1e-12)


@pytest.mark.one_backend
def test_a_number_that_may_be_a_logit_is_refused():
    """Numbers of unknown meaning are refused, also between 0 and 1, where logits may be; two logits keep the difference."""
    for numbers, shown in (([-2.0, 0.5, 3.0], "from -2 to 3"), ([0.25, 0.5], r"from 0\.25 to 0\.5")):
        words = rf"{shown}, and it is unknown whether that is a logit: give --model with"
        with pytest.raises(ValueError, match=words):
            to_pairs(np.array(numbers), None, "Mul")
    pairs = to_pairs(np.array([-2.0, 3.0]), Head(BINARY, from_logits=True), "", shares=False)
    np.testing.assert_allclose(pairs[:, 1] - pairs[:, 0], [-2.0, 3.0])


@pytest.mark.parametrize(
    ("outputs", "kinds"),
    [
        ({"a": ("float32", (None, 1))}, {"a": "scores"}),
        ({"a": ("float32", (None,))}, {"a": "scores"}),
        ({"a": ("float32", (None, 1)), "embedding": ("float32", (None, 8))}, {"a": "scores", "embedding": "embedding"}),
        ({"a": ("float32", (None,)), "b": ("string", (None,))}, {"a": "top_scores", "b": "labels"}),
        ({"a": ("float32", (None, 1)), "b": ("string", (None, 1))}, {"a": "top_scores", "b": "labels"}),
    ],
)
@pytest.mark.one_backend
def test_a_lone_float_is_a_score_and_one_beside_labels_is_theirs(outputs, kinds):
    """A lone float of two classes is a score; a float beside labels belongs to them.

    A model of three classes has no single output.
    """
    inputs = {"x": ("float32", (None, 12, 12, 3))}
    found = understand("serving_default", inputs, outputs, 2)
    assert {output.name: output.kind for output in found.outputs} == kinds
    if "b" not in outputs and outputs["a"][1] == (None, 1):
        with pytest.raises(ValueError, match="has 1 numbers per image, the model has 3 classes"):
            understand("serving_default", inputs, outputs, 3)


@pytest.mark.one_backend(trains=True)
def test_a_signature_without_classes_is_refused(tmp_path):
    """A signature with one float for three classes is refused, because 0 % would be a wrong result."""
    import tensorflow as tf

    module = tf.Module()
    spec = tf.TensorSpec((None,), tf.string, name="image")
    answer = tf.function(lambda image: {"quality": tf.zeros(tf.shape(image))}, input_signature=[spec])
    tf.saved_model.save(module, str(tmp_path / "old"), signatures=answer)
    for label in ("a", "b", "c"):
        (tmp_path / "data" / label).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "data" / label / "1.png")
    with pytest.raises(UsageError, match=r"gives neither scores nor labels of 3 classes, .*its outputs are quality"):
        evaluate(Path(tmp_path / "old"), data=tmp_path / "data")


@pytest.mark.parametrize(("logits", "expected"), [(False, [[0.25]]), (True, [[np.log(0.25 / 0.75)]])])
@pytest.mark.one_backend
def test_two_scores_become_one(logits, expected):
    """Two scores become one for a signature of one output.

    It is the share of the second class, or the difference of the logits.
    """
    import tensorflow as tf

    scores = tf.constant([[0.75, 0.25]])
    parts = {"scores": tf.math.log(scores) if logits else scores}
    given = saved_model._shaped(Output("a", "scores", "float32", (None, 1)), parts, logits=logits)
    np.testing.assert_allclose(given, expected, rtol=1e-6)


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize("scaled", [False, True])
def test_a_number_that_a_function_of_the_users_own_computes(place, scaled, tmp_path):
    """Its last operation is found through the calls of functions; one that tells nothing is an error that names the file."""
    import tensorflow as tf

    model = tf.saved_model.load(str(place / "linear"))
    module = tf.Module()
    module.inner = model
    spec = tf.TensorSpec((None, 12, 12, 3), name="sent")
    (key,) = model.signatures["serving_default"].structured_input_signature[1]

    def answer(sent):
        (number,) = model.signatures["serving_default"](**{key: sent * 255.0}).values()
        return {"answer": 0.01 * number if scaled else tf.identity(number)}

    tf.saved_model.save(module, str(tmp_path / "own"), signatures=tf.function(answer, input_signature=[spec]))
    if scaled:
        with pytest.raises(
            CheckpointError, match=r"own: its output answer is one number per image, from -0\.05.* to 0\.05"
        ):
            evaluate(tmp_path / "own", data=place / "data", pixels="0-1")
        return
    found = evaluate(tmp_path / "own", data=place / "data", pixels="0-1")
    assert found.scores["all"]["loss"] == pytest.approx(expected_loss(), rel=1e-4)


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize(
    ("last", "operation"),
    [
        (lambda a, b: 0.5 * keras.ops.sigmoid(a) + 0.5 * keras.ops.sigmoid(b), ""),
        (lambda a, b: keras.ops.sigmoid(a), "Sigmoid"),
        (lambda a, b: keras.ops.clip(keras.ops.sigmoid(a), 1e-3, 0.999), "Sigmoid"),
        (lambda a, b: keras.ops.sigmoid(a) + 1e-7, ""),
        (lambda a, b: keras.ops.reshape(a, (-1, 1)), "BiasAdd"),
        (lambda a, b: keras.ops.softmax(keras.ops.concatenate([a, b], axis=-1)), "Softmax"),
        (lambda a, b: keras.ops.cos(a), "Cos"),
    ],
)
def test_the_last_operation_is_found(tmp_path, last, operation):
    """A sum counts as the bias of a layer only if it adds one to a product: a sum of probabilities is no logit."""
    given = keras.Input((12, 12, 3))
    flat = keras.layers.Flatten()(given)
    a, b = keras.layers.Dense(1)(flat), keras.layers.Dense(1)(flat)
    keras.Model(given, last(a, b)).export(str(tmp_path / "sm"), verbose=False)
    signature = read_signatures(tmp_path / "sm", 2)["serving_default"]
    assert signature.output("scores").operation == operation


@pytest.mark.one_backend(trains=True)
def test_of_several_rows_of_scores_a_name_tells(place, tmp_path, capsys):
    """A row of features as long as the classes is not read as their scores; without a name that tells it is refused."""
    import tensorflow as tf

    spec = tf.TensorSpec((None, 12, 12, 3), name="sent")

    def answers(*names):
        def answer(sent):
            level = tf.reduce_mean(sent, axis=(1, 2, 3))[:, None]
            scores = tf.concat([1 - level, level], axis=1)
            return {name: scores if name == names[-1] else 1 - scores for name in names}

        folder = str(tmp_path / "-".join(names))
        tf.saved_model.save(tf.Module(), folder, signatures=tf.function(answer, input_signature=[spec]))
        return folder

    found = evaluate(answers("features", "probabilities"), data=place / "data", pixels="0-1", reporter=Reporter())
    assert found.scores["all"]["accuracy"] == 1.0
    assert "signature serving_default, output probabilities" in capsys.readouterr().err
    with pytest.raises(
        CheckpointError, match=r"its outputs a, b could all be the scores: save a model with one of them"
    ):
        evaluate(answers("a", "b"), data=place / "data", pixels="0-1")
    with pytest.raises(UsageError, match=r"only one class is named; give the names of all"):
        kresume.predict(answers("scores"), [place / "data"], pixels="0-1", classes=("light",))


@pytest.mark.one_backend
@pytest.mark.parametrize("op", ["Minimum", "Identity", "AddV2"])
def test_a_circle_in_a_damaged_graph_ends(op):
    """A graph whose operation takes its own output tells nothing, and the search ends."""
    from tensorflow.core.protobuf import meta_graph_pb2

    graph = meta_graph_pb2.MetaGraphDef()
    graph.graph_def.node.add(name="a", op=op, input=["a:0", "b:0"])
    graph.graph_def.node.add(name="b", op="Const")
    graph.signature_def["serving_default"].outputs["out"].name = "a:0"
    assert last_operation(graph, "serving_default", "out") == ""
