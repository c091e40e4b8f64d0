"""SavedModel for TensorFlow Serving: image bytes in, labels out, warmed up, loadable by TensorFlow alone.

The graph holds the functions that training decoded and prepared its pictures with (`graph.py`). No layer object, optimizer or
training function is in the file: a plain `tf.Module` owns the variables that the graph reads, each once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from kresume.errors import ExportError
from kresume.evaluation.loaded import Loaded
from kresume.evaluation.served import Prediction, predict_saved_model
from kresume.evaluation.signatures import DEFAULT, LABELS, Input, Output, Signature, read_raw, read_signatures
from kresume.exports import like, warmup
from kresume.exports.graph import Served
from kresume.exports.job import Job
from kresume.exports.samples import Samples
from kresume.images.inputs import to_input

IMAGES, EMBED = "predict_images", "embed"
WARM_BATCHES = (1, 4, 8)
WARM_BYTES = 100_000
"""Larger files are left out of the records where there are smaller ones: a server reads them all before it serves."""


def write(loaded: Loaded, directory: Path, job: Job) -> dict[str, Any]:
    """Writes a SavedModel with its assets and warm-up records.

    Args:
        loaded: the model, under the TensorFlow backend.
        directory: an empty folder.
        job: the options.

    Returns:
        `{"signatures": {...}, "labels": [...], "warmup": requests, "sent": convention, "logits": whether}`.

    Raises:
        ExportError: the signatures that came out are not those that were asked for.
        KresumeError: `--like` or `--embeddings` cannot be done with this model.
    """
    import tensorflow as tf

    card = loaded.card
    order = like.label_order(Path(job.like), card.classes) if job.like else card.classes
    top_k = len(order) if job.like else job.top_k  # the old model's own number is cut from all of them
    served = Served(
        loaded.model,
        card,
        loaded.loss.outputs,
        top_k,
        job.on_bad_image,
        order=order,
        sent=job.like_pixels,
        logits=job.like_logits,
    )
    wanted = like.signatures(Path(job.like), served) if job.like else signatures(served, job)
    functions = {name: _function(served, signature) for name, signature in wanted.items()}
    module = tf.Module()
    module.held = list({id(v): v for function in functions.values() for v in function.graph.variables}.values())
    labels = directory / f".{LABELS}"
    labels.mkdir()
    (labels / LABELS).write_text("".join(f"{name}\n" for name in served.order), encoding="utf-8")
    module.labels = tf.saved_model.Asset(str(labels / LABELS))
    tf.saved_model.save(module, str(directory), signatures=functions)
    (labels / LABELS).unlink()
    labels.rmdir()
    _check(directory, wanted, len(served.order))
    requests = _requests(wanted, served, job)
    warmup.write_warmup(directory / warmup.PLACE, requests)
    return {
        "signatures": {name: signature.as_dict() for name, signature in wanted.items()},
        "labels": list(served.order),
        "warmup": len(requests),
        "sent": served.sent,
        "logits": served.logits,
    }


def signatures(served: Served, job: Job) -> dict[str, Signature]:
    """The signatures of our own: `serving_default`, `predict_images`, and `embed` if it was asked for."""
    classes = len(served.order)
    outputs = (
        Output("class_index", "class_index", "int32", (None,)),
        Output("labels", "labels", "string", (None, served.top_k)),
        Output("scores", "scores", "float32", (None, classes)),
    )
    encoded = Input("image_bytes", "bytes", "string", (None,))
    error = Output("error", "error", "string", (None,))
    flagged = tuple(sorted((*outputs, error), key=lambda output: output.name))
    pictures = Input("images", "pictures", "uint8", (None, None, None, 3))
    result = {
        DEFAULT: Signature(DEFAULT, encoded, flagged if job.on_bad_image == "flag" else outputs),
        IMAGES: Signature(IMAGES, pictures, outputs),
    }
    if job.embeddings:
        embedding = Output("embedding", "embedding", "float32", (None, served.features()))
        result[EMBED] = Signature(EMBED, encoded, (embedding,))
    return result


def _function(served: Served, signature: Signature) -> Any:
    import tensorflow as tf

    spec = tf.TensorSpec(signature.input.shape, signature.input.dtype, name=signature.input.name)

    def answer(given: Any) -> dict[str, Any]:
        parts = (
            served.embed_bytes(given) if signature.output("embedding") else served.answers[signature.input.kind](given)
        )
        return {output.name: _shaped(output, parts, logits=served.logits) for output in signature.outputs}

    return tf.function(answer, input_signature=[spec], autograph=False).get_concrete_function()


def _shaped(output: Output, parts: dict[str, Any], *, logits: bool) -> Any:
    """One output as the signature wants it: of the best ones all, or the first alone where it is one per image."""
    import tensorflow as tf

    value = parts[output.kind]
    if output.kind == "scores" and output.shape[1:] in {(), (1,)}:
        # One number speaks for the second of two classes. Of two logits that is their difference.
        value = value[:, 1:] - value[:, :1] if logits else value[:, 1:]
    if len(output.shape) == 1 and len(value.shape) == 2:
        value = value[:, 0]
    elif len(output.shape) == 2 and output.shape[1] is not None and output.kind != "embedding":
        value = value[:, : output.shape[1]]
    value = value if output.dtype == "string" else tf.cast(value, output.dtype)
    return tf.ensure_shape(value, output.shape)


def _check(directory: Path, wanted: dict[str, Signature], classes: int) -> None:
    """What was written says the names, dtypes and shapes that were wanted."""
    raw = read_raw(directory)
    found = read_signatures(directory, classes)
    for name, signature in wanted.items():
        if name not in found or found[name].as_dict() != signature.as_dict():
            raise ExportError(
                f"the signature {name} cannot be written as {signature.as_dict()}: TensorFlow made {raw.get(name)} of it"
            )


def _requests(wanted: dict[str, Signature], served: Served, job: Job) -> list[Any]:
    """Real requests for every signature: files in several batch sizes, of arrays (which are larger) one picture."""
    import tensorflow as tf

    contents = sorted((Path(file).read_bytes() for file in job.files), key=len)
    contents = [content for content in contents if len(content) <= WARM_BYTES] or contents[:1]
    pictures = np.load(job.pictures)[:1]
    requests: list[Any] = []
    for name, signature in wanted.items():
        inputs: list[Any]
        if signature.input.kind == "bytes":
            inputs = [tf.constant((contents * size)[:size]) for size in WARM_BATCHES]
        else:
            sent = "0-255" if signature.input.kind == "pictures" else served.sent
            to_sent = to_input(sent, served.layout_of(signature.input.shape))
            inputs = [tf.cast(to_sent(pictures), signature.input.dtype)]
        requests += [warmup.predict_request(job.name, name, {signature.input.name: given}) for given in inputs]
    return requests


def predict(directory: Path, facts: dict[str, Any], samples: Samples) -> Prediction:
    """Answers the samples by TensorFlow alone, and feeds it the warm-up records that it ships."""
    folder = directory
    signature = read_signatures(folder, len(facts["labels"])).get(DEFAULT)
    if signature is None:
        raise ExportError(f"{folder} has no signature {DEFAULT}")
    request = {"warmup": {"module": str(Path(warmup.__file__)), "records": str(folder / warmup.PLACE)}}
    prediction = predict_saved_model(
        folder, signature, facts["labels"], samples.classes, samples.sent(signature.input, facts["sent"]), request,
        single="binary-logits" if facts["logits"] else "binary",
    )  # fmt: skip
    if prediction.facts["warmed"] != facts["warmup"]:
        raise ExportError(f"{folder}: {prediction.facts['warmed']} of {facts['warmup']} warm-up records were read back")
    return prediction
