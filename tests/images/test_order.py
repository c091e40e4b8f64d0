"""Tests that the order is a pure function of (seed, epoch): an endless sequence of permutations."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kresume.images.order import Order, permutation

pytestmark = pytest.mark.one_backend

sizes = st.integers(1, 60)


def test_the_permutation_never_changes():
    """The permutation equals a literal: any version of kresume and NumPy must continue older runs."""
    assert permutation(0, 0, 10).tolist() == [0, 2, 9, 1, 8, 5, 4, 3, 6, 7]
    assert permutation(7, 3, 10, stream=2).tolist() == [3, 0, 5, 1, 2, 4, 8, 7, 9, 6]


@given(st.integers(0, 2**62), st.integers(0, 1000), sizes)
def test_every_epoch_is_a_permutation(seed, epoch, n):
    """Every epoch holds each image exactly once."""
    assert sorted(permutation(seed, epoch, n).tolist()) == list(range(n))


@given(st.integers(0, 99), sizes, st.integers(1, 40), st.integers(0, 50))
@settings(deadline=None)
def test_seeking_equals_streaming(seed, n, batch_size, step):
    """The batch at a step equals the one reached by streaming from the start."""
    order = Order(seed, n, batch_size)
    row = np.concatenate([permutation(seed, epoch, n) for epoch in range((step + 1) * batch_size // n + 1)])
    np.testing.assert_array_equal(order.batch(step), row[step * batch_size : (step + 1) * batch_size])


@given(sizes, st.integers(1, 40), st.integers(0, 20))
def test_an_epoch_ends_when_every_image_has_come(n, batch_size, epoch):
    """`epoch_end` is the first step count by which epoch + 1 permutations were drawn."""
    end = Order(0, n, batch_size).epoch_end(epoch)
    assert end * batch_size >= (epoch + 1) * n > (end - 1) * batch_size


def test_epochs_and_streams_differ():
    """Another epoch, seed or stream gives another permutation."""
    rows = [permutation(0, 0, 100), permutation(0, 1, 100), permutation(1, 0, 100), permutation(0, 0, 100, stream=1)]
    assert len({row.tobytes() for row in rows}) == 4


@pytest.mark.parametrize(("n", "batch_size"), [(0, 4), (4, 0)])
def test_an_empty_order_is_refused(n, batch_size):
    """An order without images, or with an empty batch, is an error of the caller."""
    with pytest.raises(ValueError, match="at least one image"):
        Order(0, n, batch_size)
