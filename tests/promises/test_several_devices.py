"""Several devices train as one does: JAX with eight virtual devices of a CPU, beside the same runs on one device.

TensorFlow trains on one device, through a strategy where that is a TPU: a strategy of one CPU stands for it.
"""

import json
import os
import shutil
import sys

import numpy as np
import pytest

from kresume.backend import tpu
from kresume.backend.selection import describe_share, devices_for
from kresume.errors import UsageError
from tests.helpers import forking
from tests.helpers.paths import ROOT
from tests.helpers.runs import assert_same_bytes, lines_without_time, result_arrays

through_jax = pytest.mark.skipif(os.environ.get("KERAS_BACKEND") != "jax", reason="devices share a batch through JAX")


@pytest.fixture(scope="module")
def trained_on_both(tmp_path_factory, pictures):
    """Trains the runs of `helpers/several_devices.py` in one process and returns their folder."""
    folder = tmp_path_factory.mktemp("devices")
    for name in ("old", "new"):
        shutil.copytree(pictures / name, folder / name)
    forking.run([sys.executable, "-m", "tests.helpers.several_devices", str(folder)], check=True, cwd=ROOT)
    return folder


@pytest.mark.one_backend
def test_a_strategy_of_tensorflow_trains_to_equal_bytes(tmp_path, pictures):
    """As on one core of a TPU: new, continued, extended with averages and held slots, grown in 16 bits."""
    for name in ("old", "new"):
        shutil.copytree(pictures / name, tmp_path / name)
    forking.run([sys.executable, "-m", "tests.helpers.on_a_strategy", str(tmp_path)], check=True, cwd=ROOT)
    for name in ("on", "extended-on", "grown-on"):
        expected = result_arrays(tmp_path / f"{name}-cpu")
        assert_same_bytes(expected, result_arrays(tmp_path / f"{name}-tpu"))
    assert_same_bytes(result_arrays(tmp_path / "on-tpu"), result_arrays(tmp_path / "killed-on-tpu"))
    assert json.loads((tmp_path / "on-tpu" / "run.json").read_text())["fingerprint"]["device"] == "tpu"


@pytest.mark.one_backend
def test_a_tpu_that_is_not_there_is_an_error_in_words(monkeypatch):
    """TensorFlow's reason, and the other backend."""
    import tensorflow as tf

    def nothing(tpu):
        raise ValueError("Please provide a TPU Name to connect to.")

    monkeypatch.setattr(tf.distribute.cluster_resolver, "TPUClusterResolver", nothing)
    with pytest.raises(UsageError, match=r"--device tpu: .*Please provide a TPU Name.*--backend jax uses all cores"):
        tpu.use_tpu()


@through_jax
@pytest.mark.parametrize(
    ("one", "other"),
    [("on-1", "on-8"), ("on-8", "from-8-to-1"), ("on-1", "from-1-to-8"), ("extended-on-1", "extended-on-8")],
)
def test_the_count_of_devices_changes_the_last_digits_only(trained_on_both, one, other):
    """A run has the steps, weights and scores of one device, whatever the count, also if it changes in between.

    The extension uses averages, the parent's answers, gates, and layers that are frozen for its first epoch. Five
    validation images are fewer than a batch of eight.
    """
    lines, others = lines_without_time(trained_on_both / one), lines_without_time(trained_on_both / other)
    for mine, theirs in zip(lines, others, strict=True):
        for name in ("epoch", "step", "position", "lr"):
            assert mine[name] == theirs[name]
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        assert mine["all"] == pytest.approx(theirs["all"], rel=1e-4)
    arrays, others = result_arrays(trained_on_both / one), result_arrays(trained_on_both / other)
    assert sorted(arrays) == sorted(others)
    for name, array in arrays.items():
        np.testing.assert_allclose(array, others[name], rtol=1e-4, atol=1e-5, err_msg=name)


@through_jax
def test_eight_devices_continue_to_equal_bytes(trained_on_both):
    """A run killed on eight devices ends with equal bytes on eight; on another count it says that digits may differ."""
    assert_same_bytes(result_arrays(trained_on_both / "on-8"), result_arrays(trained_on_both / "from-8-to-8"))
    events = {name: (trained_on_both / name / "events.jsonl").read_text() for name in ("from-8-to-8", "from-8-to-1")}
    assert "continued elsewhere" not in events["from-8-to-8"]
    assert "devices 8 -> 1" in events["from-8-to-1"]
    assert json.loads((trained_on_both / "on-8" / "run.json").read_text())["fingerprint"]["devices"] == 8


@pytest.mark.one_backend
@pytest.mark.parametrize(
    ("batch_size", "count", "found", "ways"),
    [
        (4, 3, 4, "give --batch-size 3 or 6, or --devices 2 or 4"),
        (12, 8, 8, "give --batch-size 8 or 16, or --devices 6"),
        (2, 4, 8, "give --batch-size 4, or --devices 2"),
    ],
)
def test_a_batch_that_devices_cannot_share_is_an_error(batch_size, count, found, ways):
    """The error names the nearest batches and counts of devices on both sides."""
    with pytest.raises(UsageError, match=f"{batch_size} images do not divide by {count}: {ways}$"):
        devices_for(batch_size, count, found)


@pytest.mark.one_backend
@pytest.mark.parametrize(
    ("batch_size", "found", "said"),
    [
        (32, 8, "8 share each batch, 4 images each"),
        (12, 8, "6 of 8 share each batch, because 12 images do not divide by 8: --batch-size 8 or 16 uses all"),
        (7, 4, "1 of 4 takes each batch, because 7 images do not divide by 4: --batch-size 4 or 8 uses all"),
    ],
)
def test_idle_devices_are_said_before_the_start(batch_size, found, said):
    """Without `--devices` as many share a batch as divide it, and the line says how all would."""
    assert describe_share(batch_size, devices_for(batch_size, None, found), found) == said
