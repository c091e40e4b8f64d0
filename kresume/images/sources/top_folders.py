"""Decides whether the single folder at the top of a source is skipped, or is a class.

    tops[0].is_class({"1", "2", "10"})            # inbox/10/2024-05/: True; set/10/1/, set/10/2/: an error
    listed = settle(listed, classes)              # lists again where a top folder turns out to be a class

An unpacked archive has one folder above its class folders. An inbox that holds pictures of one class has one folder, too, and
may have others inside (by date, by camera). Known classes tell them apart: those of the model, of `--classes`, and of the
other sources.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace

from kresume.class_names import show_classes, spelled_alike
from kresume.errors import ImagesError
from kresume.images.sources.found import Listing, Top

MOST_NAMED = 3
"""Folders that a message names."""


@dataclass(frozen=True)
class Listed:
    """Holds the listing of one source.

    Attributes:
        listing: its images.
        again: lists the source once more, for known names of classes.
        about: notes on top folders that were skipped.
    """

    listing: Listing
    again: Callable[[frozenset[str]], Listing]
    about: tuple[str, ...] = ()


def is_class(top: Top, known: Collection[str]) -> bool:
    """Returns True if all images below a top folder are of the class of its name.

    A top folder that holds a folder of its own name is a data set of that name.

    Raises:
        ImagesError: it is a class, and so is a folder in it: both readings make sense, and one of them is wrong.
    """
    if spelled_alike(top.name, known) is None or _holds_itself(top):
        return False
    for names in (top.inside, top.classes):
        if any(spelled_alike(name, known) is not None for name in names):
            way = f"give {top.way}" if top.way else f"unpack the archive and give {top.path}"
            raise ImagesError(
                f"{top.given} holds only the folder {top.path}/, which has the name of a class, and so have folders in it "
                f"({_first(names)}). If these are the classes of its images, {way}; if all of them are of the class "
                f"{top.name}, move them from these folders into {top.path}/, or give a list of them"
            )
    return True


def settle(listed: Sequence[Listed], known: Collection[str] = ()) -> list[Listed]:
    """Returns the same sources, listed again where a top folder has the name of a known class.

    Args:
        listed: the sources of one command, of all roles.
        known: names of classes that the model has, or that the user gave. Those that sources without a top folder have are
            known, too.

    Raises:
        ImagesError: a top folder is a class, and so is a folder in it.
    """
    settled = list(listed)
    waiting = {index for index, each in enumerate(settled) if each.listing.tops}
    names = {*known}.union(*(_names(each.listing) for index, each in enumerate(settled) if index not in waiting))
    while waiting:
        found = [index for index in sorted(waiting) if _of_class(settled[index].listing, names)]
        if found:
            index = found[0]
            settled[index] = replace(settled[index], listing=settled[index].again(frozenset(names)), about=())
        else:
            # One whose top folder has the name of no class of the others is skipped, and its classes are known then.
            others = {index: _others(settled, waiting - {index}) for index in sorted(waiting)}
            free = [index for index in others if not _of_class(settled[index].listing, others[index])]
            index = (free or sorted(waiting))[0]
            listing = settled[index].listing
            settled[index] = replace(settled[index], about=tuple(_describe(listing.tops, names)))
        waiting.discard(index)
        names |= _names(settled[index].listing)
    return settled


def merged(tops: Iterable[Top]) -> tuple[Top, ...]:
    """Returns the top folders of several shards, each path once."""
    found: dict[str, Top] = {}
    for top in tops:
        before = found.get(top.path, top)
        found[top.path] = replace(
            top,
            inside=tuple(dict.fromkeys((*before.inside, *top.inside))),
            classes=tuple(dict.fromkeys((*before.classes, *top.classes))),
        )
    return tuple(found.values())


def _names(listing: Listing) -> set[str]:
    """Returns the names of a listing's classes; numbers of outputs are none."""
    numbers = {found.label for found in listing.files if found.numbered} if listing.files else set()
    return {*listing.classes} - numbers


def _others(listed: Sequence[Listed], indices: Iterable[int]) -> set[str]:
    return {name for index in indices for name in _names(listed[index].listing)}


def _of_class(listing: Listing, known: Collection[str]) -> bool:
    """Returns True if a skipped top folder is a class.

    Raises:
        ImagesError: as `is_class`.
    """
    return any(is_class(top, known) for top in listing.tops)


def _describe(tops: Sequence[Top], known: Collection[str]) -> list[str]:
    """Returns notes on skipped top folders; empty if their folders are known classes, and they are none."""
    notes = []
    for top in tops:
        alike = spelled_alike(top.name, known)
        if alike is not None:
            notes.append(
                f"{top.given}: {top.path}/ was skipped, though there is a class {alike}: it holds a folder of that name, "
                f"beside {_first([name for name in top.classes if name != top.name])}; if all its images are of the class "
                f"{alike}, give a list of them"
            )
        elif top.last and not all(spelled_alike(name, known) is not None for name in top.classes):
            notes.append(
                f"{top.given}: {top.path}/ was skipped, and the folders in it are the classes ({_first(top.classes)}); if "
                f"{top.name} is a class itself, put a folder of another class beside it, or give a list of the images"
            )
    return notes


def _holds_itself(top: Top) -> bool:
    return spelled_alike(top.name, (*top.inside, *top.classes)) is not None


def _first(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMED:,} more" if len(names) > MOST_NAMED else ""
    return f"{show_classes(names[:MOST_NAMED])}{more}"
