"""Writes archives for the tests."""

import io
import tarfile


def write_tar(path, items, mode="w"):
    """Writes a tar of (name, bytes); `mode` is that of `tarfile.open`."""
    with tarfile.open(path, mode) as archive:
        for name, data in items:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
