"""Tests the whole job on real pictures: signed digits if present, else scikit-learn's digits."""

import pytest

from kresume.demo import write_digits
from tests.helpers.paths import REAL_PICTURES
from tests.helpers.runs import run_training

pytestmark = pytest.mark.optimized_graphs


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """Returns a folder with `old`, `new` and `test`.

    It holds the real day-by-day pictures, or the packaged digits in their order.
    """
    real = REAL_PICTURES / "signdigits"
    if real.is_dir():
        return {"old": real / "old", "new": real / "new", "test": real / "eval"}
    folder = tmp_path_factory.mktemp("digits")
    write_digits(folder)
    return {name: folder / name for name in ("old", "new", "test")}


@pytest.mark.one_backend(trains=True)
def test_resuming_with_more_images_gives_a_better_model(story, tmp_path):
    """Resuming with more images gives a better model on all test images and loses nothing on the old."""
    parent = run_training(
        data=[str(story["old"])],
        image_size="16",
        batch_size=32,
        epochs=4,
        out=str(tmp_path / "1"),
        val=[str(story["test"])],
    )
    result = run_training(parent.run, add=[str(story["new"])], lr=1e-3, epochs=4, out=str(tmp_path / "2"))
    before, after = result.before["old"], result.after["old"]
    assert after["images"] == before["images"] > 250
    assert after["accuracy"] > before["accuracy"] + 0.02
    assert after["loss"] < before["loss"]
