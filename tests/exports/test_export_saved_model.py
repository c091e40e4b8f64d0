"""Tests SavedModels: image bytes in, TensorFlow alone, averages, decoding, labels, warm-up."""

import io
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from kresume import runs
from kresume.checkpoints.read import read_checkpoint
from kresume.errors import CheckpointError, ExportError, UsageError
from kresume.evaluation.evaluate import evaluate
from kresume.evaluation.served import Prediction
from kresume.exports import export as story
from kresume.exports import graph, like, saved_model, warmup
from kresume.exports.export import export
from kresume.exports.samples import Samples
from kresume.exports.target import prune
from kresume.images.decode import decode
from kresume.reports.lineage import lineage
from kresume.runtimes.signatures import read_signatures, understand
from kresume.storage.atomic import sha256_of_file
from kresume.values.decode_spec import DecodeSpec
from tests.helpers import forking
from tests.helpers.gifs import gif
from tests.helpers.pictures import CLASSES, draw
from tests.helpers.runs import TINY, run_training

pytestmark = pytest.mark.optimized_graphs

MODEL = """
import keras

@keras.saving.register_keras_serializable("exports")
class Scale(keras.layers.Layer):
    def build(self, shape):
        self.scale = self.add_weight(shape=(1,), initializer="ones")

    def call(self, inputs):
        return inputs * self.scale

def build(num_classes, image_size):
    inputs = keras.Input((*image_size, 3))
    x = keras.layers.RandomFlip()(inputs)
    x = keras.layers.Rescaling(1 / 255)(x)
    x = keras.layers.GaussianNoise(0.3)(x)
    x = keras.layers.Conv2D(4, 3, strides=2, activation="gelu")(x)
    x = Scale()(keras.layers.BatchNormalization()(x))
    x = keras.layers.Dropout(0.5)(keras.layers.Flatten()(x))
    return keras.Model(inputs, keras.layers.Dense(num_classes, activation="softmax")(x))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory, pictures):
    """Exports a run with a custom layer, augmentation in the model and EMA as version 1, every option on."""
    folder = tmp_path_factory.mktemp("exports")
    code = folder / "mymodel.py"
    code.write_text(MODEL)
    run_training(
        data=[str(pictures / "old")],
        val=[str(pictures / "val")],
        model=f"{code}:build",
        ema=0.9,
        out=str(folder / "1-shapes"),
        **{**TINY, "image_size": "12", "lr": 0.05},
    )
    run = runs.open_run(folder / "1-shapes")
    result = export(run, folder / "serving" / "shapes", embeddings=True, top_k=2)
    return folder, run, result


def load(path):
    """Loads the signatures of a SavedModel."""
    import tensorflow as tf

    model = tf.saved_model.load(str(path))

    def answering(function):
        return lambda **inputs: {name: value.numpy() for name, value in function(**inputs).items()}

    return {name: answering(function) for name, function in model.signatures.items()}, model


@pytest.fixture(scope="module")
def served(place):
    """Returns version 1's signatures, and the loaded object that keeps them alive."""
    signatures, model = load(place[2].path)
    assert model is not None
    return signatures, model


def encoded(seed=500, label="circle", kind="PNG", size=31, **options):
    """Encodes a picture as a file's bytes."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(draw(label, seed, size)).save(buffer, kind, **options)
    return buffer.getvalue()


def batch(*contents):
    """Converts bytes to the input of the signature."""
    import tensorflow as tf

    return tf.constant(list(contents))


def test_the_export_is_the_model_with_its_averages(place, served):
    """The export's scores are those of plain Keras on model.keras, which holds the averages.

    They are not those of the raw weights.
    """
    import keras

    _, run, result = place
    assert result.parity.holds
    assert result.parity.agreement == 1.0
    assert result.record["source"]["averages"] is True
    picture = encoded()
    got = served[0]["serving_default"](image_bytes=batch(picture))["scores"]
    values = decode(picture, DecodeSpec(12, 12))[None].astype(np.float32)
    expected = np.asarray(keras.saving.load_model(run.model).predict(values, verbose=0))
    np.testing.assert_allclose(got, expected, atol=2e-6)
    raw = keras.saving.load_model(run.model)
    from kresume.checkpoints.read import read_checkpoint

    arrays = read_checkpoint(run.path).arrays
    for index, variable in enumerate(raw.trainable_variables):
        variable.assign(np.array(arrays[f"trainable/{index}"]))
    assert np.abs(np.asarray(raw.predict(values, verbose=0)) - got).max() > 1e-4


def test_augmentation_is_off(served):
    """Two calls on one picture give equal bits, though the model has random flips and noise."""
    one = served[0]["serving_default"](image_bytes=batch(encoded()))["scores"]
    two = served[0]["serving_default"](image_bytes=batch(encoded()))["scores"]
    assert one.tobytes() == two.tobytes()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "GIF", "WEBP", "turned"])
@pytest.mark.one_backend
def test_bytes_are_decoded_as_in_training(served, kind):
    """Every format gives the scores of the pixels that training decodes, EXIF orientation included."""
    options = {}
    if kind == "turned":
        from PIL import Image

        exif = Image.Exif()
        exif[0x0112] = 6
        kind, options = "JPEG", {"exif": exif.tobytes()}
    picture = encoded(kind=kind, label="stripes", **options)
    pixels = decode(picture, DecodeSpec(12, 12))
    by_bytes = served[0]["serving_default"](image_bytes=batch(picture))
    by_pixels = served[0]["predict_images"](images=pixels[None])
    assert by_bytes["scores"].tobytes() == by_pixels["scores"].tobytes()


@pytest.mark.one_backend(trains=True)
def test_labels_and_index_follow_the_scores(served):
    """Labels are the best classes in descending order of score; any batch size works.

    Features are those before the head.
    """
    contents = [encoded(seed, label) for seed, label in enumerate(("circle", "square", "stripes", "circle", "square"))]
    answer = served[0]["serving_default"](image_bytes=batch(*contents))
    assert answer["scores"].shape == (5, 3)
    np.testing.assert_allclose(answer["scores"].sum(axis=-1), 1, rtol=1e-5)
    order = np.argsort(-answer["scores"], axis=-1, kind="stable")[:, :2]
    assert [[label.decode() for label in row] for row in answer["labels"]] == [
        [CLASSES[i] for i in row] for row in order
    ]
    np.testing.assert_array_equal(answer["class_index"], order[:, 0])
    embedded = served[0]["embed"](image_bytes=batch(*contents))["embedding"]
    assert embedded.shape == (5, 100)
    assert np.ptp(embedded) > 0


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        (b"hello, this is text", "not a JPEG, PNG, GIF, BMP or WebP file"),
        (encoded(kind="JPEG")[:300], "truncated, damaged"),
        (encoded()[:-30], "truncated, damaged"),
        (encoded()[:300] + bytes(8) + encoded()[308:], "truncated, damaged"),
        (gif((31, 31), [(9, 9, 20, 20)]), "a GIF whose first frame is not its whole screen"),
        (b"", "no bytes"),
    ],
)
@pytest.mark.one_backend
def test_a_bad_image_is_named(served, bad, problem):
    """A bad image is an error with its index and reason, and the next request is answered."""
    import tensorflow as tf

    with pytest.raises(tf.errors.InvalidArgumentError, match=rf"image_bytes\[1\]: .*{problem}"):
        served[0]["serving_default"](image_bytes=batch(encoded(), bad, encoded()))
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"image_bytes(\[0\]: |_0_cannot_be_decoded)"):
        served[0]["embed"](image_bytes=batch(bad))
    assert served[0]["serving_default"](image_bytes=batch(encoded()))["class_index"].shape == (1,)


@pytest.mark.one_backend
def test_trailing_bytes_do_not_make_a_picture_bad(served):
    """Bytes after the end of a JPEG, as cameras append them, do not make it a bad image."""
    clean, trailing = encoded(kind="JPEG"), encoded(kind="JPEG") + b"\0" * 20
    answer = served[0]["serving_default"](image_bytes=batch(clean, trailing))["scores"]
    assert answer[0].tobytes() == answer[1].tobytes()


@pytest.mark.one_backend(trains=True)
def test_the_warm_up_records_are_requests(place, served):
    """The shipped warm-up file holds a request for every signature, and the signature answers it."""
    result = place[2]
    requests = list(warmup.read_warmup(Path(result.path) / warmup.PATH))
    assert {request.model_spec.signature_name for request in requests} == {"serving_default", "predict_images", "embed"}
    assert {request.model_spec.name for request in requests} == {"shapes"}
    assert len(requests) == result.record["warmup"]
    for request in requests:
        answer = warmup.feed(request, served[1].signatures)
        assert all(len(value) == len(next(iter(answer.values()))) for value in answer.values())


@pytest.mark.one_backend
def test_the_warm_up_bytes_are_those_of_the_api_package(request, tmp_path):
    """Our four declared messages write the same bytes as tensorflow-serving-api."""
    import tensorflow as tf

    golden = (request.config.rootpath / "tests/golden/warmup/prediction_log.bin").read_bytes()
    made = warmup.predict_request("flowers", "serving_default", {"image_bytes": tf.constant([b"abc", b"de\0f"])})
    warmup.write_warmup(tmp_path / "records", [made])
    assert [record.numpy() for record in tf.data.TFRecordDataset(str(tmp_path / "records"))] == [golden]


@pytest.mark.one_backend(trains=True)
def test_the_record_and_the_notes_are_true(place):
    """export.json holds the digests of every file; notes, configs and the run's log name the export.

    The notes are SERVING.md.
    """
    folder, run, result = place
    version = Path(result.path)
    assert version == folder / "serving" / "shapes" / "1"
    record = json.loads((version / "export.json").read_text())
    for name, facts in record["files"].items():
        assert sha256_of_file(version / name) == facts["sha256"], name
    assert (version / "assets" / "labels.txt").read_text().splitlines() == list(CLASSES)
    assert record["source"]["manifest"] == run.record.as_dict()["manifest"]
    notes = (version.parent / "SERVING.md").read_text()
    for config in ("models.config", "batching.config"):
        assert (version.parent / config).read_text() in notes
        assert config in str(result)
    assert 'base_path: "/models/shapes"' in str(result)
    exported = lineage(run.path).generations[0].exports
    assert f"saved-model {version}" in exported
    assert "saved-model" in str(lineage(folder))
    assert not [path for path in version.parent.iterdir() if path.name.startswith(".tmp")]


@pytest.mark.one_backend(trains=True)
def test_saved_model_cli_runs_it(place, tmp_path):
    """TensorFlow's saved_model_cli runs the signature on a file's bytes."""
    picture = encoded(kind="JPEG")
    np.save(tmp_path / "bytes.npy", np.array([picture]))
    tool = [sys.executable, "-m", "tensorflow.python.tools.saved_model_cli", "run", "--dir", place[2].path]
    options = ["--tag_set", "serve", "--signature_def", "serving_default", "--outdir", str(tmp_path)]
    inputs = ["--inputs", f"image_bytes={tmp_path / 'bytes.npy'}"]
    forking.run([*tool, *options, *inputs], check=True)
    assert np.load(tmp_path / "scores.npy").shape == (1, 3)


@pytest.mark.one_backend(trains=True)
def test_an_export_is_a_checkpoint_that_says_its_classes_and_pixels(place, tmp_path):
    """The newest version of a model server's folder is read; what another program writes as `export.json` says nothing."""
    _, run, result = place
    for number in ("9", "10"):
        shutil.copytree(result.path, tmp_path / "server" / number)
    for path in (tmp_path / "server", tmp_path / "server" / "10"):
        state = read_checkpoint(path)
        assert state.source == str(tmp_path / "server" / "10")
        assert (state.card.classes, state.card.pixels) == (run.record.card.classes, run.record.card.pixels)
        assert state.card.spec == run.record.card.spec
    copy = tmp_path / "server" / "9"
    (copy / "export.json").write_text(json.dumps({"card": {"classes": 3}}))
    assert read_checkpoint(copy).card is None


@pytest.mark.one_backend(trains=True)
def test_two_versions_stand_side_by_side(place, pictures):
    """Another model under other labels becomes version 2; each version keeps its label order.

    A bad image can be flagged instead of refused.
    """
    folder, run, _ = place
    reversed_classes = CLASSES[::-1]
    bare = folder / "bare.keras"
    with zipfile.ZipFile(run.model) as source, zipfile.ZipFile(bare, "w") as target:
        for name in set(source.namelist()) - {"kresume.json"}:
            target.writestr(name, source.read(name))
    with pytest.raises(UsageError, match="another order would make right answers wrong"):
        export(run.model, folder / "wrong", classes=reversed_classes, imports=[str(folder / "mymodel.py")])
    second = export(
        bare,
        folder / "serving" / "shapes",
        classes=reversed_classes,
        imports=[str(folder / "mymodel.py")],
        data=pictures / "val",
        on_bad_image="flag",
    )
    assert Path(second.path).name == "2"
    (one, _one), (two, _two) = load(folder / "serving" / "shapes" / "1"), load(second.path)
    picture = encoded()
    first_answer = one["serving_default"](image_bytes=batch(picture))
    answer = two["serving_default"](image_bytes=batch(b"rubbish", picture, encoded(kind="JPEG")[:200]))
    np.testing.assert_allclose(answer["scores"][1], first_answer["scores"][0], atol=2e-6)
    place_of = int(first_answer["class_index"][0])
    assert first_answer["labels"][0, 0].decode() == CLASSES[place_of]
    assert answer["labels"][1, 0].decode() == reversed_classes[place_of]
    np.testing.assert_array_equal(answer["class_index"], [-1, place_of, -1])
    assert answer["error"][0].decode() == graph.UNKNOWN
    assert answer["error"][1] == b""
    assert answer["error"][2].decode() == graph.BROKEN
    # The folder means its newest version; both versions predict the same images.
    evaluation = evaluate(run, data=pictures / "val", against=folder / "serving" / "shapes" / "1")
    assert evaluation.against is not None
    assert evaluation.scores["all"]["accuracy"] == evaluation.against.scores["all"]["accuracy"]
    assert evaluation.scores["all"]["loss"] == pytest.approx(evaluation.against.scores["all"]["loss"], abs=1e-5)
    assert "+0.0 points (" in str(evaluation)


def save_old(folder, module, function, name, labels):
    """Saves a model of another program whose input, pictures as floats, has this name; returns its folder."""
    import tensorflow as tf

    spec = tf.TensorSpec((None, 12, 12, 3), tf.float32, name=name)
    tf.saved_model.save(module, str(folder), signatures=tf.function(function, input_signature=[spec]))
    if labels:
        (folder / "assets" / "labels.txt").write_text("".join(f"{label}\n" for label in labels))
    return folder


def old_model(folder, labels, outputs=3):
    """Writes a SavedModel of another program.

    Its input is floats under Keras's own name, its output one row of scores.
    """
    import tensorflow as tf

    weights = tf.Variable(tf.random.stateless_normal((432, outputs), (1, 2)))
    module = tf.Module()
    module.weights = weights

    def function(values):
        return {"output_0": tf.nn.softmax(tf.reshape(values, (-1, 432)) @ weights / 1000)}

    return save_old(folder, module, function, "keras_tensor", labels)


@pytest.mark.one_backend(trains=True)
def test_like_keeps_what_clients_know(place, pictures, tmp_path):
    """`like` keeps the old model's input and output names, dtypes and label order."""
    folder, run, _ = place
    old = old_model(tmp_path / "old", ("stripes", "circle", "square"))
    with pytest.raises(ExportError, match=r"no better than guessing .*like_pixels=|do not show which .*like_pixels="):
        export(run, tmp_path / "refused" / "shapes", like=old)  # its weights are noise
    assert not (tmp_path / "refused" / "shapes" / "1").exists()
    result = export(run, tmp_path / "serving" / "shapes", like=old, like_pixels="0-255")
    assert {name: s.as_dict() for name, s in read_signatures(Path(result.path)).items()} == {
        name: s.as_dict() for name, s in read_signatures(old, 3).items()
    }
    assert (Path(result.path) / "assets" / "labels.txt").read_text().split() == ["stripes", "circle", "square"]
    new, _model = load(result.path)
    one, _one = load(folder / "serving" / "shapes" / "1")
    picture = encoded()
    values = decode(picture, DecodeSpec(12, 12))[None].astype(np.float32)
    ours = one["serving_default"](image_bytes=batch(picture))["scores"]
    np.testing.assert_allclose(new["serving_default"](keras_tensor=values)["output_0"], ours[:, [2, 0, 1]], atol=2e-6)
    assert "its clients send pixels 0-255 (like_pixels='0-255')" in str(result)
    with pytest.raises(ExportError, match="it adds circle; it lacks disc"):
        like.label_order(old_model(tmp_path / "other", ("disc", "square", "stripes")), CLASSES)


@pytest.mark.one_backend
def test_an_old_order_that_nobody_names_is_found_out(tmp_path, quiet, monkeypatch):
    """The label order of a model without labels is tested by running it.

    Predictions that another order explains are refused with that order; noise is refused, too.
    """
    import tensorflow as tf

    module = tf.Module()
    spec = tf.TensorSpec((None,), tf.string, name="image")
    answer = tf.function(lambda image: {"scores": tf.zeros((tf.size(image), 3)) + 1 / 3}, input_signature=[spec])
    tf.saved_model.save(module, str(tmp_path / "old"), signatures=answer)
    labels = np.arange(30) % 3
    outputs = np.eye(3)[labels]
    samples = Samples((), labels, CLASSES, np.zeros((30, 1)), outputs, outputs, tmp_path, "validation images")

    def looked(answers):
        monkeypatch.setattr(like, "predict_saved_model", lambda *arguments, **options: Prediction(None, answers))
        return like.examine(tmp_path / "old", samples)

    with pytest.raises(
        ExportError,
        match=r"0 % in the order circle, square, stripes, and for 100 % in the order stripes, circle, square",
    ):
        looked((labels + 1) % 3)
    with pytest.raises(ExportError, match=r"no better than guessing .*write the order to .*labels.txt"):
        looked(np.random.default_rng(0).permutation(labels))
    assert "it is right on 100 % of 30 validation images" in looked(labels).note


@pytest.fixture(scope="module")
def taught(tmp_path_factory, pictures):
    """Trains a run until it has learned its pictures; the old models of the tests wrap it."""
    folder = tmp_path_factory.mktemp("taught")
    options = {**TINY, "image_size": "12", "epochs": 12, "lr": 0.02, "augment": "none"}
    run_training(data=[str(pictures / "old")], val=[str(pictures / "val")], out=str(folder / "1-shapes"), **options)
    return folder


@pytest.fixture(scope="module")
def taught_export(taught):
    """Returns the first export of the run that has learned its pictures."""
    return export(taught / "1-shapes", taught / "first").path


def old_model_of_numbers(path, inner, *, logits, named):
    """Writes the model that clients know: pixels 0-1, perhaps another order of the classes, perhaps logits."""
    import tensorflow as tf

    order = [2, 0, 1] if named else [0, 1, 2]
    module = tf.Module()
    module.inner = tf.saved_model.load(inner)

    def function(values):
        images = tf.cast(tf.round(tf.clip_by_value(values, 0.0, 1.0) * 255.0), tf.uint8)
        shares = tf.gather(module.inner.signatures["predict_images"](images=images)["scores"], order, axis=1)
        # On values outside 0-1 it returns chance, as a network would that does not saturate as this one does.
        known = tf.reduce_all((values >= 0.0) & (values <= 1.0), axis=(1, 2, 3))
        shares = tf.where(known[:, None], shares, 1 / 3)
        return {"answer": tf.math.log(shares) + 3.0 if logits else shares}

    return save_old(path, module, function, "sent", [CLASSES[place] for place in order] if named else ())


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize(("logits", "named"), [(True, False), (False, True)])  # both at once: the next test
def test_clients_that_send_numbers_get_the_old_answers(taught, taught_export, tmp_path, logits, named):
    """Clients that send numbers get the old predictions from a new model with another convention.

    The old model expected 0-1, had another class order and perhaps returned logits; the new one expects 0-255.
    """
    old = old_model_of_numbers(tmp_path / "old", taught_export, logits=logits, named=named)
    result = export(taught / "1-shapes", tmp_path / "serving" / "shapes", like=old)
    assert "its clients send pixels 0-1 (" in str(result)
    assert ("its scores are logits" in str(result)) == logits
    new, _new = load(result.path)
    before, _old = load(old)
    stack = np.stack([draw(label, 900 + seed, 12) for seed in range(4) for label in CLASSES]).astype("float32") / 255
    answers = [np.asarray(each["serving_default"](sent=stack)["answer"]) for each in (before, new)]
    shares = [np.exp(rows) / np.exp(rows).sum(axis=1, keepdims=True) if logits else rows for rows in answers]
    np.testing.assert_allclose(shares[0], shares[1], atol=2e-5)
    assert set(shares[0].argmax(axis=1)) == {0, 1, 2}


@pytest.mark.one_backend(trains=True)
def test_what_clients_get_is_scored_in_the_order_that_is_served(taught, taught_export, pictures, tmp_path):
    """An export of other labels is scored as its clients see it, as itself and as the model of `against`."""
    old = old_model_of_numbers(tmp_path / "old", taught_export, logits=True, named=True)
    result = export(taught / "1-shapes", tmp_path / "serving" / "shapes", like=old)
    scored = evaluate(result.path, data=pictures / "val")
    own = evaluate(taught / "1-shapes", data=pictures / "val", against=result.path)
    assert scored.scores["all"]["accuracy"] == own.scores["all"]["accuracy"] > 0.8
    again = export(taught / "1-shapes", tmp_path / "serving" / "again", like=result.path)
    assert (Path(again.path) / "assets" / "labels.txt").read_text() == (
        Path(result.path) / "assets" / "labels.txt"
    ).read_text()


@pytest.mark.one_backend(trains=True)
def test_pixels_for_the_other_are_not_for_the_run(taught, pictures, tmp_path):
    """With two models, `--pixels` applies to the one that does not record its convention.

    For a model that records it, another value is an error.
    """
    old = old_model(tmp_path / "old", CLASSES)
    alone = evaluate(taught / "1-shapes", data=pictures / "val")
    compared = evaluate(taught / "1-shapes", data=pictures / "val", against=old, pixels="0-1")
    assert compared.scores == alone.scores
    with pytest.raises(UsageError, match="records that it expects 0-255: leave pixels='0-1' out"):
        evaluate(taught / "1-shapes", data=pictures / "val", pixels="0-1")


@pytest.mark.one_backend(trains=True)
def test_pictures_that_tensorflow_cannot_decode_verify_and_warm_up(taught, tmp_path, capsys):
    """Images that TensorFlow cannot decode verify an export, and warm-up requests hold decodable bytes.

    The images are TIFF, animated WebP and GIFs of frames smaller than their screens.
    """
    from PIL import Image

    from kresume.reporter import Reporter

    for label in CLASSES:
        (tmp_path / "data" / label).mkdir(parents=True)
        frames = [Image.fromarray(draw(label, 700 + seed, 30)) for seed in range(3)]
        frames[0].save(tmp_path / "data" / label / "a.tiff")
        frames[1].save(tmp_path / "data" / label / "b.webp", save_all=True, append_images=frames[2:])
        (tmp_path / "data" / label / "c.gif").write_bytes(gif((30 + len(label), 31), [(9, 9, 20, 20)]))
    result = export(taught / "1-shapes", tmp_path / "shapes", data=tmp_path / "data", reporter=Reporter())
    assert (result.parity.images, result.parity.failed, result.parity.agreement) == (9, 0, 1.0)
    assert "9 of 9 pictures to compare on are sent as PNG" in capsys.readouterr().err
    requests = list(warmup.read_warmup(Path(result.path) / warmup.PATH))
    sent = [content for each in requests for name, value in each.inputs.items() for content in value.string_val]
    assert sent
    assert all(content.startswith(b"\x89PNG") for content in sent)


@pytest.mark.one_backend(trains=True)
def test_alpha_is_cut_off_a_webp_picture_too(taught, tmp_path):
    """Alpha is dropped from a WebP picture when trained on and when served, alone or in a batch."""
    from PIL import Image

    picture = draw("circle", 77, 30)
    rgba = np.dstack([picture, np.full(picture.shape[:2], 128, np.uint8)])
    files = []
    for array in (picture, rgba):
        buffer = io.BytesIO()
        Image.fromarray(array).save(buffer, "WEBP", lossless=True, exact=True)
        files.append(buffer.getvalue())
    assert decode(files[0], DecodeSpec(12, 12)).tobytes() == decode(files[1], DecodeSpec(12, 12)).tobytes()
    for on_bad_image in ("error", "flag"):
        result = export(taught / "1-shapes", tmp_path / on_bad_image, on_bad_image=on_bad_image, name="shapes")
        signatures, _model = load(result.path)
        both = signatures["serving_default"](image_bytes=batch(*files))["scores"]
        np.testing.assert_array_equal(both[0], both[1])
        np.testing.assert_allclose(
            signatures["serving_default"](image_bytes=batch(files[1]))["scores"][0], both[1], atol=1e-6
        )


@pytest.mark.parametrize(
    ("inputs", "outputs", "reason"),
    [
        ({"a": ("string", (None,)), "b": ("string", (None,))}, {}, "2 inputs"),
        ({"a": ("int64", (None, 4))}, {}, r"int64 \(any, 4\)"),
        ({"a": ("string", (None,))}, {"y": ("float32", (None, 7))}, "7 numbers per image, the model has 3 classes"),
        ({"a": ("string", (None,))}, {"y": ("complex64", (None, 3))}, "neither scores nor labels"),
    ],
)
@pytest.mark.one_backend
def test_a_signature_that_is_no_classifiers_is_refused(inputs, outputs, reason):
    """A signature that is not a classifier's is refused with its names and shapes."""
    with pytest.raises(ValueError, match=reason):
        understand("serving_default", inputs, outputs, 3)


@pytest.mark.one_backend(trains=True)
def test_what_differs_does_not_appear(place, tmp_path, monkeypatch):
    """An export whose runtime differs exits with 1 and leaves no version and no other files."""
    _, run, _ = place

    def wrong(folder, facts, samples):
        scores = np.roll(samples.reference, 1, axis=-1)
        return Prediction(scores, scores.argmax(axis=-1))

    monkeypatch.setattr(saved_model, "predict", wrong)
    monkeypatch.setattr(saved_model, "write", lambda *arguments: {"signatures": {}})
    monkeypatch.setattr(story, "write_by_tensorflow", lambda *arguments, **options: {"signatures": {}})
    with pytest.raises(ExportError, match=r"a score differs .* pictures get another class; nothing was written to"):
        export(run, tmp_path / "serving")
    assert list((tmp_path / "serving").iterdir()) == []


@pytest.mark.one_backend(trains=True)
def test_destinations(place, tmp_path):
    """An existing version, a run as target, and options of another format are usage errors before loading."""
    folder, run, _ = place
    with pytest.raises(UsageError, match="has a version 1 already"):
        export(run, folder / "serving" / "shapes", version=1)
    with pytest.raises(UsageError, match="is a run"):
        export(run, run.path)
    with pytest.raises(UsageError, match="quantize='int8' does not apply to format='saved-model'"):
        export(run, tmp_path / "x", quantize="int8")
    old = folder / "serving" / "shapes" / "1"
    for asked in ({"top_k": 2}, {"embeddings": True}):
        with pytest.raises(UsageError, match=r"keeps the signatures of the old model, so .* has no place"):
            export(run, tmp_path / "x", like=old, **asked)
    with pytest.raises(UsageError, match="has none named `error`: leave on_bad_image='flag' out"):
        export(run, tmp_path / "x", like=old, on_bad_image="flag")
    with pytest.raises(UsageError, match="version= and prune_keep= apply to saved-model only"):
        export(run, tmp_path / "x", format="keras", version=3)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(UsageError, match="exists already"):
        export(run, tmp_path / "full", format="keras")


@pytest.mark.one_backend
def test_pruning_keeps_the_newest(tmp_path):
    """Pruning orders versions by number, and keeps the new version and other folders."""
    for name in ("9", "10", "11", "notes"):
        (tmp_path / name).mkdir()
    assert prune(tmp_path, 2, tmp_path / "11") == [9]
    assert prune(tmp_path, 1, tmp_path / "10") == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["10", "11", "notes"]


@pytest.mark.one_backend
def test_a_model_that_needs_keras_does_not_pass(tmp_path):
    """The process that checks an export cannot import Keras, JAX or kresume."""
    from kresume.runtimes import process

    script = (process.SCRIPTS / "saved_model.py").read_text()
    for name in ("keras", "jax", "kresume"):
        done = subprocess.run(
            [sys.executable, "-P", "-c", f"{script.partition('import numpy')[0]}\nimport {name}"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert f"import of {name} halted" in done.stderr
    with pytest.raises(CheckpointError, match="cannot be run by its own runtime"):
        process.run_apart("saved_model", {"path": str(tmp_path), "signature": "x", "input": "y", "files": []})


@pytest.mark.one_backend(trains=True)
def test_fresh_processes_agree(place, tmp_path, monkeypatch):
    """An export is written and verified by processes that import everything anew, not by forks as in other tests."""
    monkeypatch.setattr(subprocess, "run", forking.FRESH)
    assert export(place[1], tmp_path / "out").parity.holds


@pytest.mark.one_backend
def test_nothing_heavy_is_imported_before_the_backend_is_chosen():
    """The export module imports no framework before the backend is chosen.

    A run trained on JAX is exported from JAX, and usage errors are quick.
    """
    script = "import sys, kresume.exports.export; print(sorted({'keras', 'tensorflow', 'jax'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
@pytest.mark.sample("mixed_float16")
def test_a_grown_head_is_exported_with_its_new_class(tmp_path, pictures, policy):
    """A head grown to a fourth class exports four labels, and the old rows predict as before.

    This holds in float16, too.
    """
    import keras

    from kresume.models import build as models
    from kresume.models import save
    from kresume.values.card import Card

    before_policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        small, grown = models.convnet(3, (12, 12)), models.convnet(4, (12, 12))
    finally:
        keras.config.set_dtype_policy(before_policy)
    for old, new in zip(small.weights, grown.weights, strict=True):
        array = np.zeros(new.shape, "float32")
        array[tuple(slice(size) for size in old.shape)] = np.asarray(keras.ops.convert_to_numpy(old))
        new.assign(array.astype(new.dtype))
    grown.compile(keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy", metrics=["accuracy"])
    names = (*CLASSES, "triangle")
    path = tmp_path / "grown.keras"
    save.save_model(grown, path, Card(names, (12, 12), "0-255", "stretch", "area"), 1e-3, {"step": 0, "peak": 1e-3})
    result = export(path, tmp_path / "serving", data=pictures / "val")
    signatures, model = load(result.path)
    assert model is not None
    picture = encoded()
    answer = signatures["serving_default"](image_bytes=batch(picture))
    assert {label.decode() for label in answer["labels"][0]} == set(names)
    assert answer["scores"].dtype == np.float32
    three = small.predict(decode(picture, DecodeSpec(12, 12))[None].astype("float32"), verbose=0)[0].astype("float64")
    four = answer["scores"][0, :3].astype("float64")
    np.testing.assert_allclose(four / four.sum(), three, atol=5e-3 if policy == "mixed_float16" else 1e-5)
