"""Provides folders of pictures, a cache for the session, and the backend that KERAS_BACKEND names."""

import atexit
import gc
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import pytest

from kresume.reporter import Reporter
from tests.helpers import forking, quick_graphs, sampled
from tests.helpers.paths import REAL_PICTURES
from tests.helpers.pictures import write_pictures

FLUSH = os.fsync
CACHED = {
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}
"""Makes JAX keep every compiled program, also small ones: the tests build the same small models again and again."""
QUICKLY = "--xla_backend_optimization_level=0"
"""Makes XLA compile without LLVM's optimisation, which took a third of the processor's time of a pass under JAX.

XLA_FLAGS, if it is set, replaces it: `XLA_FLAGS= pytest` runs the tests on optimised programs.
"""


def pytest_configure(config):
    """Shares trained runs, processes to fork from and one JAX compilation cache among all workers.

    JAX_COMPILATION_CACHE_DIR, if it is set, names a folder that stays; else the session's folder is removed at its end.
    """
    if hasattr(config, "workerinput"):
        atexit.register(os._exit, 0)  # the last thing: TensorFlow would wait for each iterator that a test left behind
        return
    os.environ.setdefault("XLA_FLAGS", QUICKLY)
    folder = tempfile.mkdtemp(prefix="kresume-tests-")
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    shared = {forking.FOLDER: "forks", "KRESUME_TEST_STORE": "runs"}
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        os.environ.update(CACHED)
        shared["JAX_COMPILATION_CACHE_DIR"] = "jax"
    for variable, name in shared.items():
        os.environ[variable] = f"{folder}/{name}"
        os.mkdir(os.environ[variable])
    Path(os.environ[forking.FOLDER], forking.SESSION).write_text(str(os.getpid()))


def pytest_sessionstart():
    """Turns the trial before a run off: it would compile every model that a plan is made for. `test_trial` turns it on."""
    from kresume.training import preview, trial

    for module in (preview, trial):
        module.estimate = lambda *arguments, **options: None


LONG = frozenset(
    {
        "test_adapters", "test_added_images", "test_averaged_runs", "test_backup", "test_backup_callbacks",
        "test_backup_feeding", "test_backup_models", "test_backup_promises", "test_code_changes", "test_colab",
        "test_docs", "test_evaluate",
        "test_exact_continuation", "test_export_formats", "test_export_saved_model", "test_fed_as_trained",
        "test_fits_of_script", "test_foreign_parents", "test_freezing", "test_frozen_layers", "test_gated_runs",
        "test_grown_runs", "test_hub", "test_image_dataset", "test_images", "test_inputs", "test_losses",
        "test_one_process", "test_power_cuts", "test_pretrained", "test_rates_restored", "test_real_pictures",
        "test_restore", "test_several_devices", "test_several_hosts", "test_statistics", "test_taught_runs",
        "test_torch", "test_watch", "test_weeks_in_a_row", "test_weight_decay",
    }
)  # fmt: skip
"""Files that take longest."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    """Leaves cases to the long pass, and puts long files first: the last file of a worker should be a short one.

    The order is else that of pytest-randomly. A worker runs whole files (`--dist loadfile`), in this order with
    `--no-loadscope-reorder`.
    """
    sampled.take(config, items)
    items.sort(key=lambda item: item.path.stem not in LONG)


def _seed(name: str) -> None:
    """Seeds Python's `random`, from which layers without a seed draw theirs.

    KRESUME_TEST_SEED changes the draws. pytest-randomly shuffles the tests, but its seeding is off: it would use
    another seed in every session.
    """
    random.seed(f"{os.environ.get('KRESUME_TEST_SEED', '')} {name}")


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef):
    """Seeds each fixture, so that its initial weights do not depend on the test that requests it first."""
    _seed(fixturedef.argname)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item):
    """Seeds each test, so that its initial weights do not depend on the tests before it."""
    _seed(item.nodeid)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Collects what a test left if it took long, and keeps the rest out of later collections.

    Keras and TensorFlow keep some thousand objects of each model. Visiting all of them again, as Python does by itself,
    took a third of the time.
    """
    gc.disable()
    start = time.monotonic()
    done = yield
    if time.monotonic() - start > 0.5:
        gc.collect()
        gc.freeze()
    return done


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """Writes `old/` with 8 and `new/` with 6 pictures of each of three classes; do not modify them."""
    folder = tmp_path_factory.mktemp("pictures")
    write_pictures(folder / "old", 8, 0)
    write_pictures(folder / "new", 6, 100)
    write_pictures(folder / "val", 3, 200)
    return folder


@pytest.fixture(scope="session", autouse=True)
def forked_processes():
    """Forks the processes that run exports; see `helpers/forking.py`."""
    forking.install()


def _build_graphs_as_marked(node):
    if quick_graphs.is_used():
        quick_graphs.build_quickly(optimized=node.get_closest_marker("optimized_graphs") is not None)


@pytest.fixture(scope="module", autouse=True)
def graphs_of_a_file(request):
    """Makes TensorFlow's graphs cheaper, for the fixtures of a file; see `helpers/quick_graphs.py`."""
    _build_graphs_as_marked(request.node)


@pytest.fixture(autouse=True)
def graphs_of_a_test(request, graphs_of_a_file):
    """Makes TensorFlow's graphs cheaper, unless the test or its file is marked `optimized_graphs`."""
    _build_graphs_as_marked(request.node)


@pytest.fixture(scope="session", autouse=True)
def no_flushing():
    """Leaves the flushes to the disk out: no test ends the machine, and a process's end loses nothing that it wrote.

    Each takes milliseconds, and a tiny training has forty. `test_snapshot` and `test_power_cuts` hold their order.
    """
    os.fsync = lambda descriptor: None
    yield
    os.fsync = FLUSH


@pytest.fixture
def flushing(monkeypatch):
    """Flushes to the disk, for tests of what a power cut leaves."""
    monkeypatch.setattr(os, "fsync", FLUSH)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Sends decoded pictures to a cache of this session."""
    os.environ["KRESUME_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def own_precision():
    """Resets the precision policy after each test."""
    yield
    if "keras" in sys.modules:
        sys.modules["keras"].config.set_dtype_policy("float32")


@pytest.fixture(autouse=True)
def one_backend_makes_no_variables(request, monkeypatch):
    """Fails a test marked `one_backend` that makes a variable of Keras: its outcome may depend on the backend."""
    mark = request.node.get_closest_marker("one_backend")
    if mark is None or mark.kwargs.get("trains") or "keras" not in sys.modules:
        return

    def refused(*arguments, **options):
        pytest.fail("this test makes a variable of Keras: remove the mark `one_backend`")

    monkeypatch.setattr(sys.modules["keras.src.backend.common.variables"].Variable, "__init__", refused)


@pytest.fixture
def quiet():
    """Returns a reporter without output."""
    return Reporter(quiet=True)


@pytest.fixture
def workplace(tmp_path, monkeypatch, pictures):
    """Changes to an empty directory that contains `old`, `new` and `val`."""
    for name in ("old", "new", "val"):
        shutil.copytree(pictures / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def real_data():
    """Returns the real pictures: `KRESUME_TEST_DATA`, else `../shared/data` beside the repository."""
    if not (REAL_PICTURES / "signdigits").is_dir():
        pytest.skip(f"no real pictures at {REAL_PICTURES}: set KRESUME_TEST_DATA")
    return REAL_PICTURES
