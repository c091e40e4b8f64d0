"""Records what this process does to a folder on the disk, as a list of operations, with `strace`.

    with recorded(folder) as recording:
        train(...)
        recording.mark("trained")           # what has been acknowledged so far
    recording.operations                    # creations, bytes, flushes, renames, in their order

`strace` (Debian package `strace`) attaches itself to this process and all its threads, and prints every system call that
writes, flushes, creates, renames or removes, with all bytes. Calls become operations on inodes, so that bytes that are
written through a descriptor belong to the file whatever it is called by then. At the end the operations are applied to
the folder as it was before, and must give the folder as it is now: nothing was overlooked.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

TRACED = (
    "openat,open,creat,write,pwrite64,writev,pwritev,lseek,fsync,fdatasync,ftruncate,truncate,fallocate,rename,renameat,"
    "renameat2,unlink,unlinkat,rmdir,mkdir,mkdirat,link,linkat,symlink,symlinkat,copy_file_range,sendfile,dup,dup2,dup3,fcntl"
)
MARK = "powercut-mark:"
ROOT = 0
"""The inode of the folder itself."""


@dataclass(frozen=True)
class Operation:
    """One change.

    Attributes:
        kind: `name` (names in folders change together), `write`, `size`, `flush` or `mark`.
        inode: the file or folder that is written or flushed.
        names: for `name`: (folder, name, inode; None for a name that is removed).
        offset: of a write; the new length for `size`.
        data: the bytes of a write.
        text: of a mark.
    """

    kind: str
    inode: int = -1
    names: tuple[tuple[int, str, int | None], ...] = ()
    offset: int = 0
    data: bytes = b""
    text: str = ""


@dataclass
class Disk:
    """Holds names and bytes as a process sees them.

    Attributes:
        folders: names and their inodes of each folder's inode.
        files: bytes of each file's inode.
    """

    folders: dict[int, dict[str, int]] = field(default_factory=lambda: {ROOT: {}})
    files: dict[int, bytearray] = field(default_factory=dict)
    used: int = 0

    def new(self, *, folder: bool) -> int:
        """Returns an unused inode for a file or a folder."""
        self.used += 1
        if folder:
            self.folders[self.used] = {}
        else:
            self.files[self.used] = bytearray()
        return self.used

    def find(self, path: str) -> int | None:
        """Returns the inode of a path relative to the folder; None if there is none."""
        inode: int | None = ROOT
        for part in path.split("/") if path else ():
            inode = self.folders.get(inode, {}).get(part) if inode is not None else None
        return inode

    def apply(self, operation: Operation) -> None:
        """Carries an operation out."""
        if operation.kind == "name":
            for folder, name, inode in operation.names:
                if inode is None:
                    self.folders[folder].pop(name, None)
                else:
                    self.folders[folder][name] = inode
        elif operation.kind in {"write", "size"}:
            change(self.files[operation.inode], operation)

    def tree(self, inode: int = ROOT, prefix: str = "") -> dict[str, bytes | None]:
        """Returns the bytes of every file by path; None for folders."""
        found: dict[str, bytes | None] = {}
        for name, child in sorted(self.folders[inode].items()):
            path = f"{prefix}{name}"
            if child in self.folders:
                found[path] = None
                found |= self.tree(child, f"{path}/")
            else:
                found[path] = bytes(self.files[child])
        return found


def change(content: bytearray, operation: Operation) -> None:
    """Writes bytes into a file's content, or changes its length."""
    end = operation.offset + len(operation.data)
    if len(content) < (end if operation.kind == "write" else operation.offset):
        content.extend(bytes(max(end, operation.offset) - len(content)))
    if operation.kind == "write":
        content[operation.offset : end] = operation.data
    else:
        del content[operation.offset :]


def read_disk(root: Path) -> Disk:
    """Reads a folder as it is now."""
    disk = Disk()
    for top, folders, files in os.walk(root):
        parent = disk.find(os.path.relpath(top, root).removeprefix("."))
        assert parent is not None  # noqa: S101
        for name in sorted(folders):
            disk.folders[parent][name] = disk.new(folder=True)
        for name in sorted(files):
            inode = disk.folders[parent][name] = disk.new(folder=False)
            disk.files[inode] = bytearray((Path(top) / name).read_bytes())
    return disk


@dataclass
class Recording:
    """Collects the operations on a folder.

    Attributes:
        root: the folder.
        before: its content when the recording began, all of it durable.
        operations: what happened, in order.
        folders: the inodes that are folders.
    """

    root: Path
    before: Disk
    operations: list[Operation] = field(default_factory=list)
    folders: set[int] = field(default_factory=set)

    def mark(self, text: str) -> None:
        """Records that something has been acknowledged, by a system call that changes nothing."""
        with contextlib.suppress(OSError):
            os.truncate(f"/nowhere/{MARK}{text}", 0)


@contextlib.contextmanager
def recorded(root: Path) -> Iterator[Recording]:
    """Records the operations of this process, and of those that it starts, on a folder.

    Raises:
        OSError: `strace` is missing, or may not attach itself to this process.
        ValueError: the operations do not give the folder as it is at the end.
    """
    root = root.resolve()
    recording = Recording(root, read_disk(root))
    with tempfile.TemporaryDirectory(prefix="powercut-") as name:
        log = Path(name) / "calls"
        strace = _attach(log)
        try:
            yield recording
        finally:
            strace.send_signal(signal.SIGINT)  # it detaches itself
            strace.wait()
        reader = Reader(root, read_disk_copy(recording.before))
        with log.open(errors="replace") as lines:
            recording.operations = list(reader.operations(lines))
        recording.folders = set(reader.disk.folders)
    if reader.disk.tree() != (now := read_disk(root).tree()):
        differing = [path for path, data in now.items() if reader.disk.tree().get(path, b"missing") != data]
        raise ValueError(f"the recording misses calls that wrote {differing or sorted(reader.disk.tree())}")


def read_disk_copy(disk: Disk) -> Disk:
    """Copies names and bytes."""
    folders = {inode: dict(names) for inode, names in disk.folders.items()}
    return Disk(folders, {inode: bytearray(data) for inode, data in disk.files.items()}, disk.used)


def _attach(log: Path) -> subprocess.Popen:
    """Starts `strace` on this process and waits until it is attached."""
    program = shutil.which("strace")
    if program is None:
        raise FileNotFoundError("strace is not installed: apt-get install strace")
    with contextlib.suppress(OSError, AttributeError):
        import ctypes

        ctypes.CDLL(None).prctl(0x59616D61, -1, 0, 0, 0)  # PR_SET_PTRACER: a child may trace this process
    asked = ["-f", "-y", "-xx", "-s", str(2**28), "-e", f"trace={TRACED}", "-e", "signal=none", "-o", str(log)]
    with log.with_suffix(".err").open("wb") as printed:
        strace = subprocess.Popen([program, *asked, "-p", str(os.getpid())], stderr=printed)
    for _ in range(200):
        if strace.poll() is not None:
            raise PermissionError(f"strace cannot attach itself: {log.with_suffix('.err').read_text().strip()}")
        if all(_traced(task) for task in Path("/proc/self/task").iterdir()):
            return strace
        time.sleep(0.02)
    raise TimeoutError("strace did not attach itself")


def _traced(task: Path) -> bool:
    try:
        return "TracerPid:\t0\n" not in (task / "status").read_text()
    except OSError:  # a thread that has ended
        return True


LINE = re.compile(r"(\d+) +(?:(\w+)\((.*)|<\.\.\. (\w+) resumed>(.*))", re.DOTALL)
TEXT = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')
DESCRIPTOR = re.compile(r"(-?\d+|AT_FDCWD)(?:<((?:\\x[0-9a-f]{2}|[^>])*)>)?")


def _bytes(hexadecimal: str) -> bytes:
    return bytes.fromhex(hexadecimal.replace("\\x", ""))


def _last_number(arguments: str) -> int:
    return int(arguments.rpartition(",")[2].strip(" )"))


@dataclass
class _Opened:
    """Describes an open file; copies of its descriptor share it."""

    inode: int
    appends: bool
    at: int = 0


class Reader:
    """Turns the lines of `strace` into operations.

    Args:
        root: the recorded folder.
        disk: its content before; changed by each operation.
    """

    def __init__(self, root: Path, disk: Disk) -> None:
        self.root = f"{root}/"
        self.disk = disk
        self._open: dict[int, _Opened] = {}
        self._waiting: dict[tuple[str, str], str] = {}

    def operations(self, lines: Iterator[str]) -> Iterator[Operation]:
        """Yields the operations of the calls that succeeded, at the time of their return."""
        for line in lines:
            match = LINE.match(line.rstrip("\n"))
            if match is None:
                continue
            pid, call, rest, resumed, tail = match.groups()
            if resumed:
                call, rest = resumed, self._waiting.pop((pid, resumed), "") + tail
            elif rest.endswith("<unfinished ...>"):
                self._waiting[pid, call] = rest.removesuffix("<unfinished ...>")
                continue
            arguments, _, answer = rest.rpartition(" = ")
            if call == "truncate" and MARK.encode() in (path := _bytes(TEXT.findall(arguments)[0])):
                yield Operation("mark", text=path.decode().partition(MARK)[2])
            number = re.match(r"-?\d+", answer)
            if number is None or number[0].startswith("-"):
                continue
            for operation in self._read(call, arguments, int(number[0])):
                self.disk.apply(operation)
                yield operation

    def _read(self, call: str, arguments: str, answer: int) -> Iterator[Operation]:
        if call in {"open", "openat", "creat"}:
            yield from self._opened(arguments, answer)
        elif call.startswith(("rename", "link", "symlink", "unlink", "rmdir", "mkdir")):
            yield from self._named(call, arguments)
        elif call == "truncate":
            if (inode := self.disk.find(self._paths(arguments)[0] or "?")) is not None:
                yield Operation("size", inode, offset=_last_number(arguments))
        elif (found := DESCRIPTOR.match(arguments)) and int(found[1]) in self._open:
            yield from self._written(call, arguments, answer, int(found[1]))

    def _opened(self, arguments: str, descriptor: int) -> Iterator[Operation]:
        self._open.pop(descriptor, None)
        (path, *_) = self._paths(arguments) or [None]
        if path is None:
            return
        inode = self.disk.find(path)
        if inode is None and "O_TMPFILE" not in arguments:
            inode = self.disk.new(folder=False)
            yield Operation("name", names=((*self._place(path), inode),))
        elif inode in self.disk.files and "O_TRUNC" in arguments and self.disk.files[inode]:
            yield Operation("size", inode)
        if inode is not None:
            self._open[descriptor] = _Opened(inode, "O_APPEND" in arguments)

    def _named(self, call: str, arguments: str) -> Iterator[Operation]:
        paths = self._paths(arguments)
        if call.startswith(("symlink",)):
            paths = paths[-1:]
        if all(path is None for path in paths):
            return
        if None in paths or call.startswith("symlink"):
            raise ValueError(f"{call}: a name from outside of the folder, or a symbolic link, is not recorded")
        first, last = str(paths[0]), str(paths[-1])
        if call.startswith("mkdir"):
            yield Operation("name", names=((*self._place(first), self.disk.new(folder=True)),))
        elif call.startswith(("unlink", "rmdir")):
            yield Operation("name", names=((*self._place(first), None),))
        else:
            names = [(*self._place(last), self.disk.find(first))]
            if call.startswith("rename"):
                names.append((*self._place(first), None))
            yield Operation("name", names=tuple(names))

    def _written(self, call: str, arguments: str, answer: int, descriptor: int) -> Iterator[Operation]:
        opened = self._open[descriptor]
        inode = opened.inode
        if call in {"fsync", "fdatasync"}:
            yield Operation("flush", inode)
        elif call == "ftruncate":
            yield Operation("size", inode, offset=_last_number(arguments))
        elif call == "lseek":
            opened.at = answer
        elif call in {"write", "pwrite64", "writev"}:
            data = b"".join(_bytes(text) for text in TEXT.findall(arguments))[:answer]
            at = opened.at
            if call == "pwrite64":
                at = _last_number(arguments)
            elif opened.appends:
                at = len(self.disk.files[inode])
            if call != "pwrite64":
                opened.at = at + answer
            yield Operation("write", inode, offset=at, data=data)
        elif call in {"dup", "dup2", "dup3"} or (call == "fcntl" and "F_DUPFD" in arguments):
            self._open[answer] = opened
        elif call == "fallocate":
            yield Operation("size", inode, offset=max(len(self.disk.files[inode]), answer))
        elif call != "fcntl":
            raise ValueError(f"{call} on a file in the folder is not recorded")

    def _paths(self, arguments: str) -> list[str | None]:
        """Returns the paths of a call, relative to the folder; None for those outside of it."""
        found: list[str | None] = []
        folder = ""
        for match in re.finditer(rf"{TEXT.pattern}|{DESCRIPTOR.pattern}", arguments):
            if match[1] is None:
                if match[3]:
                    folder = _bytes(match[3]).decode() if "\\x" in match[3] else match[3]
                continue
            path = os.path.normpath(os.path.join(folder or "/", os.fsdecode(_bytes(match[1]))))
            inside = f"{path}/".startswith(self.root)
            found.append(path[len(self.root) :] if inside else None)
        return found

    def _place(self, path: str) -> tuple[int, str]:
        parent, _, name = path.rpartition("/")
        inode = self.disk.find(parent)
        if inode is None:
            raise ValueError(f"{path}: the recording misses its folder")
        return inode, name
