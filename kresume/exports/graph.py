"""What a served model computes, as TensorFlow operations: encoded bytes or pictures in, scores and labels out.

    served = Served(loaded.model, loaded.card, "probabilities", top_k=5)
    served.from_bytes(tf.constant([jpeg, png]))       # {"scores": ..., "labels": ..., "class_index": ...}

Decoding is `kresume.images.decode.pixels` and the conventions are `kresume.images.conventions`: the functions that training
used, in the graph. The model is called with `training=False`: augmentation layers stay on in Keras's own `model.export()`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from kresume.checkpoints.state import Card
from kresume.errors import ModelError
from kresume.evaluation.signatures import Input
from kresume.images import inputs
from kresume.images.decode import DecodeSpec, pixels, resize, webp_with_alpha
from kresume.images.tf_data import without_autotuner
from kresume.input_layout import RGB, InputLayout

OnBadImage = Literal["error", "flag"]

UNKNOWN = "not a JPEG, PNG, GIF, BMP or WebP file"
BROKEN = (
    "cannot be decoded: truncated, damaged, or of a kind that TensorFlow does not decode (animated WebP, packed BMP)"
)
SMALLEST = 1e-30
DECODERS = 8
"""Files of one request that are decoded at once."""

BLACK = bytes.fromhex(
    "424d3a000000000000003600000028000000010000000100000001001800000000000400000000000000000000000000000000000000"
) + bytes(4)
"""A BMP file of one black pixel: it stands in for a file that cannot be decoded, so that the others can."""


class Served:
    """A model with everything that stands before and behind it when it is served.

    Args:
        model: built, under the TensorFlow backend.
        card: what it eats and what its outputs mean.
        outputs: `"probabilities"`, `"logits"`, `"binary"` or `"binary-logits"`.
        top_k: how many labels are given, best first.
        on_bad_image: `"error"` refuses the request; `"flag"` gives such a row the class -1 and a text in `error`.
        order: the order in which the classes are given to clients; default the model's own.
        sent: the convention of the numbers that clients send where they send numbers; default what the model eats.
        logits: give scores as logits.
    """

    def __init__(
        self,
        model: Any,
        card: Card,
        outputs: str,
        top_k: int,
        on_bad_image: OnBadImage = "error",
        order: Sequence[str] | None = None,
        sent: str | None = None,
        logits: bool = False,
    ) -> None:
        self.model = model
        self.card = card
        self.outputs = outputs
        self.order = tuple(order or card.classes)
        self.top_k = min(top_k, len(self.order))
        self.on_bad_image = on_bad_image
        self.spec = DecodeSpec(*card.image_size, card.resize, card.interpolation)
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
        """`(batch,)` encoded files -> what `serving_default` gives."""
        images, errors = decode_batch(image_bytes, self.spec, examine=self.on_bad_image == "flag")
        if self.on_bad_image == "error":
            return self.from_pictures(refuse(images, errors))
        return _flagged(self.from_pictures(images), errors)

    def embed_bytes(self, image_bytes: Any) -> dict[str, Any]:
        """`(batch,)` encoded files -> the features before the head; a bad image is an error here, always."""
        import keras
        import tensorflow as tf

        images, errors = decode_batch(image_bytes, self.spec, examine=False)
        features = keras.Model(self.model.inputs, head_input(self.model))
        values = self.to_model(refuse(images, errors))
        return {"embedding": tf.cast(features(values, training=False), tf.float32)}

    def features(self) -> int:
        """How many features stand before the head."""
        return int(head_input(self.model).shape[-1])

    def layout_of(self, shape: Sequence[int | None]) -> InputLayout:
        """How clients send a picture in a tensor of this shape: as the model takes it where that fits."""
        return Input("", "values", "", tuple(shape)).layout(self.card.image_size, self.card.input)

    def from_any_size(self, images: Any) -> dict[str, Any]:
        """`(batch, height, width, 3) uint8` of any size (or in another layout) -> what `predict_images` gives."""
        import tensorflow as tf

        layout = self.layout_of(images.shape)
        if layout != RGB:
            images = tf.cast(inputs.to_pictures("0-255", layout, self.card.image_size)(images), tf.uint8)
        signature = tf.TensorSpec((self.spec.height, self.spec.width, 3), tf.uint8)
        return self.from_pictures(
            tf.map_fn(lambda image: resize(image, self.spec), images, fn_output_signature=signature)
        )

    def from_pictures(self, images: Any) -> dict[str, Any]:
        """`(batch, height, width, 3)` in 0..255 at the model's size -> scores, labels, class index."""
        return self.from_values(self.to_model(images))

    def from_sent(self, values: Any) -> dict[str, Any]:
        """The numbers that clients send -> what `from_values` gives."""
        layout = self.layout_of(values.shape)
        if self.sent == self.card.pixels and layout == self.card.input:
            return self.from_values(values)
        return self.from_pictures(inputs.to_pictures(self.sent, layout, self.card.image_size)(values))

    def from_values(self, values: Any) -> dict[str, Any]:
        """What the model eats -> the scores in the clients' order, with the names and numbers of the best ones."""
        import tensorflow as tf

        scores = self.scores(tf.cast(values, tf.float32))
        if self.order != self.card.classes:
            scores = tf.gather(scores, [self.card.classes.index(name) for name in self.order], axis=1)
        if self.logits:
            scores = tf.math.log(tf.maximum(scores, SMALLEST))  # up to a number that softmax takes out again
        top, best = tf.math.top_k(scores, self.top_k)
        return {
            "scores": scores,
            "top_scores": top,
            "labels": tf.gather(tf.constant(self.order), best),
            "class_index": best[:, 0],
            "class_indices": best,
        }

    def scores(self, values: Any) -> Any:
        """What the model eats -> `(batch, classes) float32` that add up to 1, in the model's own order."""
        import tensorflow as tf

        if self._traced is None:
            # A function of its own: the network stands in the file once, however many signatures call it.
            spec = tf.TensorSpec((None, *self.card.input_shape), tf.float32)
            self._traced = tf.function(self._compute, input_signature=[spec], autograph=False)
        return self._traced(values)

    def _compute(self, values: Any) -> Any:
        import tensorflow as tf

        result = tf.cast(self.model(values, training=False), tf.float32)
        if self.outputs == "logits":
            return tf.nn.softmax(result)
        if self.outputs == "binary-logits":
            result = tf.sigmoid(result)
        if self.outputs in {"binary", "binary-logits"}:
            return tf.concat([1.0 - result, result], axis=-1)
        return result


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
    """The symbolic tensor that a model's last Dense layer takes: the features before its head.

    Raises:
        ModelError: the model is no row or graph of layers that ends in a Dense layer.
    """
    import keras

    layers = list(getattr(model, "layers", ()))
    while layers and isinstance(layers[-1], (keras.layers.Activation, keras.layers.Softmax)):
        layers.pop()
    head = layers[-1] if layers else None
    if not isinstance(head, keras.layers.Dense) or not getattr(model, "inputs", None):
        raise ModelError(
            f"--embeddings: the features before the head are the input of a last Dense layer; {model.name} ends in "
            f"{type(head).__name__}: leave --embeddings out"
        )
    return head.input


def decode_batch(image_bytes: Any, spec: DecodeSpec, *, examine: bool) -> tuple[Any, Any]:
    """Decodes files; one that cannot be decoded does not stop the others.

    Args:
        image_bytes: `(batch,) tf.string`.
        spec: the size to bring them to.
        examine: True tries every file beforehand, which decodes each twice. False leaves that out for a single file that
            begins and ends as a picture does: it takes longer than the decoding. Damage in the middle of that one fails the
            request with TensorFlow's own message, in which the operation's name says `image_bytes_0_cannot_be_decoded`.

    Returns:
        `(images (batch, height, width, 3) uint8, errors (batch,) tf.string)`: black, and what is wrong, where a file is bad;
        an empty text where it is good.
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
    # Without an error to raise, the shapes of an empty request stay known.
    with tf.name_scope("image_bytes_0_cannot_be_decoded"):  # what fails here was not examined: a single file
        images = tf.map_fn(
            lambda encoded: pixels(encoded, spec),
            readable,
            fn_output_signature=tf.TensorSpec(shape, tf.uint8),
            parallel_iterations=DECODERS,
        )
    return tf.ensure_shape(images, (None, *shape)), errors


def _begins_as(image_bytes: Any) -> Any:
    """Which files begin as a JPEG, PNG, GIF, BMP and WebP file do, `(5, batch) bool`."""
    import tensorflow as tf

    def at(start: int, magic: bytes) -> Any:
        return tf.equal(tf.strings.substr(image_bytes, start, len(magic)), magic)

    whole = tf.strings.length(image_bytes) >= 12  # what is shorter cannot be asked for bytes at 8
    safe = tf.where(whole, image_bytes, "            ")
    webp = tf.equal(tf.strings.substr(safe, 8, 4), b"WEBP") & at(0, b"RIFF")
    return tf.stack([at(0, b"\xff\xd8\xff"), at(0, b"\x89PNG\r\n\x1a\n"), at(0, b"GIF8"), at(0, b"BM"), webp])


def _looks_whole(image_bytes: Any) -> Any:
    """Whether each file begins and ends as its format says, `(batch,) bool`. Trailing bytes make a whole one look broken."""
    import tensorflow as tf

    def ends(magic: bytes) -> Any:
        length = tf.minimum(tf.strings.length(image_bytes), len(magic))
        return tf.equal(tf.strings.substr(image_bytes, -length, length), magic)

    jpeg, png, gif, bmp, webp = tf.unstack(_begins_as(image_bytes))
    # BMP and WebP say their length in their header.
    head = tf.io.decode_raw(tf.strings.substr(tf.strings.join([image_bytes, "            "]), 0, 12), tf.uint8)
    said = tf.cast(tf.reshape(head, (-1, 12)), tf.int32)

    def little(start: int) -> Any:
        return tf.reduce_sum(said[:, start : start + 4] * [1, 256, 65536, 16777216], axis=1)

    length = tf.strings.length(image_bytes)
    return (
        (jpeg & ends(b"\xff\xd9"))
        | (png & ends(b"IEND\xaeB`\x82"))
        | (gif & ends(b";"))
        | (bmp & (length >= little(2)))
        | (webp & (length >= little(4) + 8))
    )


def _examine(image_bytes: Any) -> Any:
    """Tries to decode each file: `(batch,) tf.string`, what is wrong with it, or an empty text."""
    import tensorflow as tf

    alpha = webp_with_alpha(image_bytes)
    decoded = _decodable(tf.where(alpha, BLACK, image_bytes), 3)
    decoded &= tf.cond(
        tf.reduce_any(alpha),
        lambda: _decodable(tf.where(alpha, image_bytes, BLACK), 4),
        lambda: tf.ones_like(alpha),
    )
    problems = tf.where(tf.reduce_any(_begins_as(image_bytes), axis=0), BROKEN, UNKNOWN)
    problems = tf.where(tf.equal(image_bytes, ""), "no bytes", problems)
    return tf.where(decoded, "", problems)


def _decodable(image_bytes: Any, channels: int) -> Any:
    """Which files can be decoded, `(batch,) bool`.

    A dataset is the one place in a graph where the failure of an operation can be caught. The function in it is kept to
    one operation, because it is prepared anew for each request.
    """
    import tensorflow as tf

    count = tf.shape(image_bytes, out_type=tf.int64)[0]
    options = tf.data.Options()
    options.experimental_optimization.apply_default_optimizations = False

    def attempt(index: Any, encoded: Any) -> Any:
        image = tf.io.decode_image(encoded, channels=channels, expand_animations=False)
        return index, tf.shape(image)[0]  # an unused picture would not be decoded at all

    data = tf.data.Dataset.from_tensor_slices(image_bytes).enumerate().map(attempt, num_parallel_calls=DECODERS)
    data = data.ignore_errors(log_warning=False).batch(tf.maximum(count, 1))
    data = without_autotuner(data).with_options(options)
    good, _ = data.reduce((tf.zeros((0,), tf.int64), tf.zeros((0,), tf.int32)), lambda _, *batch: batch[0])
    return tf.scatter_nd(good[:, None], tf.ones_like(good), count[None]) > 0


def refuse(images: Any, errors: Any) -> Any:
    """The images, or an error that names the first bad one by its index in the request."""
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
