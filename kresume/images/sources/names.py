"""Classifies files and folders by their names: pictures, lists, splits, files of the operating system."""

from __future__ import annotations

import os

LITTER = frozenset(
    {
        "thumbs.db", "desktop.ini", "ehthumbs.db", "icon\r", "__macosx", "__pycache__", "lost+found",
        "@eadir", "#recycle", "$recycle.bin", "system volume information",
    }
)  # fmt: skip
"""Skips files and folders of these names (in lower case): operating systems and network drives make them."""
NOT_PICTURES = frozenset(
    {
        ".txt", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".md", ".py", ".html", ".parquet", ".pdf", ".cls",
    }
)  # fmt: skip
DOT_LITTER = frozenset(
    {
        ".git", ".hg", ".svn", ".dvc", ".idea", ".vscode", ".venv", ".cache", ".ipynb_checkpoints", ".thumbnails",
        ".appledouble", ".spotlight-v100", ".fseventsd", ".temporaryitems", ".documentrevisions-v100",
    }
)  # fmt: skip
"""Names (in lower case) of folders in which programs keep copies and other things of their own."""
PICTURES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".heic"})
"""Endings of pictures."""
LISTS = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
"""Endings of lists of images."""
CONTAINERS = frozenset(
    {"image", "images", "img", "imgs", "picture", "pictures", "photo", "photos", "data", "files", "jpg", "png"}
)
"""Names of a single folder that holds the images of a list."""
UNSURE = ".kresume-unsure"
"""A file in a folder of pictures that `kresume predict --sort` was not sure of: no class, whatever its name."""
SPLITS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val", "eval": "val",
    "test": "test", "testing": "test",
}  # fmt: skip


def hidden(name: str) -> bool:
    """Returns True for names that begin with a dot and for system files."""
    return name.startswith(".") or name.lower() in LITTER


def is_dotted_picture(name: str) -> bool:
    """Returns True for a picture that begins with a dot and is no resource fork (`._x.jpg`)."""
    return name.startswith(".") and not name.startswith("._") and name.lower().endswith(tuple(PICTURES))


def is_dotted_folder(name: str) -> bool:
    """Returns True for a name that begins with a dot, unless a program has given it."""
    return name.startswith(".") and name.lower() not in DOT_LITTER and not name.lower().startswith(".trash")


def ending(name: str) -> str:
    """Returns the ending of a name in lower case: `"A.JPG"` -> `".jpg"`."""
    return os.path.splitext(name)[1].lower()


def may_be_picture(name: str) -> bool:
    """Returns False for endings of other kinds of files; the prepare pass decides by content."""
    return ending(name) not in NOT_PICTURES
