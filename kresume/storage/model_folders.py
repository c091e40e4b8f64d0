"""Finds SavedModels in the folder of a model server, which holds one in each version.

find_saved_model("serving/flowers")         # Path("serving/flowers/3")
versions_in(Path("serving/flowers"))        # {1: Path("serving/flowers/1"), 3: Path("serving/flowers/3")}
"""

from __future__ import annotations

from pathlib import Path


def find_saved_model(path: str | Path) -> Path | None:
    """Returns the SavedModel at `path`, or None.

    `path` may also be a model server's folder; then it is the highest version in it.
    """
    folder = Path(path)
    if (folder / "saved_model.pb").is_file():
        return folder
    versions = [child for child in versions_in(folder).values() if (child / "saved_model.pb").is_file()]
    return versions[-1] if versions else None


def versions_in(folder: Path) -> dict[int, Path]:
    """Returns the version folders of a model server's folder, ascending."""
    if not folder.is_dir():
        return {}
    found = {int(child.name): child for child in folder.iterdir() if child.name.isdecimal() and child.is_dir()}
    return dict(sorted(found.items()))
