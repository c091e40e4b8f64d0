"""Writes a SavedModel for TensorFlow Serving: image bytes in, labels out, with warm-up records.

TensorFlow alone can load it. The graph holds the functions that decoded and prepared the images in training
(`graph.py`). The file has no layer object, optimizer or training function: a plain `tf.Module` owns each variable that
the graph reads, once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from kresume.errors import ExportError, UsageError
from kresume.evaluation.served import Prediction, predict_saved_model
from kresume.exports import like, warmup
from kresume.exports.graph import Served
from kresume.exports.job import Job
from kresume.exports.samples import Samples
from kresume.images.inputs import to_input
from kresume.models.load import Loaded
from kresume.runtimes.signatures import DEFAULT, LABELS, Input, Output, Signature, read_raw, read_signatures
from kresume.spelling import option
from kresume.tasks.binary import BINARY, graph_single
from kresume.tasks.task import Head

IMAGES, EMBED = "predict_images", "embed"
WARM_BATCHES = (1, 4, 8)
WARM_BYTES = 100_000
"""Warm-up records exclude larger files if there are smaller ones: a server reads all records before it serves."""


def write(loaded: Loaded, directory: Path, job: Job) -> dict[str, Any]:
    """Writes a SavedModel with its assets and warm-up records.

    Args:
        loaded: the model, under the TensorFlow backend.
        directory: an empty folder.
        job: the options.

    Returns:
        `{"signatures": {...}, "labels": [...], "warmup": requests, "sent": convention, "logits": bool}`.

    Raises:
        ExportError: the written signatures differ from the requested ones.
        KresumeError: `--like`, `--embeddings` or `--on-bad-image flag` is impossible with this model.
    """
    import tensorflow as tf

    card = loaded.card
    order = like.label_order(Path(job.like), card.classes) if job.like else card.classes
    top_k = len(order) if job.like else job.top_k  # the old model's own number is sliced from all of them
    served = Served(
        loaded.model,
        card,
        loaded.loss.head,
        top_k,
        job.on_bad_image,
        order=order,
        sent=job.like_pixels,
        logits=job.like_logits,
    )
    wanted = like.signatures(Path(job.like), served) if job.like else signatures(served, job)
    if job.like and job.on_bad_image == "flag" and not any(each.output("error") for each in wanted.values()):
        raise UsageError(
            f"{option('like', job.like)} keeps the outputs of the old model, which has none named `error`: leave "
            f"{option('on-bad-image', 'flag')} out, so that a bad image fails its request"
        )
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
    warmup.write_warmup(directory / warmup.PATH, requests)
    return {
        "signatures": {name: signature.as_dict() for name, signature in wanted.items()},
        "labels": list(served.order),
        "warmup": len(requests),
        "sent": served.sent,
        "logits": served.logits,
    }


def signatures(served: Served, job: Job) -> dict[str, Signature]:
    """Returns kresume's own signatures: `serving_default`, `predict_images`, and `embed` if requested."""
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
    """Slices and casts an output to the shape and dtype of the signature."""
    import tensorflow as tf

    value = parts[output.kind]
    if output.kind == "scores" and output.shape[1:] in {(), (1,)}:
        value = graph_single(value, from_logits=logits)
    if len(output.shape) == 1 and len(value.shape) == 2:
        value = value[:, 0]
    elif len(output.shape) == 2 and output.shape[1] is not None and output.kind != "embedding":
        value = value[:, : output.shape[1]]
    value = value if output.dtype == "string" else tf.cast(value, output.dtype)
    return tf.ensure_shape(value, output.shape)


def _check(directory: Path, wanted: dict[str, Signature], classes: int) -> None:
    """Checks that the written names, dtypes and shapes are the requested ones."""
    raw = read_raw(directory)
    found = read_signatures(directory, classes)
    for name, signature in wanted.items():
        if name not in found or found[name].as_dict() != signature.as_dict():
            raise ExportError(
                f"the signature {name} cannot be written as {signature.as_dict()}: TensorFlow wrote {raw.get(name)}"
            )


def _requests(wanted: dict[str, Signature], served: Served, job: Job) -> list[Any]:
    """Builds real requests for every signature.

    Files are sent in several batch sizes; arrays, which are larger, hold one image.
    """
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
    """Runs the samples through TensorFlow alone, and replays the shipped warm-up records."""
    folder = directory
    signature = read_signatures(folder, len(facts["labels"])).get(DEFAULT)
    if signature is None:
        raise ExportError(f"{folder} has no signature {DEFAULT}")
    request = {"warmup": {"module": str(Path(warmup.__file__)), "records": str(folder / warmup.PATH)}}
    prediction = predict_saved_model(
        folder, signature, facts["labels"], samples.classes, samples.sent(signature.input, facts["sent"]), request,
        single=Head(BINARY, facts["logits"]),
    )  # fmt: skip
    if prediction.facts["warmed"] != facts["warmup"]:
        raise ExportError(f"{folder}: {prediction.facts['warmed']} of {facts['warmup']} warm-up records were read back")
    return prediction
