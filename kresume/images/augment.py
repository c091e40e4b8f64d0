"""Augments images with Keras's layers, as a pure function of (seed, position).

    augment = augmenter("light", seed=0, mixup=0.0)
    images, labels = augment(images, labels, position)     # inside tf.data, in parallel, in any order

Keras's random layers count their calls: a parallel map then gives different pictures each time, and a resumed run
restarts the count. Here every batch draws its random numbers from its own position instead, with the same bits under
either backend.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kresume.backend.keras_settings import channels_last
from kresume.errors import UsageError
from kresume.spelling import option

PRESETS = ("none", "light", "strong")
AUGMENT_SALT = 0x6B726573
"""Separates the seeds of augmentation from other uses of the run's seed."""

Augment = Callable[[Any, Any, Any], tuple[Any, Any]]


def augmenter(
    preset: str, seed: int, mixup: float = 0.0, cutmix: float = 0.0, rand_augment: float = 0.0, erase: float = 0.0
) -> Augment | None:
    """Creates the augmentation function of a run.

    `light` shifts by up to a tenth of the width and height: it suits photographs as well as signs. `strong` also flips,
    rotates, zooms and erases rectangles. `light` does not flip, because mirrored digits, letters and signs have another
    meaning.

    Args:
        preset: `"none"`, `"light"` or `"strong"`.
        seed: the run's seed.
        mixup: MixUp's alpha (Zhang et al. 2018, arXiv:1710.09412), 0 for none; labels must be rows of probabilities.
        cutmix: the largest share of a picture that CutMix replaces by another picture (Yun et al. 2019,
            arXiv:1905.04899), 0 for none; labels must be rows of probabilities.
        rand_augment: strength of RandAugment (Cubuk et al. 2019, arXiv:1909.13719) from 0 for none to 1, two
            operations.
        erase: share of the images in which a random rectangle is erased (Zhong et al. 2017, arXiv:1708.04896).

    Returns:
        `f(images, labels, position) -> (images, labels)` with images `(batch, height, width, 3) float32` in 0..255 and
        `position` the scalar `int64` count of examples drawn before this batch; None if there is no augmentation.

    Raises:
        UsageError: the preset does not exist, or a number is out of its range.
    """
    if preset not in PRESETS:
        raise UsageError(f"{option('augment', preset)}: use {', '.join(PRESETS)}")
    if mixup < 0:
        raise UsageError(f"{option('mixup', mixup)}: give an alpha above 0, for example 0.2")
    for name, share in (("cutmix", cutmix), ("rand-augment", rand_augment), ("erase", erase)):
        if not 0 <= share <= 1:
            raise UsageError(f"{option(name, share)}: give a number from 0 to 1")
    if preset == "none" and not any((rand_augment, erase, mixup, cutmix)):
        return None
    with channels_last():
        layers = [*_layers(preset), *_singles(rand_augment, erase)]
        everything: list[Any] = [*layers, *_mixers(mixup, cutmix)]

    def augment(images: Any, labels: Any, position: Any) -> tuple[Any, Any]:
        import tensorflow as tf

        base = tf.random.experimental.stateless_fold_in(tf.constant([seed % 2**31, AUGMENT_SALT], tf.int32), position)
        for index, layer in enumerate(everything):
            _hand_seeds(layer, base, index)
            if index >= len(layers):  # MixUp or CutMix, which change labels too
                mixed = layer({"images": images, "labels": labels}, training=True)
                images, labels = mixed["images"], mixed["labels"]
            else:
                images = layer(images, training=True)
        return images, labels

    return augment


def _layers(preset: str) -> list[Any]:
    if preset == "none":
        return []
    import keras

    shift = keras.layers.RandomTranslation(0.1, 0.1, fill_mode="nearest", dtype="float32")
    if preset == "light":
        return [shift]
    return [
        keras.layers.RandomFlip("horizontal", dtype="float32"),
        keras.layers.RandomRotation(0.04, fill_mode="nearest", dtype="float32"),
        keras.layers.RandomZoom(0.1, fill_mode="nearest", dtype="float32"),
        shift,
        keras.layers.RandomErasing(factor=0.5, scale=(0.02, 0.15), fill_value=127.0, dtype="float32"),
    ]


def _singles(rand_augment: float, erase: float) -> list[Any]:
    import keras

    layers: list[Any] = []
    if rand_augment:
        layers.append(keras.layers.RandAugment((0, 255), num_ops=2, factor=rand_augment, dtype="float32"))
    if erase:
        layers.append(
            keras.layers.RandomErasing(factor=(erase, erase), scale=(0.02, 0.33), fill_value=127.0, dtype="float32")
        )
    return layers


def _mixers(mixup: float, cutmix: float) -> list[Any]:
    import keras

    layers: list[Any] = []
    if mixup:
        layers.append(keras.layers.MixUp(alpha=mixup, dtype="float32"))
    if cutmix:
        layers.append(keras.layers.CutMix(factor=cutmix, dtype="float32"))
    return layers


def _hand_seeds(layer: Any, base: Any, index: int) -> None:
    """Makes a layer and its sub-layers draw from `base` instead of counting their calls.

    Overrides `_get_seed_generator`, a private hook by which Keras's image layers get their generator. It is used only
    here, and a test fails if Keras stops calling it.
    """
    for inner_index, inner in enumerate(layer._flatten_layers()):
        if hasattr(inner, "_get_seed_generator"):
            seeds = _seeds_at(base, 1000 * index + inner_index)
            inner._get_seed_generator = lambda backend=None, seeds=seeds: seeds


def _seeds_at(base: Any, number: int) -> Any:
    import keras
    import tensorflow as tf

    class PositionSeeds(keras.random.SeedGenerator):  # type: ignore[misc]  # keras is untyped
        """Generates the seeds of one position in sequence."""

        def __init__(self) -> None:
            # No super().__init__: it would create a backend variable inside a TensorFlow graph.
            self._drawn = 0

        def next(self, ordered: bool = True) -> Any:
            self._drawn += 1
            return tf.random.experimental.stateless_fold_in(base, 2**20 * number + self._drawn)

    return PositionSeeds()
