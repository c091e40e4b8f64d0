"""Tests what one run leaves for the next one of the same process, as in a notebook."""

import os
import sys
from pathlib import Path

import keras
import pytest

import kresume
from kresume.images.waiting import Waiting
from tests.helpers import forking
from tests.helpers.runs import TINY, assert_same_bytes, result_arrays, run_training


def test_the_precision_of_a_run_is_that_run_s(tmp_path, pictures):
    """The next run and the layers of the user are as wide as before, also after a plan and an error."""
    data = [str(pictures / "old")]
    before = keras.config.dtype_policy().name
    kresume.plan(None, data=data, precision="mixed_bfloat16", quiet=True, trial=False, **TINY)
    assert keras.config.dtype_policy().name == before
    with pytest.raises(kresume.KresumeError):
        kresume.plan(None, data=data, precision="mixed_bfloat16", quiet=True, monitor="none", add=["nowhere"], **TINY)
    assert keras.config.dtype_policy().name == before
    run = run_training(data=data, precision="mixed_bfloat16", out=str(tmp_path / "narrow"), **{**TINY, "epochs": 1}).run
    assert keras.config.dtype_policy().name == before
    model = keras.saving.load_model(f"{run}/model.keras")
    assert "mixed_bfloat16" in {layer.dtype_policy.name for layer in model._flatten_layers()}
    run = run_training(data=data, out=str(tmp_path / "wide"), **{**TINY, "epochs": 1}).run
    model = keras.saving.load_model(f"{run}/model.keras")
    assert {layer.dtype_policy.name for layer in model._flatten_layers()} == {before}


def test_deterministic_kernels_train_and_repeat(tmp_path, pictures):
    """`--exact on` trains under both backends; TensorFlow has no clock then, and no share of waiting."""
    runs = []
    for name in ("one", "two"):
        words = [
            sys.executable,
            "-m",
            "kresume",
            "train",
            "--data",
            str(pictures / "old"),
            "--out",
            name,
            "--exact",
            "on",
        ]
        words += ["--no-trial", "--image-size", "10", "--epochs", "1", "--batch-size", "5"]
        forking.run(words, check=True, cwd=tmp_path, env=dict(os.environ))
        runs.append(result_arrays(tmp_path / name))
    assert_same_bytes(*runs)
    unknown = Waiting(None)
    unknown.step_done(1)
    unknown.step_done(2)
    assert unknown.share() is None


@pytest.mark.one_backend(trains=True)
@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts open files as Linux lists them")
def test_a_run_leaves_no_file_of_the_cache_open(tmp_path, pictures):
    """A notebook that trains week after week keeps none of its runs' caches open, so it does not run out of files."""
    cache = str(tmp_path / "cache")
    arguments = {**TINY, "epochs": 1, "cache": cache, "data": [str(pictures / "old")], "quiet": True}
    for number in range(2):
        kresume.resume(None, out=str(tmp_path / f"run-{number}"), **arguments)
        opened = [os.path.realpath(file) for file in Path("/proc/self/fd").iterdir()]
        assert not [file for file in opened if file.startswith(os.path.realpath(cache))]
