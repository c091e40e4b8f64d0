"""The story on real pictures: signed digits where they are, scikit-learn's written digits elsewhere."""

import os
from pathlib import Path

import pytest

from kresume.demo import write_digits
from tests.support import run_training


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """A folder with `old`, `new` and `test`: the real day-by-day story, or the packaged digits in their order."""
    default = Path(__file__).parents[2] / "shared" / "data"
    real = Path(os.environ.get("KRESUME_TEST_DATA", default)) / "signdigits"
    if real.is_dir():
        return {"old": real / "old", "new": real / "new", "test": real / "eval"}
    folder = tmp_path_factory.mktemp("digits")
    write_digits(folder)
    return {name: folder / name for name in ("old", "new", "test")}


def test_resuming_with_more_images_gives_a_better_model(story, tmp_path):
    """The parent on the test pictures, and the run that was given the new ones: better on all, nothing lost on the old."""
    parent = run_training(
        data=[str(story["old"])],
        image_size="24",
        batch_size=32,
        epochs=6,
        out=str(tmp_path / "1"),
        val=[str(story["test"])],
    )
    result = run_training(parent.run, add=[str(story["new"])], lr=1e-3, epochs=6, out=str(tmp_path / "2"))
    before, after = result.before["old"], result.after["old"]
    assert after["images"] == before["images"] > 250
    assert after["accuracy"] > before["accuracy"] + 0.02
    assert after["loss"] < before["loss"]
