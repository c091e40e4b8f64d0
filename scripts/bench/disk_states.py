"""Lists the states in which a power cut may leave a recorded folder.

    for state in states(recording):
        write(state.tree, folder)

The model is that of ALICE (Pillai et al., "All File Systems Are Not Created Equal", OSDI 2014), for any file system that
keeps its own structure: a change of names (creation, rename, removal) is atomic and durable after a flush of its folder,
the bytes of a file are durable after a flush of the file. Between two such flushes anything may be on the disk:

- names: all changes, none, each first part of them (a journal keeps their order), all but one, or one alone. A change that
  needs another one (the same name, the same inode) is not there without it.
- bytes: all, none, half of them (torn), or the new length with zeros in it.

A power cut is possible after every operation. States with equal content are listed once.
"""

import hashlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from disk_record import ROOT, Operation, Recording, change

HOW = ("all", "none", "torn", "zeros")
WINDOW = 10
"""How many of the latest changes of names are left out one by one; those before are on the disk together or not at all."""
TEMPORARY = ".tmp-"


@dataclass(frozen=True)
class State:
    """Holds the state of a disk after a power cut.

    Attributes:
        at: how many operations had been made.
        told: which of them are on the disk, for messages.
        tree: the bytes of every file by path; None for folders.
        acknowledged: (kind, text) of what had been acknowledged: marks, and each durable content of a pointer.
    """

    at: int
    told: str
    tree: dict[str, bytes | None]
    acknowledged: tuple[tuple[str, str], ...]


@dataclass
class _File:
    durable: bytes = b""
    pending: list[Operation] = field(default_factory=list)
    version: int = 0
    variants: dict[str, bytes] = field(default_factory=dict)

    def content(self, how: str) -> bytes:
        """Returns the bytes that are on the disk; see the module."""
        if how not in self.variants:
            self.variants[how] = self._made(how)
        return self.variants[how]

    def _made(self, how: str) -> bytes:
        content = bytearray(self.durable)
        if how == "torn":
            half = len(self.pending) // 2
            for operation in self.pending[:half]:
                change(content, operation)
            last = self.pending[half]
            cut = last.data[: len(last.data) // 2]
            change(content, Operation(last.kind, last.inode, offset=last.offset, data=cut))
        elif how != "none":
            for operation in self.pending:
                zeros = bytes(len(operation.data))
                data = operation.data if how == "all" else zeros
                change(content, Operation(operation.kind, operation.inode, offset=operation.offset, data=data))
        return bytes(content)


class _Model:
    """Follows which operations are durable."""

    def __init__(self, recording: Recording, pointers: tuple[str, ...]) -> None:
        before = recording.before
        self.base = {inode: dict(names) for inode, names in before.folders.items()}
        self.files = {inode: _File(bytes(data)) for inode, data in before.files.items()}
        self.changes: list[tuple[Operation, bool]] = []  # with whether it is durable; the first one is not
        self.folders = recording.folders
        self.parents: dict[int, tuple[int, str]] = {}
        self.pointers = pointers
        self._pointed: dict[int, str] = {}  # by folder: the content of a pointer whose name is not durable
        self.acknowledged: list[tuple[str, str]] = []

    def take(self, operation: Operation) -> None:
        """Follows one operation."""
        if operation.kind == "mark":
            self.acknowledged.append(("mark", operation.text))
        elif operation.kind == "name":
            self.changes.append((operation, False))
            for folder, name, inode in operation.names:
                if inode is not None:
                    self.parents[inode] = (folder, name)
                    if name in self.pointers and not self._is_temporary(folder):
                        self._pointed[folder] = self.file(inode).content("all").decode(errors="replace").strip()
        elif operation.kind == "flush":
            if operation.inode in self.files:
                file = self.files[operation.inode]
                self.files[operation.inode] = _File(file.content("all"), version=file.version + 1)
            else:
                self._flush_folder(operation.inode)
        else:
            file = self.file(operation.inode)
            file.pending.append(operation)
            file.version += 1
            file.variants = {}

    def file(self, inode: int) -> _File:
        """Returns a file; an empty one if it has no bytes yet."""
        return self.files.setdefault(inode, _File())

    def _flush_folder(self, folder: int) -> None:
        self.changes = [
            (change, durable or any(place == folder for place, _, _ in change.names))
            for change, durable in self.changes
        ]
        while self.changes and self.changes[0][1]:
            _rename(self.base, self.changes.pop(0)[0])
        if folder in self._pointed:
            self.acknowledged.append(("pointer", self._pointed.pop(folder)))

    def _is_temporary(self, folder: int) -> bool:
        while folder in self.parents:
            folder, name = self.parents[folder]
            if name.startswith(TEMPORARY):
                return True
        return False

    def orders(self) -> Iterator[tuple[str, list[Operation]]]:
        """Yields which changes of names are on the disk."""
        pending = [place for place, (_, durable) in enumerate(self.changes) if not durable]
        late = pending[-WINDOW:]
        yield "all names", [change for change, _ in self.changes]
        if not pending:
            return
        yield "no names", self._without(set(pending))
        for count, _ in enumerate(late[:-1], 1):
            yield f"names but the last {count}", self._without(set(late[-count:]))
        for place in late:
            yield f"names but one ({_told(self.changes[place][0])})", self._without({place})
            needed = self._needed(place)
            yield f"one name ({_told(self.changes[place][0])})", self._without(set(late) - needed)

    def _without(self, left_out: set[int]) -> list[Operation]:
        """Returns the changes but some, and but those that need them."""
        touched: set[object] = set()
        kept = []
        for place, (operation, durable) in enumerate(self.changes):
            if not durable and (place in left_out or touched & _touched(operation)):
                touched |= _touched(operation)
            else:
                kept.append(operation)
        return kept

    def _needed(self, place: int) -> set[int]:
        touched, needed = _touched(self.changes[place][0]), {place}
        for earlier in range(place - 1, -1, -1):
            if touched & _touched(self.changes[earlier][0]):
                touched |= _touched(self.changes[earlier][0])
                needed.add(earlier)
        return needed

    def tree(self, changes: list[Operation], how: str) -> tuple[dict[str, bytes | None], bool]:
        """Returns the tree that is on the disk, and whether bytes of it are not durable."""
        folders = {inode: dict(names) for inode, names in self.base.items()}
        for operation in changes:
            _rename(folders, operation)
        found: dict[str, bytes | None] = {}
        open_bytes = False
        stack = [(ROOT, "")]
        while stack:
            inode, prefix = stack.pop()
            for name, child in folders.get(inode, {}).items():
                if child in self.files:
                    file = self.files[child]
                    open_bytes |= bool(file.pending)
                    found[prefix + name] = file.content(how) if file.pending else file.durable
                elif child in self.folders:
                    found[prefix + name] = None
                    stack.append((child, f"{prefix}{name}/"))
                else:
                    found[prefix + name] = b""
        return found, open_bytes


def _rename(folders: dict[int, dict[str, int]], operation: Operation) -> None:
    for folder, name, inode in operation.names:
        names = folders.setdefault(folder, {})
        if inode is None:
            names.pop(name, None)
        else:
            names[name] = inode


def _touched(operation: Operation) -> set[object]:
    names = {(folder, name) for folder, name, _ in operation.names}
    return {*names, *(inode for _, _, inode in operation.names if inode is not None)}


def _told(operation: Operation) -> str:
    return ", ".join(f"{name}{' gone' if inode is None else ''}" for _, name, inode in operation.names)


def states(
    recording: Recording, pointers: tuple[str, ...] = ("LATEST",), places: Collection[int] | None = None
) -> Iterator[State]:
    """Yields every state that a power cut may leave, those of equal content and equal acknowledgements once.

    Args:
        recording: what happened.
        pointers: names of files whose durable content counts as acknowledged.
        places: only power cuts after so many operations; None for all.
    """
    model = _Model(recording, pointers)
    seen: set[bytes] = set()
    for at, operation in enumerate([Operation("start"), *recording.operations]):
        if operation.kind != "start":
            model.take(operation)
        if places is not None and at not in places:
            continue
        acknowledged = tuple(model.acknowledged)
        for told, changes in model.orders():
            for how in HOW:
                tree, open_bytes = model.tree(changes, how)
                key = _key(tree, acknowledged)
                if key not in seen:
                    seen.add(key)
                    yield State(at, f"{told}, {how} of the bytes", tree, acknowledged)
                if not open_bytes or ("(" in told and how == "none"):
                    break


def _key(tree: dict[str, bytes | None], acknowledged: tuple[tuple[str, str], ...]) -> bytes:
    hasher = hashlib.blake2b(repr(acknowledged).encode(), digest_size=16)
    for path in sorted(tree):
        data = tree[path]
        hasher.update(f"\0{path}\0{-1 if data is None else len(data)}\0".encode())
        hasher.update(data or b"")
    return hasher.digest()


def write(tree: dict[str, bytes | None], folder: Path) -> Path:
    """Writes a tree into a new folder and returns it."""
    folder.mkdir(parents=True)
    for path, data in sorted(tree.items()):
        if data is None:
            (folder / path).mkdir(parents=True, exist_ok=True)
    for path, data in tree.items():
        if data is not None:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(data)
    return folder
