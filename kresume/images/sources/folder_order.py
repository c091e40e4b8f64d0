"""Finds the order in which Keras sorts class folders, by their names as they are.

    listing.spelled                          # ({"zwetschge": " zwetschge", "apfel": "apfel"},)
    assumed_order(listing)                   # ("zwetschge", "apfel"): a blank comes before the letters
    check_one_order(listing, "model.keras")  # raises if folders of several spellings give several orders

Classes have names in canonical form (`canonical`), which may be sorted otherwise than the folders: macOS decomposes letters,
and names may have blanks around them. A checkpoint that plain Keras trained has its outputs in the order of the folders.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from kresume.class_names import canonical, join_classes
from kresume.errors import UsageError
from kresume.images.sources.found import Found, Listing
from kresume.images.sources.trees import pieces_of
from kresume.spelling import option

Spelled = Mapping[str, str]
"""Names of class folders by the canonical name of the class."""
MOST_ORDERS = 3
"""Orders that a message gives."""


def spelled_in(folders: Iterable[tuple[str, str | None]]) -> tuple[Spelled, ...]:
    """Returns how the class folders of one source spell their names.

    Args:
        folders: `(name, split)` of each. Keras is given the folders that train, so others do not count beside them.
    """
    of_split: dict[bool, dict[str, str]] = {True: {}, False: {}}
    for name, split in sorted(folders, key=lambda each: each[0]):
        of_split[split in {None, "train"}].setdefault(canonical(name), name)
    spelled = {**of_split[False], **of_split[True]}
    return (spelled,) if spelled else ()


def spelled_by(files: Iterable[Found]) -> tuple[Spelled, ...]:
    """Returns how the folders of listed images spell the names of their classes."""
    places = {
        ("" if each.member else each.path.rpartition("/")[0], each.member.rpartition("/")[0], each.label): None
        for each in files
        if each.length < 0 or each.member  # parts of records lie in no folder
    }
    named = ((label, folder_of(folder, member, label)) for folder, member, label in places)
    return merged_spellings({canonical(label): name} for label, name in named if name is not None)


def folder_of(folder: str, member: str, label: str) -> str | None:
    """Returns the name of the class folder of an image; None if it lies in no folder of its class.

    Args:
        folder: the folder that holds its file; empty for an image in an archive.
        member: its folder in the archive.
        label: the name of its class.
    """
    wanted, pieces = canonical(label), pieces_of(member) if member else folder.split("/")
    return next((piece for piece in reversed(pieces) if canonical(piece) == wanted), None)


def merged_spellings(spelled: Iterable[Spelled]) -> tuple[Spelled, ...]:
    """Returns the spellings of several sources, those that agree as one."""
    found: list[dict[str, str]] = []
    for each in spelled:
        for other in found:
            if all(other.get(label, name) == name for label, name in each.items()):
                other.update(each)
                break
        else:
            found.append(dict(each))
    return tuple(found)


def assumed_order(listing: Listing, classes: Sequence[str] | None = None) -> tuple[str, ...]:
    """Returns the classes as Keras sorts their folders, in the spelling of the first source.

    Args:
        listing: the images. Classes that lie in no folders are sorted by their names, and by number if they are numbers.
        classes: names of classes; None for those of the listing.
    """
    return _orders(listing, listing.classes if classes is None else classes)[0]


def check_one_order(listing: Listing, checkpoint: str, way: str = "classes") -> None:
    """Raises if class folders of several spellings leave open in which order Keras sorted them.

    Args:
        listing: the images.
        checkpoint: the checkpoint whose order is assumed, for the message.
        way: the option that gives the order.

    Raises:
        UsageError: they do; the message has the orders.
    """
    orders = _orders(listing, listing.classes)
    if len(orders) == 1:
        return
    first, other = listing.spelled[:2]
    label = next(label for label, name in first.items() if other.get(label, name) != name)
    given = " or ".join(option(way, join_classes(each)) for each in orders[:MOST_ORDERS])
    raise UsageError(
        f"{checkpoint} does not record the names of its outputs, and the order of the sorted class folders is not clear: "
        f"some spell {label} {first[label]!a}, others {other[label]!a}, and Keras sorts them differently. Give the "
        f"order of the folders that it was trained on: {given}"
    )


def _orders(listing: Listing, classes: Sequence[str]) -> list[tuple[str, ...]]:
    """Returns the orders in which Keras may have sorted these classes, each once."""
    if listing.numbered and {*classes} == {*listing.classes}:
        return [listing.classes]
    anywhere = {label: name for each in reversed(listing.spelled) for label, name in each.items()}

    def order(spelled: Spelled) -> tuple[str, ...]:
        known = {**anywhere, **spelled}
        return tuple(sorted(classes, key=lambda name: (known.get(canonical(name), name), name)))

    return list(dict.fromkeys(map(order, listing.spelled or ({},))))
