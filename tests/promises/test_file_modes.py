"""Tests the modes of files: the umask decides, so that who may read a run may read all of it."""

import os

import numpy as np
import pytest

from tests.helpers.runs import TINY, run_training


def others_than(folder, file, directory):
    """Returns the files and folders below a folder whose modes are others."""
    found = {path.relative_to(folder): path.stat().st_mode & 0o777 for path in folder.rglob("*")}
    assert found
    return {
        str(path): oct(mode)
        for path, mode in found.items()
        if mode != (directory if (folder / path).is_dir() else file)
    }


@pytest.mark.one_backend(trains=True)  # under JAX a process of the test session exports, which has its own umask
@pytest.mark.parametrize(("umask", "file", "directory"), [(0o022, 0o644, 0o755), (0o007, 0o660, 0o770)])
@pytest.mark.sample("7-432-504")
def test_the_umask_decides_who_may_read(tmp_path, pictures, umask, file, directory):
    """No file of a run, an export, a backup or the cache is private unless the umask says so."""
    import keras

    import kresume

    before = os.umask(umask)
    try:
        arguments = {**TINY, "epochs": 1, "snapshot_every": "1", "cache": str(tmp_path / "cache")}
        run_training(out=str(tmp_path / "run"), data=[str(pictures / "old")], **arguments)
        new = {"add": [str(pictures / "new")], "epochs": 1, "cache": arguments["cache"]}
        run_training(str(tmp_path / "run"), out=str(tmp_path / "child"), **new)
        for format in ("keras", "weights-h5", "tf-checkpoint", "saved-model"):
            kresume.export(tmp_path / "run", tmp_path / "exports" / format, format=format)
        model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(1)])
        model.compile("adam", "mse")
        backup = kresume.BackupAndRestore(str(tmp_path / "backup"), delete_checkpoint=False)
        model.fit(np.ones((8, 3)), np.ones((8, 1)), epochs=2, verbose=0, callbacks=[backup])
    finally:
        os.umask(before)
    for name in ("run", "child", "exports", "backup", "cache"):
        assert (name, others_than(tmp_path / name, file, directory)) == (name, {})
