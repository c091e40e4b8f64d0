"""Tests that a finished process exits at once, and that a native crash is reported at the next start."""

import faulthandler
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import kresume
from kresume import crash, runs
from kresume.backend import fingerprint
from kresume.images.augment import augmenter
from kresume.options.resolve import from_arguments
from kresume.reporter import Reporter
from kresume.reports.contact_sheet import draw_sheet
from kresume.reports.data import scan
from kresume.training.resume import train
from kresume.values.decode_spec import DecodeSpec
from tests.helpers import forking
from tests.helpers.pictures import write_pictures
from tests.helpers.runs import TINY, run_training


@pytest.fixture
def autotuned(monkeypatch):
    """Records, for each dataset iterated in this process, if its autotuner was on."""
    seen = []
    iterate = tf.data.Dataset.__iter__

    def noting(data):
        seen.append(data.options().autotune.enabled is not False)
        return iterate(data)

    monkeypatch.setattr(tf.data.Dataset, "__iter__", noting)
    return seen


def small_model(classes=3):
    layers = [keras.Input((12, 12, 3)), keras.layers.Flatten(), keras.layers.Dense(classes, "softmax")]
    model = keras.Sequential(layers)
    model.compile("sgd", "sparse_categorical_crossentropy")
    return model


def test_training_and_scoring_tune_nothing(autotuned, pictures, tmp_path):
    """Training and scoring iterate no dataset with tf.data's autotuner.

    The autotuner delays the end of an iterator by up to a minute.
    """
    run_training(data=[str(pictures / "old")], model="convnet", out=str(tmp_path / "run"), **TINY)
    assert autotuned
    assert not any(autotuned)


def test_datasets_for_a_users_own_fit_tune_nothing(autotuned, tmp_path):
    """Datasets for a user's fit have no autotuner: both splits of `image_dataset`, maps, `resumable`."""
    folder = write_pictures(tmp_path / "old", 6, 0)
    options = {"validation_split": 0.3, "subset": "both", "image_size": (12, 12), "batch_size": 4}
    training, validation = kresume.image_dataset(folder, cache=None, verbose=False, **options)
    small_model().fit(training, validation_data=validation, epochs=1, shuffle=False, verbose=0)
    next(iter(training.map(lambda image, label: (image, label, 1.0))))
    images = np.random.default_rng(0).random((8, 12, 12, 3), np.float32)

    def from_position(position):
        data = tf.data.Dataset.from_tensor_slices((images, np.zeros(8, np.int32))).batch(4).skip(position % 2)
        return data.map(lambda image, label: (image / 2, label), num_parallel_calls=tf.data.AUTOTUNE).prefetch(-1)

    small_model().fit(kresume.resumable(from_position, 2), epochs=2, shuffle=False, verbose=0)
    assert len(autotuned) >= 6
    assert not any(autotuned)


@pytest.mark.one_backend(trains=True)
def test_a_contact_sheet_tunes_nothing(autotuned, pictures, tmp_path, quiet):
    """A contact sheet, whose augmentation runs in tf.data, has no autotuner either."""
    manifest = scan([str(pictures / "old")], quiet).manifest
    draw_sheet(manifest, DecodeSpec(12, 12), augmenter("light", 0), tmp_path / "sheet.png")
    assert autotuned == [False]


@pytest.mark.one_backend
def test_every_file_that_makes_a_dataset_turns_the_autotuner_off(request):
    """Every module that makes a dataset turns the autotuner off."""
    sources = Path(request.config.rootpath, "kresume").rglob("*.py")
    texts = {path.name: path.read_text(encoding="utf-8") for path in sources}
    makers = {name for name, text in texts.items() if "tf.data.Dataset." in text or "tf.data.TFRecordDataset(" in text}
    assert {"pipeline.py", "stream.py", "image_dataset.py", "graph.py"} <= makers
    off = ("without_autotuner(", "autotune.enabled = False")
    assert [name for name in makers if not any(word in texts[name] for word in off)] == []


@pytest.mark.one_backend
def test_the_last_collection_has_nothing_to_walk():
    """The final garbage collection is empty, because the objects are frozen after all other exit hooks.

    After TensorFlow it took a second.
    """
    script = (
        "import atexit, gc; atexit.register(lambda: print('frozen', gc.get_freeze_count() > 0))\n"
        "from kresume.cli import main; main(['--version'])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "frozen True"


DYING = """
import faulthandler, os
import keras

@keras.saving.register_keras_serializable("dying")
class Dying(keras.Model):
    def fit(self, *arguments, **options):
        if os.environ.get("DIE"):
            faulthandler._sigsegv()
        return super().fit(*arguments, **options)

def build(num_classes, image_size):
    inputs = keras.Input((*image_size, 3))
    outputs = keras.layers.Dense(num_classes, "softmax")(keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(inputs)))
    return Dying(inputs, outputs)
"""


def command(*arguments, **environment):
    """Runs the command line in its own process, with no other fault handler."""
    variables = {**os.environ, "KERAS_BACKEND": keras.config.backend(), **environment}
    variables.pop("PYTHONFAULTHANDLER", None)
    words = [sys.executable, "-m", "kresume", *map(str, arguments)]
    return forking.run(words, env=variables)


@pytest.mark.one_backend(trains=True)
def test_the_next_start_says_that_the_process_died_in_native_code(pictures, tmp_path, capsys):
    """After a segmentation fault inside `fit`, the next start names the trace and a remedy, and continues."""
    (tmp_path / "dying.py").write_text(DYING)
    run, model = tmp_path / "run", f"{tmp_path / 'dying.py'}:build"
    options = {"data": pictures / "old", "model": model, "out": run, **TINY}
    words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)]
    died = command("train", *words, "--no-trial", DIE="1")  # else it would die before there is a run
    assert died.returncode == -11, died.stderr
    trace = (run / crash.TRACE).read_text()
    assert "Segmentation fault" in trace
    assert "dying.py" in trace
    arguments = {**options, "data": [str(pictures / "old")], "out": str(run)}
    train(from_arguments(None, arguments), Reporter())
    told = " ".join(capsys.readouterr().err.split())
    assert f"died in native code (Segmentation fault), not in Python: its trace is {run / 'native-trace-1.txt'}" in told
    way = {"tensorflow": "TF_ENABLE_ONEDNN_OPTS=0", "jax": "--backend tensorflow"}[keras.config.backend()]
    assert way in told
    assert runs.open_run(run).finished
    assert [event["trace"] for event in runs.open_run(run).events("died in native code")] == ["native-trace-1.txt"]
    assert (run / "native-trace-1.txt").read_text() == trace
    assert not (run / crash.TRACE).exists()


TRACED = """
import faulthandler, os, sys
from pathlib import Path
from kresume import crash
folder, way = Path(sys.argv[1]), sys.argv[2]
if way == "theirs":
    faulthandler.enable()
with crash.traced(folder):
    assert (folder / crash.TRACE).is_file() == (way != "theirs")
    if way == "abort":
        os.abort()
    if way == "error":
        raise SystemExit(3)
assert faulthandler.is_enabled() == (way == "theirs")
"""


@pytest.mark.parametrize(("way", "code"), [("abort", -6), ("error", 3), ("end", 0), ("theirs", 0)])
@pytest.mark.one_backend
def test_only_a_death_in_native_code_leaves_a_trace(tmp_path, way, code):
    """An abort leaves a trace; an error and a normal end do not; a foreign fault handler is kept."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONFAULTHANDLER"}
    done = subprocess.run(
        [sys.executable, "-c", TRACED, tmp_path, way], env=environment, capture_output=True, check=False
    )
    assert done.returncode == code, done.stderr
    died = crash.found(tmp_path)
    assert (died is not None and died.reason) == ("Aborted" if way == "abort" else False)
    assert crash.found(tmp_path) is None
    assert [path.name for path in tmp_path.iterdir()] == (["native-trace-1.txt"] if way == "abort" else [])


@pytest.mark.one_backend(trains=True)
def test_a_backup_folder_tells_the_death_of_its_process(tmp_path, capsys):
    """A backup folder keeps the trace of a death, and the next start says how to choose another backend."""
    (tmp_path / crash.TRACE).write_text("Fatal Python error: Bus error\n\nThread 0x1 (most recent call first):\n")
    images = np.zeros((4, 12, 12, 3), np.float32)
    callback = kresume.BackupAndRestore(tmp_path, delete_checkpoint=False)
    small_model().fit(images, np.zeros(4), epochs=1, callbacks=[callback], verbose=0)
    told = " ".join(capsys.readouterr().err.split())
    assert "died in native code (Bus error)" in told
    assert "KERAS_BACKEND=" in told
    assert (tmp_path / "native-trace-1.txt").is_file()


@pytest.mark.one_backend
def test_a_trace_of_a_fit_that_raised_gives_way_to_the_next(tmp_path, monkeypatch):
    """In a notebook a `fit` may raise and another one begin: the first file is closed, the second handler stays."""
    monkeypatch.setitem(sys.modules, crash.NOTEBOOK, sys)
    was = faulthandler.is_enabled()
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    first, second = crash.Trace(tmp_path / "first"), crash.Trace(tmp_path / "second")
    try:
        first.begin()
        held = first._file
        second.begin()
        assert held.closed
        first.end()
        assert faulthandler.is_enabled()
        assert (tmp_path / "second" / crash.TRACE).exists()
        second.end()
        assert not (tmp_path / "second" / crash.TRACE).exists()
    finally:
        if was:
            faulthandler.enable(sys.__stderr__)


@pytest.mark.one_backend
def test_a_child_process_that_died_in_native_code_is_named_so():
    """A child process killed by a signal of native code is reported with that signal.

    It prints nothing itself. Other exit codes keep the child's last words.
    """
    assert "SIGSEGV" in crash.death(-11)
    assert "SIGABRT" in crash.death(134)
    assert [crash.death(code) for code in (0, 1, 3, -9, -15)] == [None] * 5


def test_other_kernels_are_another_machine(monkeypatch):
    """Other kernels are a difference of the fingerprint under TensorFlow.

    The remedy after a death in native code changes last digits.
    """
    monkeypatch.delenv("TF_ENABLE_ONEDNN_OPTS", raising=False)
    before = fingerprint.fingerprint()
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
    expected = ["onednn None -> off"] if keras.config.backend() == "tensorflow" else []
    assert fingerprint.differences(before, fingerprint.fingerprint()) == expected


NAME = "Intel(R) Xeon(R) CPU @ 2.20GHz"
INTEL = f"processor\t: 0\ncpu family\t: 6\nmodel\t\t: {{}}\nmodel name\t: {NAME}\nflags\t\t: fpu smep {{}}\n\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd {}\nCPU part\t: {}\n\n"


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        (INTEL.format(85, "avx2 avx512f"), INTEL.format(85, "avx2 avx512f md_clear"), []),
        (
            INTEL.format(85, "avx2 avx512f"),
            INTEL.format(79, "avx2"),
            ["another kind of processor, without model-85, avx512f and with model-79"],
        ),
        (
            INTEL.format(79, "avx2"),
            INTEL.format(79, "avx2 avx512f avx512bw avx512cd avx512dq avx512vl"),
            ["another kind of processor, with avx512bw, avx512cd, avx512dq, avx512f and 1 more"],
        ),
        (
            ARM.format("fphp", "0xd0c"),
            ARM.format("fphp sve2", "0xd4f"),
            ["another kind of processor, without part-0xd0c and with part-0xd4f, sve2"],
        ),
        ("", INTEL.format(79, "avx2"), []),  # recorded where it is not known, or by an earlier version
    ],
)
@pytest.mark.one_backend
def test_processors_of_one_name_are_told_apart(tmp_path, monkeypatch, before, after, told):
    """Clouds give one name to several generations, whose last digits differ."""
    prints = []
    for text in (before, after):
        (tmp_path / "cpuinfo").write_text(text)
        monkeypatch.setattr(fingerprint, "CPUINFO", tmp_path / "cpuinfo")
        fingerprint._fixed_fingerprint.cache_clear()
        prints.append({**fingerprint._fixed_fingerprint(), "cpu": "the same"})
    monkeypatch.undo()
    fingerprint._fixed_fingerprint.cache_clear()
    assert fingerprint.differences(*prints) == told
