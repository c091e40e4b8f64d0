"""How old and new meet in an epoch: `--mix`, `--replay`, `--balance`, as pure functions of (seed, epoch, manifest).

    order = make_order(manifest, seed=0, batch_size=32, mix="1:1", replay=None, balance="none", generation=2)
    order.batch(16431)              # indices into the manifest's training rows
    order.n                         # images of one epoch
    str(order.shares())             # "392 images an epoch: old 196 (50.0 %), new 196 (50.0 %); ..."

Training images are dealt from streams, one for each (origin, class). A stream deals its own permutation without replacement
and goes on over the epochs: with a quarter of the old images in each epoch, all of them have come once after four, unless
images came or went in between. An epoch takes the same number from each stream, so any epoch can be made without those
before it.
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
"""The row of permutations that mixes the streams of an epoch; apart from every stream's own."""


@dataclass(frozen=True)
class Shares:
    """What one epoch takes.

    Attributes:
        images: of the epoch.
        origins: how many of them are old and new.
        classes: how many are of each class.
    """

    images: int
    origins: Mapping[str, int]
    classes: Mapping[str, int]

    def as_dict(self) -> dict[str, dict[str, float]]:
        """Exact shares by origin and class, from 0 to 1."""
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
        span = f"classes from {self.classes[fewest]:,} ({fewest}) to {self.classes[most]:,} ({most})"
        return f"{self.images:,} images an epoch: {origins}; {span}"


@dataclass(frozen=True)
class _Stream:
    """The training images of one (origin, class).

    Attributes:
        number: names its row of permutations.
        members: indices into the training rows, ascending.
        quota: how many an epoch takes.
    """

    number: int
    members: np.ndarray
    quota: int


class Mixed(Order):
    """An order that says what its epochs are made of; by itself every training image once an epoch.

    Args:
        seed: of the run.
        n: how many images.
        batch_size: images per step.
        made_of: what an epoch takes.
    """

    def __init__(self, seed: int, n: int, batch_size: int, made_of: Shares) -> None:
        super().__init__(seed, n, batch_size)
        self._shares = made_of

    def shares(self) -> Shares:
        """What an epoch is made of."""
        return self._shares


class Mixture(Mixed):
    """An endless row of epochs, each a shuffled hand from every stream.

    Args:
        seed: of the run.
        batch_size: images per step.
        streams: what is dealt; their quotas make an epoch.
        made_of: what an epoch takes.
    """

    def __init__(self, seed: int, batch_size: int, streams: Sequence[_Stream], made_of: Shares) -> None:
        super().__init__(seed, sum(stream.quota for stream in streams), batch_size, made_of)
        self._streams = tuple(streams)
        self._orders = [Order(seed, len(stream.members), max(stream.quota, 1), 1 + stream.number) for stream in streams]
        self._dealt: Callable[[int], np.ndarray] = lru_cache(maxsize=4)(self._deal)

    def deal(self, epoch: int) -> np.ndarray:
        """The indices of one epoch, `(n,) int64`."""
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
    """The order of a run's training images.

    Args:
        manifest: the images; only rows of its training side are ever dealt.
        seed: of the run.
        batch_size: images per step.
        mix: `"concat"` (or None), or `"OLD:NEW"`, the shares of old and new images in an epoch of the usual length.
        replay: the share of the old images that an epoch takes, None for all.
        balance: `"class"` gives each class the same share; within an origin where `mix` sets the shares of these.
        generation: of the run: images that came in with it are new, all others old.

    Returns:
        Indices into `manifest.train_rows()`.

    Raises:
        UsageError: the options contradict each other, or there are no old or no new images to mix.
    """
    rows = manifest.train_rows()
    labels = manifest.labels[rows].astype(np.int64)
    is_new = manifest.origins[rows] >= generation
    ratio = parse_mix(mix)
    if ratio is not None and replay is not None:
        raise UsageError(
            f"{option('mix', mix)} and {option('replay', replay)} both say how many old images an epoch takes: give one"
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
    """`"1:3"` -> the shares 0.25 and 0.75; None for `concat`.

    Raises:
        UsageError: it is neither.
    """
    if mix is None or mix == "concat":
        return None
    old, _, new = mix.partition(":")
    try:
        parts = float(old), float(new)
    except ValueError as error:
        raise UsageError(f"{option('mix', mix)}: give concat or OLD:NEW, 1:1 for example") from error
    if not (parts[0] > 0 and parts[1] > 0 and sum(parts) < float("inf")):
        raise UsageError(
            f"{option('mix', mix)}: both shares must be above 0; training on new images alone is another decision"
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
    """What each stream weighs in an epoch, and how many images an epoch has."""
    weights = sizes.astype(np.float64)
    total = int(sizes.sum())
    if replay is not None:
        weights[~of_new] *= replay
        total = round(replay * int(sizes[~of_new].sum())) + int(sizes[of_new].sum())
    if balance == "class":
        # With a ratio each origin is balanced in itself; otherwise the epoch is.
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
    """Whole numbers with the given sum, each within one of its share (largest remainders)."""
    exact = weights * total
    quotas = np.floor(exact + 1e-9).astype(np.int64)
    short = total - int(quotas.sum())
    quotas[np.argsort(-(exact - quotas), kind="stable")[:short]] += 1
    return quotas


def _shares(manifest: Manifest, quotas: np.ndarray, of_new: np.ndarray, of_class: np.ndarray) -> Shares:
    origins = {"old": int(quotas[~of_new].sum()), "new": int(quotas[of_new].sum())}
    classes = {name: int(quotas[of_class == index].sum()) for index, name in enumerate(manifest.classes)}
    return Shares(int(quotas.sum()), {name: count for name, count in origins.items() if count}, classes)
