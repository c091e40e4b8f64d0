"""Tests models for unknown loaders: each image is resampled in one of two ways, by (seed, position)."""

import numpy as np
import pytest

from kresume import runs
from kresume.images import pipeline
from kresume.images.manifest import Manifest
from kresume.images.order import Order
from kresume.images.reader import PictureReader
from kresume.images.variation import Varied, draw_half, other_spec
from kresume.values.decode_spec import DecodeSpec
from tests.helpers.runs import kill_at_every_snapshot, result_arrays, run_training

TINY = {"model": "convnet", "image_size": 8, "batch_size": 6, "epochs": 2, "lr": 1e-3}


@pytest.mark.one_backend
def test_the_draw_is_pinned_fair_and_depends_on_the_position_alone():
    """The draw equals a literal, is fair, and depends on seed and position alone.

    Later versions must continue older runs. Batches of any size draw alike.
    """
    assert draw_half(0, 0, 16).astype(int).tolist() == PINNED
    assert draw_half(7, 100, 50).tolist() == draw_half(7, 0, 150)[100:].tolist()
    for seed in (0, 1, 2**32 - 1):
        assert 0.48 < draw_half(seed, 10**9, 10_000).mean() < 0.52
    assert 0.4 < (draw_half(0, 0, 1000) == draw_half(1, 0, 1000)).mean() < 0.6


PINNED = [1, 0, 0, 1, 0, 0, 0, 1, 0, 1, 0, 1, 1, 1, 1, 1]


@pytest.mark.one_backend
def test_the_second_way_is_that_of_other_loaders():
    assert other_spec(DecodeSpec(8, 8)).interpolation == "bilinear"
    assert other_spec(DecodeSpec(8, 8, "crop", "antialias")) == DecodeSpec(8, 8, "crop", "bilinear")
    assert other_spec(DecodeSpec(8, 8, "pad", "bilinear")) == DecodeSpec(8, 8, "pad", "area")


@pytest.fixture(scope="module")
def varied_run(tmp_path_factory, pictures):
    folder = tmp_path_factory.mktemp("varied")
    return run_training(data=[str(pictures / "old")], out=str(folder / "run"), vary_interpolation=True, **TINY)


@pytest.mark.one_backend(trains=True)
def test_every_batch_holds_both_and_starts_anywhere(varied_run):
    """Every batch holds both ways as drawn; a dataset from the third step equals the rest of the first."""
    manifest = Manifest.read(runs.open_run(varied_run.run).manifest)
    rows, spec = manifest.train_rows(), DecodeSpec(8, 8)
    one, other = (PictureReader(manifest, each, None) for each in (spec, other_spec(spec)))
    order = Order(3, len(rows), 6)

    def batches(start, count):
        data = pipeline.training_dataset(
            one, rows, manifest.labels[rows], order, start_step=start, image_size=(8, 8), pixels=_as_they_are, augment=None,
            varied=Varied(other, 5),
        )  # fmt: skip
        return [np.asarray(images) for images, _ in data.take(count)]

    found = batches(0, 5)
    for step, images in enumerate(found):
        drawn, indices = draw_half(5, 6 * step, 6), rows[order.batch(step)]
        expected = np.where(drawn[:, None, None, None], other(indices), one(indices))
        np.testing.assert_array_equal(images, expected)
    assert (one(rows) != other(rows)).any()
    np.testing.assert_array_equal(batches(2, 3), found[2:])


def _as_they_are(images):
    return images


@pytest.mark.one_backend(trains=True)
def test_a_run_draws_and_says_so(varied_run, pictures, tmp_path):
    """A run with the option trains other weights, scores the same pictures, and records the option."""
    plain = run_training(data=[str(pictures / "old")], out=str(tmp_path / "plain"), **TINY)
    one, other = (result_arrays(runs.open_run(each.run).path) for each in (plain, varied_run))
    assert any(one[name].tobytes() != other[name].tobytes() for name in one)
    record = runs.open_run(varied_run.run).record.as_dict()
    assert record["given"]["vary_interpolation"] is True
    assert record["card"]["interpolation"] == "area"


@pytest.mark.one_backend(trains=True)
def test_it_continues_exactly(tmp_path, pictures):
    """A run killed in the middle of an epoch continues to equal bytes."""
    arguments = {"data": [str(pictures / "old")], "vary_interpolation": True, **TINY}
    kill_at_every_snapshot(tmp_path, (2,), **arguments)
