"""Reads the labels of WebDataset examples: files of an archive with the same stem are one example.

    labels, notes = read_labels(names, read, given)       # {"000017.jpg": "rose"}

Source: the WebDataset format (github.com/webdataset/webdataset).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping

from kresume.errors import ImagesError
from kresume.images.sources.names import NOT_PICTURES, ending

LABEL_ENDINGS = (".cls", ".json")
CAPTION = "text"
"""Holds a label in some archives, and a sentence about the picture in most."""

LABEL_KEYS = ("label", "cls", "class", "class_name", "category", CAPTION)


def read_labels(
    names: Iterable[str], read: Callable[[str], bytes], given: str
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Reads the label of each picture, from its `.cls` or else from its `.json`.

    The first key of `LABEL_KEYS` counts, whatever the others say: one shard cannot tell for the others which of them names
    the classes. Programs write JSON about a picture beside it, such as Google Takeout: where no file holds a label, they are
    not labels, and the folders are the classes.

    Args:
        names: the files of the archive.
        read: returns a file's bytes.
        given: the archive as the user named it, for messages.

    Returns:
        `(labels, notes)`: the label of each picture by the picture's name, and which of several keys they are from.

    Raises:
        ImagesError: some files hold a label and others do not, or one is not what its ending says.
    """
    said: dict[str, dict[str, str]] = {}
    first_without = ""
    for picture, name in _paired(names).items():
        values = _values(name, read(name), given)
        if values:
            said[picture] = values
        else:
            first_without = first_without or name
    if said and first_without:
        raise ImagesError(
            f"{given}: {first_without} has no label, and other members have one: expected one of the keys "
            f"{', '.join(LABEL_KEYS)}"
        )
    labels = {picture: next(iter(values.values())) for picture, values in said.items()}
    first = ", ".join(sorted({_shown(next(iter(values))) for values in said.values()}))
    others = sorted({_shown(key) for picture, values in said.items() for key in _differing(values, labels[picture])})
    return labels, (f"{given}: labels are those of {first}, not of {', '.join(others)}",) if others else ()


def _paired(names: Iterable[str]) -> dict[str, str]:
    """Returns the file that labels each picture, by the picture's name: its `.cls`, else its `.json`."""
    by_stem: dict[str, dict[str, str]] = {}
    for name in names:
        stem, kind = _stem(name)
        by_stem.setdefault(stem, {})[kind] = name
    paired: dict[str, str] = {}
    for kinds in by_stem.values():
        labels = [kinds[kind] for kind in LABEL_ENDINGS if kind in kinds]
        paired |= {name: labels[0] for kind, name in kinds.items() if labels and kind not in NOT_PICTURES}
    return paired


def _stem(name: str) -> tuple[str, str]:
    """Returns a member's WebDataset key and its last ending.

    The key is the path up to the first dot of the file's name.
    """
    folder, slash, last = name.rpartition("/")
    key, _, _ = last.partition(".")
    return folder + slash + key, ending(last)


def _values(name: str, content: bytes, given: str) -> dict[str, str]:
    """Returns the labels that a file holds, by the key; `.cls` is the key of such a file."""
    if name.lower().endswith(".cls"):
        label = content.decode("utf-8", "replace").strip()
        if not label:
            raise ImagesError(f"{given}: {name} contains no label")
        return {".cls": label}
    try:
        value = json.loads(content)
    except ValueError as error:
        raise ImagesError(f"{given}: {name} is not valid JSON ({error})") from error
    held = {key: value[key] for key in LABEL_KEYS if key in value} if isinstance(value, dict) else {".json": value}
    texts = {
        key: str(each).strip()
        for key, each in held.items()
        if isinstance(each, (str, int)) and not isinstance(each, bool)
    }
    return {} if "" in list(texts.values())[:1] else {key: text for key, text in texts.items() if text}


def _differing(values: Mapping[str, str], label: str) -> list[str]:
    return [key for key, value in values.items() if value != label and key != CAPTION]


def _shown(key: str) -> str:
    return f"its {key} members" if key.startswith(".") else f"the key {key!r}"
