"""Builds the TensorFlow graph of a served model: bytes or images in, scores and labels out.

    served = Served(loaded.model, loaded.card, loaded.loss.head, top_k=5)
    served.from_bytes(tf.constant([jpeg, png]))       # {"scores": ..., "labels": ..., "class_index": ...}

`kresume.images.decode_graph.pixels` decodes and `kresume.images.conventions` converts: the same functions as in training,
here in the graph. The model is called with `training=False`, because Keras's own `model.export()` leaves augmentation
layers on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from kresume.errors import ModelError
from kresume.images import inputs
from kresume.images.containers import GIF_MARK, full_frame, webp_with_alpha
from kresume.images.decode_graph import pixels, resize
from kresume.images.tf_data import without_autotuner
from kresume.runtimes.signatures import Input
from kresume.spelling import option
from kresume.tasks.task import Head
from kresume.values.card import Card
from kresume.values.decode_spec import DecodeSpec
from kresume.values.input_layout import RGB, InputLayout

OnBadImage = Literal["error", "flag"]

UNKNOWN = "not a JPEG, PNG, GIF, BMP or WebP file"
BROKEN = (
    "cannot be decoded: truncated, damaged, or of a kind that TensorFlow does not decode (animated WebP, packed BMP, "
    "a GIF whose first frame is not its whole screen)"
)
SMALLEST = 1e-30
DECODERS = 8
"""Files of one request that are decoded in parallel."""

BLACK = bytes.fromhex(
    "424d3a000000000000003600000028000000010000000100000001001800000000000400000000000000000000000000000000000000"
) + bytes(4)
"""A BMP file of one black pixel. It replaces a file that cannot be decoded, so that the others can be."""


class Served:
    """A model with the input and output processing that serving adds.

    Args:
        model: built, under the TensorFlow backend.
        card: the model card: the pixels that the model expects, and the meaning of its outputs.
        head: how the model answers.
        top_k: the number of labels to return, best first.
        on_bad_image: `"error"` fails the request; `"flag"` gives such a row the class -1 and a text in `error`.
        order: the class order of the outputs for clients; default the model's own.
        sent: the pixel convention of the numbers that clients send, if they send numbers; default the model's.
        logits: True returns scores as logits.
    """

    def __init__(
        self,
        model: Any,
        card: Card,
        head: Head,
        top_k: int,
        on_bad_image: OnBadImage = "error",
        order: Sequence[str] | None = None,
        sent: str | None = None,
        logits: bool = False,
    ) -> None:
        self.model = model
        self.card = card
        self.head = head
        self.order = tuple(order or card.classes)
        self.top_k = min(top_k, len(self.order))
        self.on_bad_image = on_bad_image
        self.spec = card.spec
        self.to_model = inputs.to_input(card.pixels, card.input)
        self.sent = sent or card.pixels
        self.logits = logits
        self._traced: Any = None
        self.answers: dict[str, Callable[[Any], dict[str, Any]]] = {
            "bytes": self.from_bytes,
            "pictures": self.from_any_size,
            "values": self.from_sent,
        }

    def from_bytes(self, image_bytes: Any) -> dict[str, Any]:
        """Maps `(batch,)` encoded files to the outputs of `serving_default`."""
        images, errors = decode_batch(image_bytes, self.spec, examine=self.on_bad_image == "flag")
        if self.on_bad_image == "error":
            return self.from_pictures(refuse(images, errors))
        return _flagged(self.from_pictures(images), errors)

    def embed_bytes(self, image_bytes: Any) -> dict[str, Any]:
        """Maps `(batch,)` encoded files to the features before the head.

        A bad image fails the request here, even if `on_bad_image` is `"flag"`.
        """
        import keras
        import tensorflow as tf

        images, errors = decode_batch(image_bytes, self.spec, examine=False)
        features = keras.Model(self.model.inputs, head_input(self.model))
        values = self.to_model(refuse(images, errors))
        return {"embedding": tf.cast(features(values, training=False), tf.float32)}

    def features(self) -> int:
        """Returns the number of features before the head."""
        return int(head_input(self.model).shape[-1])

    def layout_of(self, shape: Sequence[int | None]) -> InputLayout:
        """Returns the layout of client images of this shape: the model's own if it fits."""
        return Input("", "values", "", tuple(shape)).layout(self.card.image_size, self.card.input)

    def from_any_size(self, images: Any) -> dict[str, Any]:
        """Maps images of any size to the outputs of `predict_images`.

        Args:
            images: `(batch, height, width, 3) uint8`, or another layout.
        """
        import tensorflow as tf

        layout = self.layout_of(images.shape)
        if layout != RGB:
            images = tf.cast(inputs.to_pictures("0-255", layout, self.card.image_size)(images), tf.uint8)
        signature = tf.TensorSpec((self.spec.height, self.spec.width, 3), tf.uint8)
        return self.from_pictures(
            tf.map_fn(lambda image: resize(image, self.spec), images, fn_output_signature=signature)
        )

    def from_pictures(self, images: Any) -> dict[str, Any]:
        """Maps images `(batch, height, width, 3)` in 0..255, of the model's size, to all outputs."""
        return self.from_values(self.to_model(images))

    def from_sent(self, values: Any) -> dict[str, Any]:
        """Maps the numbers that clients send to the outputs of `from_values`."""
        layout = self.layout_of(values.shape)
        if self.sent == self.card.pixels and layout == self.card.input:
            return self.from_values(values)
        return self.from_pictures(inputs.to_pictures(self.sent, layout, self.card.image_size)(values))

    def from_values(self, values: Any) -> dict[str, Any]:
        """Maps model inputs to scores in the clients' order, and names and indices of the best."""
        import tensorflow as tf

        scores = self.scores(tf.cast(values, tf.float32))
        if self.order != self.card.classes:
            scores = tf.gather(scores, [self.card.classes.index(name) for name in self.order], axis=1)
        if self.logits:
            scores = tf.math.log(tf.maximum(scores, SMALLEST))  # up to a constant, which softmax removes
        top, best = tf.math.top_k(scores, self.top_k)
        return {
            "scores": scores,
            "top_scores": top,
            "labels": tf.gather(tf.constant(self.order), best),
            "class_index": best[:, 0],
            "class_indices": best,
        }

    def scores(self, values: Any) -> Any:
        """Maps model inputs to `(batch, classes) float32` that sum to 1, in the model's own order."""
        import tensorflow as tf

        if self._traced is None:
            # A separate function: the network is stored once in the file, however many signatures call it.
            spec = tf.TensorSpec((None, *self.card.input_shape), tf.float32)
            self._traced = tf.function(self._compute, input_signature=[spec], autograph=False)
        return self._traced(values)

    def _compute(self, values: Any) -> Any:
        import tensorflow as tf

        return self.head.graph_probabilities(tf.cast(self.model(values, training=False), tf.float32))


def _flagged(result: dict[str, Any], errors: Any) -> dict[str, Any]:
    import tensorflow as tf

    good = tf.equal(errors, "")
    return {
        "scores": tf.where(good[:, None], result["scores"], 0.0),
        "top_scores": tf.where(good[:, None], result["top_scores"], 0.0),
        "labels": tf.where(good[:, None], result["labels"], ""),
        "class_index": tf.where(good, result["class_index"], -1),
        "class_indices": tf.where(good[:, None], result["class_indices"], -1),
        "error": errors,
    }


def head_input(model: Any) -> Any:
    """Returns the symbolic input of a model's last Dense layer: the features before its head.

    Raises:
        ModelError: the model is not a sequence or graph of layers that ends in a Dense layer.
    """
    import keras

    layers = list(getattr(model, "layers", ()))
    while layers and isinstance(layers[-1], (keras.layers.Activation, keras.layers.Softmax)):
        layers.pop()
    head = layers[-1] if layers else None
    if not isinstance(head, keras.layers.Dense) or not getattr(model, "inputs", None):
        raise ModelError(
            f"{option('embeddings', True)}: the features are the input of the last Dense layer, but {model.name} ends in "
            f"{type(head).__name__}: leave it out"
        )
    return head.input


def decode_batch(image_bytes: Any, spec: DecodeSpec, *, examine: bool) -> tuple[Any, Any]:
    """Decodes files; a file that cannot be decoded does not stop the others.

    Args:
        image_bytes: `(batch,) tf.string`.
        spec: the target size and resizing.
        examine: True tries every file beforehand, which decodes each file twice. False skips this for a single file
            (no GIF) that begins and ends like an image, because it takes longer than the decoding. If it is damaged in
            the middle, the request fails with TensorFlow's own message; its operation is named
            `image_bytes_0_cannot_be_decoded`.

    Returns:
        `(images (batch, height, width, 3) uint8, errors (batch,) tf.string)`. For a bad file the image is black and the
        error says what is wrong; for a good file the error is an empty string.
    """
    import tensorflow as tf

    shape = (spec.height, spec.width, 3)
    if examine:
        errors = _examine(image_bytes)
    else:
        single = tf.size(image_bytes) <= 1
        errors = tf.cond(
            tf.logical_and(single, tf.reduce_all(_looks_whole(image_bytes))),
            lambda: tf.fill(tf.shape(image_bytes), ""),
            lambda: _examine(image_bytes),
        )
    errors = tf.ensure_shape(errors, (None,))
    readable = tf.where(tf.equal(errors, ""), image_bytes, BLACK)
    # `map_fn` without an error to raise keeps the shapes of an empty request known.
    with tf.name_scope("image_bytes_0_cannot_be_decoded"):  # only an unexamined single file can fail here
        images = tf.map_fn(
            lambda encoded: pixels(encoded, spec),
            readable,
            fn_output_signature=tf.TensorSpec(shape, tf.uint8),
            parallel_iterations=DECODERS,
        )
    return tf.ensure_shape(images, (None, *shape)), errors


def _begins_as(image_bytes: Any) -> Any:
    """Tests which files begin as JPEG, PNG, GIF, BMP and WebP; returns `(5, batch) bool`."""
    import tensorflow as tf

    def at(start: int, magic: bytes) -> Any:
        return tf.equal(tf.strings.substr(image_bytes, start, len(magic)), magic)

    whole = tf.strings.length(image_bytes) >= 12  # shorter files have no bytes at 8
    safe = tf.where(whole, image_bytes, "            ")
    webp = tf.equal(tf.strings.substr(safe, 8, 4), b"WEBP") & at(0, b"RIFF")
    return tf.stack([at(0, b"\xff\xd8\xff"), at(0, b"\x89PNG\r\n\x1a\n"), at(0, b"GIF8"), at(0, b"BM"), webp])


def _looks_whole(image_bytes: Any) -> Any:
    """Tests whether each file begins and ends as its format requires; returns `(batch,) bool`.

    A whole file with trailing bytes fails the test, and so does a GIF: its ends do not tell that its frame is the screen.
    """
    import tensorflow as tf

    def ends(magic: bytes) -> Any:
        length = tf.minimum(tf.strings.length(image_bytes), len(magic))
        return tf.equal(tf.strings.substr(image_bytes, -length, length), magic)

    jpeg, png, _, bmp, webp = tf.unstack(_begins_as(image_bytes))
    # BMP and WebP store their length in the header.
    head = tf.io.decode_raw(tf.strings.substr(tf.strings.join([image_bytes, "            "]), 0, 12), tf.uint8)
    said = tf.cast(tf.reshape(head, (-1, 12)), tf.int32)

    def little(start: int) -> Any:
        return tf.reduce_sum(said[:, start : start + 4] * [1, 256, 65536, 16777216], axis=1)

    length = tf.strings.length(image_bytes)
    return (
        (jpeg & ends(b"\xff\xd9"))
        | (png & ends(b"IEND\xaeB`\x82"))
        | (bmp & (length >= little(2)))
        | (webp & (length >= little(4) + 8))
    )


def _examine(image_bytes: Any) -> Any:
    """Tries to decode each file; returns `(batch,) tf.string`: the problem, or an empty string."""
    import tensorflow as tf

    alpha = webp_with_alpha(image_bytes)
    sizes = _decoded_sizes(tf.where(alpha, BLACK, image_bytes), 3)
    decoded = (sizes[:, 0] > 0) & _shows_whole(image_bytes, sizes)
    decoded &= tf.cond(
        tf.reduce_any(alpha),
        lambda: _decoded_sizes(tf.where(alpha, image_bytes, BLACK), 4)[:, 0] > 0,
        lambda: tf.ones_like(alpha),
    )
    problems = tf.where(tf.reduce_any(_begins_as(image_bytes), axis=0), BROKEN, UNKNOWN)
    problems = tf.where(tf.equal(image_bytes, ""), "no bytes", problems)
    return tf.where(decoded, "", problems)


def _shows_whole(image_bytes: Any, sizes: Any) -> Any:
    """Tests whether each GIF was decoded to its first frame on its screen; returns `(batch,) bool`.

    Args:
        image_bytes: `(batch,) tf.string`.
        sizes: the sizes as decoded, `(batch, 2) int32`.

    Returns:
        True for a file of another format.
    """
    import tensorflow as tf

    is_gif = tf.equal(tf.strings.substr(image_bytes, 0, len(GIF_MARK)), GIF_MARK)

    def frames() -> Any:
        return tf.map_fn(
            lambda item: tf.cond(item[0], lambda: full_frame(item[1]), lambda: tf.zeros(2, tf.int32)),
            (is_gif, image_bytes),
            fn_output_signature=tf.TensorSpec((2,), tf.int32),
        )

    shown = tf.cond(tf.reduce_any(is_gif), frames, lambda: sizes)
    return ~is_gif | tf.reduce_all(tf.equal(shown, sizes), axis=1)


def _decoded_sizes(image_bytes: Any, channels: int) -> Any:
    """Decodes each file; returns `(batch, 2) int32`, height and width, zeros where it cannot be decoded.

    Only a dataset can catch the failure of an operation in a graph. Its function has a single operation, because it is
    instantiated again for each request.
    """
    import tensorflow as tf

    count = tf.shape(image_bytes, out_type=tf.int64)[0]
    options = tf.data.Options()
    options.experimental_optimization.apply_default_optimizations = False

    def attempt(index: Any, encoded: Any) -> Any:
        image = tf.io.decode_image(encoded, channels=channels, expand_animations=False)
        return index, tf.shape(image)[:2]  # an unused image would not be decoded at all

    data = tf.data.Dataset.from_tensor_slices(image_bytes).enumerate().map(attempt, num_parallel_calls=DECODERS)
    data = data.ignore_errors(log_warning=False).batch(tf.maximum(count, 1))
    data = without_autotuner(data).with_options(options)
    nothing = (tf.zeros((0,), tf.int64), tf.zeros((0, 2), tf.int32))
    good, sizes = data.reduce(nothing, lambda _, *batch: batch)
    return tf.scatter_nd(good[:, None], sizes, tf.stack([count, 2]))


def refuse(images: Any, errors: Any) -> Any:
    """Returns the images, or fails and names each bad one by its index in the request."""
    import tensorflow as tf

    bad = tf.where(tf.not_equal(errors, ""))[:, 0]

    def complain() -> Any:
        texts = tf.strings.join(["image_bytes[", tf.strings.as_string(bad), "]: ", tf.gather(errors, bad)])
        message = tf.strings.reduce_join(texts, separator="; ")
        with tf.control_dependencies([tf.debugging.Assert(False, [message])]):
            return tf.constant(False)

    fine = tf.cond(tf.equal(tf.size(bad), 0), lambda: tf.constant(True), complain)
    with tf.control_dependencies([fine]):
        return tf.identity(images)
