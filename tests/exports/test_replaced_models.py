"""Tests what `--like` and `eval` read from the model that is replaced: the values that its clients send, its kind of scores."""

import keras
import numpy as np
import pytest

from kresume.errors import ExportError
from kresume.evaluation.evaluate import evaluate
from kresume.evaluation.served import Prediction
from kresume.exports import like
from kresume.exports.samples import Samples
from kresume.runtimes.operations import input_scale
from kresume.runtimes.signatures import read_signatures
from tests.helpers.pictures import CLASSES, draw

layers = keras.layers


def inner(*first):
    return keras.Sequential([keras.Input((12, 12, 3)), *first, layers.Conv2D(2, 3)])


def normalising():
    return layers.Normalization(mean=[120.0, 110.0, 100.0], variance=[3600.0, 2500.0, 1600.0])


FIRST = {
    "rescaling": (lambda: layers.Rescaling(1 / 255), 1 / 255, "0-255"),
    "rescaling to -1..1": (lambda: layers.Rescaling(1 / 127.5, offset=-1), 1 / 127.5, "0-255"),
    "a factor per channel": (lambda: layers.Rescaling([0.01, 0.02, 0.03]), 0.03, "0-255"),
    "values around 1": (lambda: layers.Rescaling(2.0, offset=-1), 2.0, None),
    "normalisation": (normalising, 1 / 40, "0-255"),
    "a division": (lambda: lambda x: x / 255.0, 1 / 255, "0-255"),
    "behind resizing": (lambda: keras.Sequential([layers.Resizing(8, 8), layers.Rescaling(1 / 255)]), 1 / 255, "0-255"),
    "in an inner model": (lambda: inner(layers.Rescaling(1 / 255)), 1 / 255, "0-255"),
    "a convolution": (lambda: layers.Conv2D(2, 3), None, None),
    "two branches": (lambda: lambda x: layers.Concatenate()([layers.Rescaling(1 / 255)(x), x]), None, None),
    "a learned factor": (layers.BatchNormalization, None, None),
}


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize("first", FIRST)
def test_the_first_operations_tell_the_values_that_clients_send(tmp_path, first):
    """A model that rescales expects bytes; what its first operations do not show stays unknown."""
    function, scale, pixels = FIRST[first]
    given = keras.Input((12, 12, 3))
    scores = layers.Dense(3, activation="softmax")(layers.GlobalAveragePooling2D()(function()(given)))
    keras.Model(given, scores).export(str(tmp_path / "sm"), verbose=False)
    found = read_signatures(tmp_path / "sm", 3)["serving_default"].input
    assert found.scale == (None if scale is None else pytest.approx(scale, rel=1e-4))
    assert found.pixels == pixels


@pytest.mark.one_backend
@pytest.mark.parametrize("op", ["Identity", "Sub"])
def test_a_circle_behind_the_input_ends(op):
    """A damaged graph whose operation takes its own output tells nothing, and the search ends."""
    import tensorflow as tf
    from tensorflow.core.protobuf import meta_graph_pb2

    graph = meta_graph_pb2.MetaGraphDef()
    graph.graph_def.node.add(name="b", op=op, input=["a:0", "c"])
    graph.graph_def.node.add(name="a", op=op, input=["b:0", "c"])
    constant = graph.graph_def.node.add(name="c", op="Const")
    constant.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(2.0))
    graph.signature_def["serving_default"].inputs["given"].name = "a:0"
    assert input_scale(graph, "serving_default", "given") is None


def samples_of(tmp_path, outputs, labels):
    files = []
    for index, label in enumerate(labels):
        path = tmp_path / f"{index}.png"
        keras.utils.save_img(path, draw(CLASSES[label], index, 12), scale=False)
        files.append(path.read_bytes())
    pictures = np.stack([draw(CLASSES[label], index, 12) for index, label in enumerate(labels)])
    return Samples(tuple(files), labels, CLASSES, pictures, outputs, outputs, tmp_path, "validation images")


@pytest.mark.one_backend
@pytest.mark.parametrize("kind", ["probabilities", "independent"])
def test_independent_scores_replace_independent_scores(tmp_path, kind, monkeypatch):
    """A model with a sigmoid per class can replace its like; one that chooses a class cannot."""
    import tensorflow as tf

    spec = tf.TensorSpec((None,), tf.string, name="image")
    answer = tf.function(lambda image: {"scores": tf.zeros((tf.size(image), 3))}, input_signature=[spec])
    tf.saved_model.save(tf.Module(), str(tmp_path / "old"), signatures=answer)
    labels = np.arange(30) % 3
    judged = np.eye(3)[labels] * 0.6 + 0.2
    ours = judged if kind == "independent" else np.eye(3)[labels]
    samples = Samples((), labels, CLASSES, np.zeros((30, 1)), ours, ours, tmp_path, "validation images")
    monkeypatch.setattr(like, "predict_saved_model", lambda *arguments, **options: Prediction(judged, labels))
    if kind == "independent":
        assert not like.examine(tmp_path / "old", samples).logits
    else:
        with pytest.raises(ExportError, match="it judges each class independently, but the new model chooses"):
            like.examine(tmp_path / "old", samples)


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize("sent", ["0-255", "bgr-0-255", "unknown"])
def test_a_factor_does_not_show_the_order_of_channels(tmp_path, sent):
    """A model that scales bytes down is asked with both orders: RGB unless the other is clearly right."""
    import tensorflow as tf

    labels = np.arange(60) % 3
    pictures = np.random.default_rng(0).integers(20, 120, (60, 12, 12, 3)).astype(np.uint8)
    if sent != "unknown":
        pictures[np.arange(60), :, :, labels] += 100
    files = tuple(tf.io.encode_png(picture).numpy() for picture in pictures)
    rows = np.eye(3)[labels]
    samples = Samples(files, labels, CLASSES, pictures, rows, rows, tmp_path, "validation images")
    model = keras.Sequential([keras.Input((12, 12, 3)), layers.Rescaling(1 / 255), layers.GlobalAveragePooling2D()])
    model.add(layers.Dense(3, activation="softmax"))
    order = [2, 1, 0] if sent.startswith("bgr") else [0, 1, 2]
    model.layers[-1].set_weights([20 * np.eye(3)[order], np.zeros(3)])
    model.export(str(tmp_path / "old"), verbose=False)
    (tmp_path / "old" / "assets" / "labels.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    if sent == "unknown":
        with pytest.raises(ExportError, match=r"no better than guessing .*give --like-pixels"):
            like.examine(tmp_path / "old", samples)
        return
    found = like.examine(tmp_path / "old", samples)
    assert found.pixels == sent
    assert f"its clients send pixels {sent} (its first operations scale bytes down; {sent} gives 100.0 %" in found.note
    for place, name in enumerate(CLASSES):
        (tmp_path / "data" / name).mkdir(parents=True)
        for index in np.nonzero(labels == place)[0]:
            (tmp_path / "data" / name / f"{index}.png").write_bytes(files[index])
    scored = evaluate(tmp_path / "old", data=tmp_path / "data")
    assert "pixels 0-255 are assumed, because its first operations scale such values down" in scored.note
    own = {"data": tmp_path / "data", "pixels": "bgr-0-255"}
    for found in (evaluate(tmp_path / "old", **own), evaluate(tmp_path / "old", against=tmp_path / "old", **own)):
        assert (found.scores["all"]["accuracy"] == 1.0) == (sent == "bgr-0-255")
        assert "are assumed" not in found.note


@pytest.mark.one_backend(trains=True)
def test_confidence_alone_does_not_show_what_clients_send(tmp_path, pictures):
    """A network that is right on values of any size is surer on larger ones: nothing shows which its clients send."""
    import tensorflow as tf

    prototypes = np.stack([np.mean([draw(each, seed, 12) for seed in range(40)], axis=0) for each in CLASSES])
    prototypes = (prototypes - prototypes.mean(axis=(1, 2, 3), keepdims=True)).reshape(3, -1).astype("float32")
    prototypes /= np.linalg.norm(prototypes, axis=1, keepdims=True)

    def function(sent):
        flat = tf.reshape(sent - tf.reduce_mean(sent, axis=(1, 2, 3), keepdims=True), (-1, 432))
        return {"scores": tf.nn.softmax(3.0 * flat @ prototypes.T)}

    spec = tf.TensorSpec((None, 12, 12, 3), tf.float32, name="sent")
    tf.saved_model.save(tf.Module(), str(tmp_path / "old"), signatures=tf.function(function, input_signature=[spec]))
    labels = np.arange(60) % 3
    samples = samples_of(tmp_path, np.eye(3)[labels], labels)
    np.save(tmp_path / "pictures.npy", samples.pictures)
    right = evaluate(tmp_path / "old", data=pictures / "old", pixels="-1-1", classes=CLASSES).scores["all"]["accuracy"]
    assert right > 0.7
    with pytest.raises(ExportError, match=r"its answers do not show which \(.*-1-1.*\): give --like-pixels"):
        like.examine(tmp_path / "old", samples)
    assert like.examine(tmp_path / "old", samples, "-1-1").pixels == "-1-1"
