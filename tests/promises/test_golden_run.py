"""Tests that an interrupted run of version 0.1.0 continues and extends as it did then."""

import json
import re
import shutil

import keras
import numpy as np
import pytest
from safetensors.numpy import load_file

from kresume.backend import fingerprint
from tests.helpers.golden_run import HERE, continue_and_extend
from tests.helpers.paths import GOLDENS
from tests.helpers.runs import assert_same_bytes, move

pytestmark = pytest.mark.optimized_graphs

GOLDEN = GOLDENS / "runs" / "0.1.0"
MACHINE = ("cpu", "cpu_kind", "threads", "backend", "device", "devices")
LIBRARIES = ("keras", "tensorflow", "jax", "jaxlib", "numpy")


def same_arithmetic(one, other):
    """Returns True if two fingerprints promise equal bytes: the same processor, threads and libraries.

    `other` may be one of 0.1.0, which did not record the kind of processor; cloud machines of several kinds share a name.
    """
    packages = all(one["packages"].get(name) == other["packages"].get(name) for name in LIBRARIES)
    return packages and all(one.get(name) == other.get(name) for name in MACHINE)


MENDED = {"before"}
"""Fields whose values were wrong: 0.1.0 scored the parent of a run with averages (EMA) with its raw weights."""
WORDS = {"reason", "plan"}
"""Fields of `run.json` that are sentences for a reader. Their words may change."""


def assert_alike(found, expected, where, exact):
    """Asserts equal JSON; computed numbers may differ in the last digits if the arithmetic differs."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for name in expected.keys() - WORDS - MENDED:
            assert_alike(found[name], expected[name], f"{where}.{name}", exact)
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for index, pair in enumerate(zip(found, expected, strict=True)):
            assert_alike(*pair, f"{where}[{index}]", exact)
    elif where.endswith("optimizer.config.name"):  # counts the optimizers that the process has built
        assert found.rstrip("_0123456789") == expected.rstrip("_0123456789"), where
    elif where.endswith("parent.digest") and not exact:  # of weights that the parent has computed
        assert re.fullmatch("[0-9a-f]{64}", found), where
    elif isinstance(expected, float) and not exact:
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-6), where
    else:
        assert found == expected, where


def test_a_run_of_the_first_version_continues_and_extends_to_equal_bytes(tmp_path, monkeypatch):
    """A run of 0.1.0 continues and extends to the arrays and files that 0.1.0 made.

    The files are `run.json`, `metrics.jsonl` and the manifest. On the same machine they have equal bytes.
    """
    golden = GOLDEN / keras.backend.backend()
    expected = json.loads((golden / "expected.json").read_text())
    for name in ("old", "new"):
        shutil.copytree(GOLDEN / name, tmp_path / name)
    shutil.copy(GOLDEN / "model.py", tmp_path)
    shutil.copytree(golden / "interrupted", tmp_path / "first")
    move(tmp_path / "first", HERE, str(tmp_path))
    monkeypatch.chdir(tmp_path)
    found = json.loads(json.dumps(continue_and_extend(tmp_path, tmp_path)))
    exact = same_arithmetic(fingerprint.fingerprint(), expected.pop("fingerprint"))
    del found["fingerprint"]
    for run in ("continued", "extended"):
        assert_alike(found[run], expected[run], run, exact)
        arrays, then = load_file(tmp_path / f"{run}.safetensors"), load_file(golden / f"{run}.safetensors")
        if exact:
            assert_same_bytes(arrays, then)
        else:
            assert arrays.keys() == then.keys()
            for name, array in then.items():
                np.testing.assert_allclose(arrays[name], array, rtol=1e-4, atol=1e-5, err_msg=f"{run}: {name}")
