"""Tests that a continued run uses what JAX compiled before, and that nothing in the archive can fail or change it."""

import shutil

import keras
import pytest

from kresume.backend import programs
from kresume.training.loop.session import Session
from tests.helpers.runs import TINY, assert_same_bytes, result_arrays, run_training, stopped_by, trained

STEP = "jit_train_step"
"""A part of the name that Keras's training step has as a program of JAX."""


@pytest.fixture
def new_process(monkeypatch):
    """Returns a function that makes JAX forget its compilation cache: a new process has none."""
    if keras.config.backend() != "jax":
        pytest.skip("TensorFlow keeps no programs")
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    ending = ("min_compile_time_secs", "min_entry_size_bytes", "enable_xla_caches")
    names = ["jax_compilation_cache_dir", *(f"jax_persistent_cache_{each}" for each in ending)]
    before = {name: getattr(jax.config, name) for name in names}

    def begin(folder=None):
        monkeypatch.setattr(programs, "_ours", None)
        for name, value in {**before, "jax_compilation_cache_dir": folder}.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()

    yield begin
    begin(before["jax_compilation_cache_dir"])


def steps_known():
    """Returns the training steps that JAX has as programs now."""
    return {path.name for path in programs._ours.folder.iterdir() if STEP in path.name}


def test_a_continued_run_uses_its_programs_and_has_the_same_bits(tmp_path, pictures, new_process, monkeypatch):
    """A run ends with the bits of an undisturbed one, with its programs read from the run or compiled as they are damaged."""
    data = [str(pictures / "old")]
    expected = result_arrays(trained(tmp_path / "whole", every_snapshot=True, data=data, **TINY))
    new_process()
    stopped_by(monkeypatch, lambda keeper: keeper.progress.step == 6, data=data, out=str(tmp_path / "run"), **TINY)
    compiled = steps_known()
    assert len(compiled) == 1
    shutil.copytree(tmp_path / "run", tmp_path / "damaged")
    train, at_start = Session.train, []

    def watched(session):
        at_start.append(steps_known())
        if session.run.path.name == "damaged":  # behind the signature, as a bad disk would
            for program in programs._ours.folder.iterdir():
                program.write_bytes(program.read_bytes()[:-9] + b"otherbits")
        train(session)

    monkeypatch.setattr(Session, "train", watched)
    for name in ("run", "damaged"):
        new_process()
        run_training(out=str(tmp_path / name))
        assert steps_known() == compiled, "the step has another name in a continued run, and was compiled again"
        assert_same_bytes(expected, result_arrays(tmp_path / name))
        assert not (tmp_path / name / "compiled").exists(), "a finished run needs none"
    assert at_start == [compiled, compiled]


def test_a_cache_of_the_user_is_left_alone(tmp_path, new_process):
    """Where JAX_COMPILATION_CACHE_DIR is set, JAX's settings stay as they are and the run gets no archive."""
    import jax

    new_process(str(tmp_path))
    programs.use(None)
    assert programs._ours is None
    assert jax.config.jax_compilation_cache_dir == str(tmp_path)


@pytest.fixture
def ours(tmp_path, monkeypatch):
    """Gives this process two programs, as JAX would have written them."""
    found = programs._Programs(tmp_path / "jax", "cpu-jaxlib-1-abc", b"k" * 32)
    found.folder.mkdir()
    for name in ("jit_step-1-cache", "jit_predict-2-cache"):
        (found.folder / name).write_bytes(name.encode() * 50)
    monkeypatch.setattr(programs, "_ours", found)
    return found


@pytest.mark.one_backend
def test_only_an_intact_archive_of_this_user_and_machine_is_read(tmp_path, ours):
    """Ignores an archive that is damaged, cut, or signed by another user or for another machine; else reads every program."""
    written = {path.name: path.read_bytes() for path in ours.folder.iterdir()}
    programs.keep(tmp_path)
    data = (tmp_path / "compiled" / ours.name).read_bytes()

    def read(data, name=ours.name, key=ours.key):
        other = programs._Programs(tmp_path / f"read-{len(list(tmp_path.iterdir()))}", name, key)
        other.folder.mkdir()
        sizes = programs._unpack(data, other)
        assert sizes == {path.name: path.stat().st_size for path in other.folder.iterdir()}
        return {path.name: path.read_bytes() for path in other.folder.iterdir()}

    assert read(data) == written
    flipped = [bytes([*data[:at], data[at] ^ 1, *data[at + 1 :]]) for at in (0, 31, 32, len(data) // 2, len(data) - 1)]
    for bad in (*flipped, data[:-1], data[:40], data[:31], b"", data[32:], data + b"\0"):
        assert read(bad) == {}
    assert read(data, name="cpu-jaxlib-1-other") == read(data, key=b"o" * 32) == {}


@pytest.mark.one_backend
def test_a_run_keeps_few_archives_and_writes_only_what_is_new(tmp_path, ours, monkeypatch):
    """The archive is written again only for new programs, is bounded, and archives of few other machines stay."""
    programs.keep(tmp_path)
    archive = tmp_path / "compiled" / ours.name
    first = archive.stat().st_ino
    programs.keep(tmp_path)
    assert archive.stat().st_ino == first
    for number in range(4):
        (archive.parent / f"other-{number}").write_bytes(b"")
    (ours.folder / "jit_late-3-cache").write_bytes(b"late")
    programs.keep(tmp_path)
    assert archive.stat().st_ino != first
    assert len(list(archive.parent.iterdir())) == programs.MOST_MACHINES
    assert archive.is_file()
    monkeypatch.setattr(programs, "MOST_BYTES", 10)
    (ours.folder / "jit_large-4-cache").write_bytes(b"large")
    before = archive.read_bytes()
    programs.keep(tmp_path)
    assert archive.read_bytes() == before
    programs.forget(tmp_path)
    assert not archive.parent.exists()


@pytest.mark.one_backend
def test_a_run_that_cannot_be_written_trains_on(tmp_path, ours):
    """A folder that refuses the archive, or a key that cannot be kept, is no error."""
    (tmp_path / "compiled").write_text("a file where the folder would be")
    programs.keep(tmp_path)
    assert ours.kept == {}


@pytest.mark.one_backend
def test_the_key_of_a_user_is_made_once_and_is_private(tmp_path, monkeypatch):
    """The key is kept for later commands; a torn one is replaced; without a folder for it there is none."""
    monkeypatch.setenv("KRESUME_CACHE", str(tmp_path / "cache"))
    key = programs._key()
    assert key == programs._key()
    assert len(key) == programs.SIGNATURE_BYTES
    path = tmp_path / "cache" / programs.KEY
    assert path.stat().st_mode & 0o077 == 0
    path.write_bytes(key[:5])
    assert programs._key() is None
    assert len(programs._key()) == programs.SIGNATURE_BYTES
    monkeypatch.delenv("KRESUME_CACHE")
    monkeypatch.setattr(programs, "COLAB_DRIVE", tmp_path / "drive")  # the next machine has another home and this drive
    (tmp_path / "drive").mkdir()
    assert programs._key() == (tmp_path / "drive" / ".kresume" / programs.KEY).read_bytes()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KRESUME_CACHE", str(tmp_path / "file"))
    assert programs._key() is None
