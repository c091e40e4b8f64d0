"""Mixes old and new images in each epoch: `--mix`, `--replay` and `--balance`.

    order = make_order(manifest, seed=0, batch_size=32, mix="1:1", replay=None, balance="none", generation=2)
    order.batch(16431)              # indices into the manifest's training rows
    order.n                         # images per epoch
    str(order.shares())             # "392 images an epoch: old 196 (50.0 %), new 196 (50.0 %); ..."

The order is a pure function of (seed, epoch, manifest). Training images are divided into streams, one per (origin,
class). A stream draws from its own permutations without replacement and continues across epochs: with a quarter of the
old images in each epoch, all of them are drawn once in four epochs, unless images are added or removed in between.
Every epoch draws the same number from each stream, so any epoch can be computed without those before it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from kresume.errors import UsageError
from kresume.images.manifest import Manifest
from kresume.images.order import Order, permutation
from kresume.spelling import option

SHUFFLE_STREAM = 2**32
"""Number of the permutation stream that shuffles an epoch; no (origin, class) stream has it."""


@dataclass(frozen=True)
class Shares:
    """The composition of one epoch.

    Attributes:
        images: images in the epoch.
        origins: how many of them are old and new.
        classes: how many belong to each class.
    """

    images: int
    origins: Mapping[str, int]
    classes: Mapping[str, int]

    def as_dict(self) -> dict[str, dict[str, float]]:
        """Returns the exact shares by origin and class, from 0 to 1."""
        return {
            "origins": {name: count / self.images for name, count in self.origins.items()},
            "classes": {name: count / self.images for name, count in self.classes.items()},
        }

    def __str__(self) -> str:
        origins = ", ".join(
            f"{name} {count:,} ({100 * count / self.images:.1f} %)" for name, count in self.origins.items()
        )
        fewest = min(self.classes, key=lambda name: self.classes[name])
        most = max(self.classes, key=lambda name: self.classes[name])
        if self.classes[fewest] == self.classes[most]:
            return f"{self.images:,} images an epoch: {origins}; each class {self.classes[most]:,}"
        span = f"classes from {self.classes[fewest]:,} ({fewest}) to {self.classes[most]:,} ({most})"
        return f"{self.images:,} images an epoch: {origins}; {span}"


@dataclass(frozen=True)
class _Stream:
    """The training images of one (origin, class).

    Attributes:
        number: identifies its sequence of permutations.
        members: indices into the training rows, ascending.
        quota: how many an epoch draws.
    """

    number: int
    members: np.ndarray
    quota: int


class Mixed(Order):
    """An order that knows the composition of its epochs.

    By itself it draws every training image once per epoch.

    Args:
        seed: the run's seed.
        n: how many images.
        batch_size: images per step.
        made_of: the composition of an epoch.
    """

    def __init__(self, seed: int, n: int, batch_size: int, made_of: Shares) -> None:
        super().__init__(seed, n, batch_size)
        self._shares = made_of

    def shares(self) -> Shares:
        """Returns the composition of an epoch."""
        return self._shares


class Mixture(Mixed):
    """Endless epochs; each draws a fixed number of images per stream and shuffles them.

    Args:
        seed: the run's seed.
        batch_size: images per step.
        streams: the images; the sum of their quotas is the length of an epoch.
        made_of: the composition of an epoch.
    """

    def __init__(self, seed: int, batch_size: int, streams: Sequence[_Stream], made_of: Shares) -> None:
        super().__init__(seed, sum(stream.quota for stream in streams), batch_size, made_of)
        self._streams = tuple(streams)
        self._orders = [Order(seed, len(stream.members), max(stream.quota, 1), 1 + stream.number) for stream in streams]
        self._dealt: Callable[[int], np.ndarray] = lru_cache(maxsize=4)(self._deal)

    def deal(self, epoch: int) -> np.ndarray:
        """Returns the indices of one epoch, `(n,) int64`."""
        return self._dealt(epoch)

    def _deal(self, epoch: int) -> np.ndarray:
        hands = [
            stream.members[order.take(epoch * stream.quota, stream.quota)]
            for stream, order in zip(self._streams, self._orders, strict=True)
        ]
        dealt: np.ndarray = np.concatenate(hands)[permutation(self.seed, epoch, self.n, SHUFFLE_STREAM)]
        return dealt


def make_order(
    manifest: Manifest,
    seed: int,
    batch_size: int,
    mix: str | None,
    replay: float | None,
    balance: str | None,
    generation: int,
) -> Mixed:
    """Returns the order of a run's training images.

    Args:
        manifest: the images; only rows of its training split are drawn.
        seed: the run's seed.
        batch_size: images per step.
        mix: `"concat"` (or None), or `"OLD:NEW"`, the shares of old and new images in an epoch of the usual length.
        replay: the share of the old images that an epoch draws, None for all.
        balance: `"class"` gives each class the same share of an epoch, or of each origin if `mix` sets the origins'
            shares.
        generation: the run's generation: images added by it are new, all others are old.

    Returns:
        An order of indices into `manifest.train_rows()`.

    Raises:
        UsageError: the options contradict each other, or there are no old or no new images to mix.
    """
    rows = manifest.train_rows()
    labels = manifest.labels[rows].astype(np.int64)
    is_new = manifest.origins[rows] >= generation
    ratio = parse_mix(mix)
    if ratio is not None and replay is not None:
        raise UsageError(
            f"{option('mix', mix)} and {option('replay', replay)} both set the number of old images in an epoch: give one"
        )
    if (ratio is not None or replay is not None) and (is_new.all() or not is_new.any()):
        asked = option("mix", mix) if ratio is not None else option("replay", replay)
        raise UsageError(
            f"{asked}: all {len(rows):,} training images are {'new' if is_new.all() else 'old'}: leave it out"
        )
    keys = is_new * len(manifest.classes) + labels
    numbers, sizes = np.unique(keys, return_counts=True)
    of_new, of_class = numbers >= len(manifest.classes), numbers % len(manifest.classes)
    if ratio is None and replay is None and balance in {None, "none"}:
        return Mixed(seed, len(rows), batch_size, _shares(manifest, sizes, of_new, of_class))
    weights, total = _weights(sizes, of_new, of_class, ratio, replay, balance)
    quotas = _quotas(weights, total)
    streams = [
        _Stream(int(number), np.nonzero(keys == number)[0], int(quota))
        for number, quota in zip(numbers, quotas, strict=True)
    ]
    return Mixture(seed, batch_size, streams, _shares(manifest, quotas, of_new, of_class))


def parse_mix(mix: str | None) -> tuple[float, float] | None:
    """Parses `"1:3"` into the shares 0.25 and 0.75; returns None for `concat`.

    Raises:
        UsageError: the value has neither form, or a share is not above 0.
    """
    if mix is None or mix == "concat":
        return None
    old, _, new = mix.partition(":")
    try:
        parts = float(old), float(new)
    except ValueError as error:
        raise UsageError(f"{option('mix', mix)}: give concat or OLD:NEW, for example 1:1") from error
    if not (parts[0] > 0 and parts[1] > 0 and sum(parts) < float("inf")):
        raise UsageError(
            f"{option('mix', mix)}: both shares must be above 0, because an epoch mixes old and new images"
        )
    return parts[0] / sum(parts), parts[1] / sum(parts)


def _weights(
    sizes: np.ndarray,
    of_new: np.ndarray,
    of_class: np.ndarray,
    ratio: tuple[float, float] | None,
    replay: float | None,
    balance: str | None,
) -> tuple[np.ndarray, int]:
    """Returns each stream's share of an epoch, and the images per epoch."""
    weights = sizes.astype(np.float64)
    total = int(sizes.sum())
    if replay is not None:
        weights[~of_new] *= replay
        total = round(replay * int(sizes[~of_new].sum())) + int(sizes[of_new].sum())
    if balance == "class":
        # With a ratio, classes are balanced within each origin; otherwise over the whole epoch.
        groups = of_new.astype(np.int64) if ratio is not None else np.zeros(len(sizes), np.int64)
        for group in np.unique(groups):
            inside = groups == group
            present = [c for c in np.unique(of_class[inside]) if weights[inside & (of_class == c)].sum() > 0]
            for each in present:
                chosen = inside & (of_class == each)
                weights[chosen] *= 1.0 / (len(present) * weights[chosen].sum())
    if ratio is not None:
        for new, share in enumerate(ratio):
            chosen = of_new == bool(new)
            weights[chosen] *= share / weights[chosen].sum()
    return weights / weights.sum(), total


def _quotas(weights: np.ndarray, total: int) -> np.ndarray:
    """Rounds shares of `total` to integers by largest remainders, each by less than one."""
    exact = weights * total
    quotas = np.floor(exact + 1e-9).astype(np.int64)
    short = total - int(quotas.sum())
    quotas[np.argsort(-(exact - quotas), kind="stable")[:short]] += 1
    return quotas


def _shares(manifest: Manifest, quotas: np.ndarray, of_new: np.ndarray, of_class: np.ndarray) -> Shares:
    origins = {"old": int(quotas[~of_new].sum()), "new": int(quotas[of_new].sum())}
    classes = {name: int(quotas[of_class == index].sum()) for index, name in enumerate(manifest.classes)}
    return Shares(int(quotas.sum()), {name: count for name, count in origins.items() if count}, classes)
