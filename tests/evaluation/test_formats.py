"""Tests that `kresume eval` takes every format of checkpoint that `--from` accepts: goldens of the table of formats."""

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kresume.checkpoints.read import read_checkpoint, recognise
from kresume.evaluation.evaluate import evaluate
from tests.helpers.paths import GOLDENS, ROOT

pytestmark = pytest.mark.one_backend(trains=True)


def golden_cases():
    """Returns goldens of the table in the docs as (path, network): one of each format, writer and kind of content."""
    spec = importlib.util.spec_from_file_location("make_docs", ROOT / "scripts" / "make_docs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    cases = {}
    for path, network, _ in module.golden_cases():
        key = (
            recognise(str(path)),
            path.relative_to(GOLDENS).parts[0],
            path.suffix,
            path.name.rpartition("-")[2] == "weights",
        )
        cases.setdefault(key, (path.relative_to(GOLDENS), network))
    return list(cases.values())


@pytest.fixture(scope="module")
def pictures12(tmp_path_factory):
    """Writes two pictures of noise for each of three classes."""
    folder, rng = tmp_path_factory.mktemp("noise"), np.random.default_rng(0)
    for label in "abc":
        (folder / label).mkdir()
        for index in range(2):
            Image.fromarray(rng.integers(0, 256, (12, 12, 3)).astype(np.uint8)).save(folder / label / f"{index}.png")
    return folder


def loss_of(path, network, pictures):
    """Evaluates a golden; a checkpoint without an architecture gets the function that builds it."""
    own = (GOLDENS / path).parent.joinpath("expected.json").is_file() and path.parts[0].startswith(
        ("keras", "tf_keras")
    )
    module = "tests.golden.specs" if own and len(path.parts) == 3 else "tests.helpers.golden_models"
    model = {} if read_checkpoint(GOLDENS / path).architecture else {"model": f"{module}:{network}"}
    given = {"classes": ("a", "b", "c"), "pixels": "0-1", "cache": "off"}
    found = evaluate(GOLDENS / path, pictures, **given, **model).scores["all"]
    assert found["images"] == 6
    return found["loss"]


@pytest.mark.parametrize(("path", "network"), golden_cases(), ids=str)
def test_every_format_is_evaluated(path, network, pictures12):
    """It gives three probabilities for every image, with a loss near that of guessing: the goldens learned noise."""
    loss = loss_of(path, network, pictures12)
    assert math.isfinite(loss)
    assert abs(loss - math.log(3)) < 0.5


def test_a_saved_model_without_a_signature_is_read_as_a_checkpoint(pictures12):
    """It has nothing to run, but variables and an architecture: the scores are those of the weights file beside it."""
    losses = {loss_of(Path("tf_keras-2.21.0", name), "transfer", pictures12) for name in NAMES}
    assert len(losses) == 1


NAMES = ("transfer-adam", "saved-transfer-adam")
