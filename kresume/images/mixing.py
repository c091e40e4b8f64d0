"""Mixes old and new images in each epoch: `--mix`, `--replay` and `--balance`.

    order = make_order(manifest, seed=0, batch_size=32, mix="1:1", replay=None, balance="none", generation=2)
    order.batch(16431)              # indices into the manifest's training rows
    order.n                         # images per epoch
    str(order.shares())             # "392 images an epoch: old 196 (50.0 %), new 196 (50.0 %); ..."

The order is a pure function of (seed, epoch, manifest). Training images are divided into streams, one per (origin,
class). A stream draws from its own permutations without replacement and continues across epochs: with a quarter of the
old images in each epoch, all of them are drawn once in about four epochs, unless images are added or removed in between.
A stream's share of an epoch is seldom a whole number. It is rounded once, if that changes no share by more than a quarter.
Else each epoch draws it rounded down or up, so often up that the average is exact: a class of which a tenth of an image is
due is drawn in every tenth epoch, and not never. All epochs have the same length, and any of them can be computed without
those before it.
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

ROUNDING = 0.25
"""How much of a share rounding may change in all epochs alike."""
PERIOD = 1024
"""Epochs after which the rounding of shares repeats; a power of two."""
SHUFFLE_STREAM = 2**32
"""Number of the permutation stream that shuffles an epoch; no (origin, class) stream has it."""


@dataclass(frozen=True)
class Shares:
    """The composition of an epoch, on average.

    Attributes:
        images: images in the epoch.
        origins: how many of them are old and new.
        classes: how many belong to each class.
    """

    images: int
    origins: Mapping[str, float]
    classes: Mapping[str, float]

    def as_dict(self) -> dict[str, dict[str, float]]:
        """Returns the average shares by origin and class, from 0 to 1."""
        return {
            "origins": {name: count / self.images for name, count in self.origins.items()},
            "classes": {name: count / self.images for name, count in self.classes.items()},
        }

    def __str__(self) -> str:
        origins = ", ".join(
            f"{name} {_number(count)} ({100 * count / self.images:.1f} %)" for name, count in self.origins.items()
        )
        fewest = min(self.classes, key=lambda name: self.classes[name])
        most = max(self.classes, key=lambda name: self.classes[name])
        if self.classes[fewest] == self.classes[most]:
            return f"{self.images:,} images an epoch: {origins}; each class {_number(self.classes[most])}"
        span = f"classes from {_number(self.classes[fewest])} ({fewest}) to {_number(self.classes[most])} ({most})"
        return f"{self.images:,} images an epoch: {origins}; {span}"


def _number(count: float) -> str:
    return (
        f"{count:,.0f}" if count == round(count) or count >= 100 else f"{count:.1f}" if count >= 0.1 else f"{count:.1g}"
    )


@dataclass(frozen=True)
class _Stream:
    """The training images of one (origin, class).

    Attributes:
        number: identifies its sequence of permutations.
        members: indices into the training rows, ascending.
        share: how many an epoch draws on average.
    """

    number: int
    members: np.ndarray
    share: float


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
    """Endless epochs of one length; each draws from every stream its share, rounded, and shuffles them.

    Args:
        seed: the run's seed.
        batch_size: images per step.
        streams: the images. The sum of all shares is a whole number, and so is that of the first few where these are to be
            equally many in each epoch.
        made_of: the composition of an epoch.
    """

    def __init__(self, seed: int, batch_size: int, streams: Sequence[_Stream], made_of: Shares) -> None:
        super().__init__(seed, made_of.images, batch_size, made_of)
        self._streams = tuple(streams)
        self._orders = [Order(seed, len(stream.members), 1, 1 + stream.number) for stream in streams]
        counts = _counts(np.array([stream.share for stream in streams]))
        self._before = np.concatenate([np.zeros((1, len(streams)), np.int64), np.cumsum(counts, axis=0)])
        self._dealt: Callable[[int], np.ndarray] = lru_cache(maxsize=4)(self._deal)

    def deal(self, epoch: int) -> np.ndarray:
        """Returns the indices of one epoch, `(n,) int64`."""
        return self._dealt(epoch)

    def _deal(self, epoch: int) -> np.ndarray:
        hands = [
            stream.members[order.take(int(begin), int(end - begin))]
            for stream, order, begin, end in zip(
                self._streams, self._orders, self._drawn(epoch), self._drawn(epoch + 1), strict=True
            )
        ]
        dealt: np.ndarray = np.concatenate(hands)[permutation(self.seed, epoch, self.n, SHUFFLE_STREAM)]
        return dealt

    def _drawn(self, epoch: int) -> np.ndarray:
        """Returns how many images each stream has drawn before an epoch."""
        periods, rest = divmod(epoch, PERIOD)
        drawn: np.ndarray = periods * self._before[-1] + self._before[rest]
        return drawn


def _counts(shares: np.ndarray) -> np.ndarray:
    """Rounds the shares of streams for each epoch of a period, by systematic sampling.

    The shares are laid end to end; an epoch draws from a stream as often as one of the points `u, u + 1, u + 2, ...` lies in
    its part. So each count is the share rounded down or up, and all epochs are equally long. The offsets `u` are those of
    van der Corput (1935), which fill the interval evenly at any length, so the averages are exact soon.

    Returns:
        `(PERIOD, streams) int64`.
    """
    ends = np.concatenate([[0.0], np.cumsum(shares)])
    whole = np.round(ends)
    ends = np.where(np.abs(ends - whole) < 1e-6, whole, ends)
    bits = np.arange(PERIOD)[:, None] >> np.arange(PERIOD.bit_length() - 1) & 1
    offsets = bits @ (0.5 ** np.arange(1, PERIOD.bit_length()))
    counts: np.ndarray = np.diff(np.floor(ends + offsets[:, None]).astype(np.int64), axis=1)
    return counts


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

    Where all images are old, or all are new, an epoch uses each once: see `unmixed`.

    Returns:
        An order of indices into `manifest.train_rows()`.

    Raises:
        UsageError: the options contradict each other.
    """
    rows = manifest.train_rows()
    labels = manifest.labels[rows].astype(np.int64)
    is_new = manifest.origins[rows] >= generation
    ratio = parse_mix(mix)
    if ratio is not None and replay is not None:
        raise UsageError(
            f"{option('mix', mix)} and {option('replay', replay)} both set the number of old images in an epoch: give one"
        )
    if is_new.all() or not is_new.any():
        ratio = replay = None
    keys = is_new * len(manifest.classes) + labels
    numbers, sizes = np.unique(keys, return_counts=True)
    of_new, of_class = numbers >= len(manifest.classes), numbers % len(manifest.classes)
    if ratio is None and replay is None and balance in {None, "none"}:
        return Mixed(seed, len(rows), batch_size, _shares(manifest, sizes, of_new, of_class))
    weights, total = _weights(sizes, of_new, of_class, ratio, replay, balance)
    shares = _quotas(weights, total)
    placed = np.arange(len(numbers))
    if (np.abs(shares - weights * total) > ROUNDING * weights * total).any():
        # Neighbours share a rounding: the classes of an origin where origins have fixed counts, else the origins of a class.
        whole_classes = balance == "class" and ratio is None
        shares = weights * total if whole_classes else _whole_origins(weights, total, of_new)
        placed = np.lexsort((of_new, of_class) if whole_classes else (of_class, of_new))
    streams = [_Stream(int(numbers[at]), np.nonzero(keys == numbers[at])[0], float(shares[at])) for at in placed]
    return Mixture(seed, batch_size, streams, _shares(manifest, shares, of_new, of_class))


def unmixed(manifest: Manifest, mix: str | None, replay: float | None, generation: int) -> str:
    """Returns why old and new images are not mixed as asked; empty if they are.

    For example `"--mix 1:1: all 126 training images are old"`.

    Args:
        manifest: the images.
        mix: as in `make_order`.
        replay: as in `make_order`.
        generation: the run's generation.
    """
    if mix in {None, "concat"} and replay is None:
        return ""
    is_new = manifest.origins[manifest.train_rows()] >= generation
    if is_new.any() and not is_new.all():
        return ""
    asked = option("replay", replay) if replay is not None else option("mix", mix)
    return f"{asked}: all {len(is_new):,} training images are {'old' if not is_new.any() else 'new'}"


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
        total = max(round(replay * int(sizes[~of_new].sum())), int(replay > 0)) + int(sizes[of_new].sum())
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


def _whole_origins(weights: np.ndarray, total: int, of_new: np.ndarray) -> np.ndarray:
    """Returns the shares of streams, with a whole number of old images, at least one if any are asked for."""
    shares: np.ndarray = weights * total
    asked = shares[~of_new].sum()
    old = min(max(round(asked), 1), total - 1) if asked > 0 else 0
    for chosen, count in ((~of_new, old), (of_new, total - old)):
        shares[chosen] *= count / max(shares[chosen].sum(), 1e-12)
    return shares


def _shares(manifest: Manifest, shares: np.ndarray, of_new: np.ndarray, of_class: np.ndarray) -> Shares:
    origins = {"old": _exact(shares[~of_new].sum()), "new": _exact(shares[of_new].sum())}
    classes = {name: _exact(shares[of_class == index].sum()) for index, name in enumerate(manifest.classes)}
    return Shares(round(shares.sum()), {name: count for name, count in origins.items() if count}, classes)


def _exact(count: float) -> float:
    """Returns a whole number where only the arithmetic of floats made it another."""
    return round(count) if abs(count - round(count)) < 1e-6 else float(count)
