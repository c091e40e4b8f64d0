"""Keeps the log files of Keras's callbacks consistent with the backups.

`CSVLogger` and `TensorBoard` append to their files during training. A killed process may have logged steps that no
backup holds; these steps are trained again and would be logged twice. So each backup records the size of every file,
and a continued training removes what was written later. `CSVLogger(append=False)` empties its file when `fit` begins,
so its lines are in the backup. `OrbaxCheckpoint` refuses to save an existing step again, so repeated steps are moved
aside.
"""

from __future__ import annotations

import csv
import os
import posixpath
import socket
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
from etils import epath

from kresume.addresses import is_remote
from kresume.training.loop import callback_state

CHUNK_BYTES = 1 << 24
ASIDE = "interrupted"
"""Suffix of the folder beside an OrbaxCheckpoint's folder, for checkpoints of steps that are trained again."""


_begun: dict[str, list[tuple[str, int]]] = {}
"""Lengths that tables had when fits of this process began, each with the fit's owner, by file."""


class CallbackLogs:
    """The log files of one `fit`'s callbacks.

    Args:
        callbacks: all callbacks of `fit`; callbacks without log files are ignored.
        say: prints one line for the user.
        owner: names this `fit` in every process that trains it, and tells it from others of the script.
    """

    def __init__(self, callbacks: Sequence[Any], say: Callable[[str], None], owner: str = "") -> None:
        named = list(callback_state.named(callbacks))
        self._tables = {name: each for name, each in named if isinstance(each, keras.callbacks.CSVLogger)}
        self._boards = {name: each for name, each in named if isinstance(each, keras.callbacks.TensorBoard)}
        self._checkpoints = [each for _, each in named if isinstance(each, keras.callbacks.OrbaxCheckpoint)]
        self._say, self._owner = say, owner
        self._starts: dict[str, dict[str, Any]] = {}

    def begin(self, saved: Mapping[str, Any] | None, processes: Sequence[str], epoch: int) -> None:
        """Resets every log to the start of this training. Call after the callbacks' own `on_train_begin`.

        Args:
            saved: the result of `positions` in the backup; None for a new training.
            processes: names of the processes that wrote logs for this training.
            epoch: the index of the epoch that begins now.
        """
        for callback in self._checkpoints if saved is not None else ():
            self._continue_checkpoints(callback, epoch)
        saved = _of_same_files(saved or {}, self._files())
        for name, callback in self._tables.items():
            self._starts[name] = {
                "start": len(_read(callback.filename)) if callback.append else 0,
                "header": bool(callback.append_header),
            }
            begun = _begun.setdefault(str(callback.filename), [])
            known = {*saved.get(name, {}).get("others", ()), *(owner for owner, _ in begun)} - {self._owner}
            if name in saved:
                self._starts[name] = {key: saved[name][key] for key in ("start", "header")}
                self._continue_table(callback, saved[name], epoch)
            self._starts[name]["others"] = sorted(known)
            begun.append((self._owner, self._starts[name]["start"]))
        for name, callback in self._boards.items():
            if name in saved:
                self._continue_board(callback, saved[name]["files"], {*processes, this_process()})

    def positions(self) -> dict[str, Any]:
        """Returns the position of each log as JSON values; flushes buffered output first."""
        found: dict[str, Any] = {}
        for name, callback in self._tables.items():
            start = self._starts[name]
            text = _read(callback.filename)[start["start"] :]
            found[name] = {**start, "keys": callback.keys, "text": text.decode("latin-1"), "file": callback.filename}
        for name, callback in self._boards.items():
            for writer in callback._writers.values():
                writer.flush()
            found[name] = {"files": _event_files(callback), "file": str(callback.log_dir)}
        return found

    def _files(self) -> dict[str, str]:
        """Returns the file or the folder of each log."""
        tables = {name: str(callback.filename) for name, callback in self._tables.items()}
        return tables | {name: str(callback.log_dir) for name, callback in self._boards.items()}

    def _continue_table(self, callback: Any, saved: Mapping[str, Any], epoch: int) -> None:
        callback.csv_file.close()
        ours = saved["text"].encode("latin-1")
        if callback.append:
            start = saved["start"]
            content = self._without_repeated(_read(callback.filename), callback, start, saved.get("others"))
            before, after = content[:start], content[start:]
            lines = _lines_from(after[len(ours) :], callback.sep, epoch)
            if ours.startswith(after):
                _write(callback.filename, before + ours)
            elif after.startswith(ours) and lines:
                _write(callback.filename, before + ours)
                self._say(f"{callback.filename}: lines of epochs that are trained again were removed: {lines}")
            else:
                self._say(
                    f"{callback.filename} was changed by another program since the backup: new lines are appended to it"
                )
        else:
            _write(callback.filename, ours)
        callback.csv_file = _open(callback.filename, "a")
        callback.keys = saved.get("keys")
        callback.writer = None
        callback.append_header = saved["header"] and not ours

    def _without_repeated(self, content: bytes, callback: Any, start: int, before: Sequence[str] | None) -> bytes:
        """Removes the lines of fits that were trained again in this process.

        A script that is killed in its second `fit` trains its first one again, which appends its lines once more. They are
        before those of the second one, too.

        Args:
            content: the table.
            callback: writes it.
            start: the length of the table when the `fit` that continues began.
            before: the fits that had logged into the table by then; None in backups of earlier versions.
        """
        others = [
            length
            for owner, length in _begun.get(str(callback.filename), [])
            if owner != self._owner and length >= start and (before is None or owner in before)
        ]
        if before is not None:
            return content[: min(others, default=len(content))]
        length = min(others, default=len(content))
        known, again = (_rows(part, callback.sep) for part in (content[:start], content[length:]))
        # Fits of other folders, folds for example, log the same epochs: only equal values are those of the same training.
        return content[:length] if again and known[-len(again) :] == again else content

    def _continue_board(self, callback: Any, saved: Mapping[str, int], processes: set[str]) -> None:
        import tensorflow as tf

        # Close first: then every file is complete and no longer written.
        callback._pop_writer()
        callback._close_writers()
        callback._writers = {}
        removed = 0
        for name, size in _event_files(callback).items():
            path = posixpath.join(callback.log_dir, name)
            if name in saved:
                if size > saved[name]:
                    _shorten(path, saved[name])
                    removed += 1
            elif any(f".{process}." in name for process in processes):
                tf.io.gfile.remove(path)
                removed += 1
        if saved and callback._global_train_batch:
            callback._should_write_train_graph = False  # it is in the first process's file
        callback._push_writer(callback._train_writer, callback._global_train_batch)
        if removed:
            self._say(f"{callback.log_dir}: events of steps that are trained again were removed from {removed} files")

    def _continue_checkpoints(self, callback: Any, epoch: int) -> None:
        first = epoch if callback.save_freq == "epoch" else callback._total_batches_seen + 1
        folder = epath.Path(callback.directory)
        again = [each for each in folder.iterdir() if each.name.isdecimal() and int(each.name) >= first]
        aside = folder.parent / f"{folder.name}.{ASIDE}"
        for each in again:
            aside.mkdir(parents=True, exist_ok=True)
            if (aside / each.name).exists():
                (aside / each.name).rmtree()
            each.rename(aside / each.name)
        if again:
            callback.checkpointer.reload()
            self._say(f"{folder}: checkpoints of steps that are trained again were moved to {aside}")


def this_process() -> str:
    """Returns the name of this process in TensorFlow's event files."""
    return f"{socket.gethostname()}.{os.getpid()}"


def _lines_from(data: bytes, separator: str, epoch: int) -> int:
    """Counts the lines, a header included, if they log the epochs from `epoch` on; else 0."""
    lines = data.decode("latin-1").splitlines()
    numbers = _numbers(data, separator)
    if numbers and not data.endswith(b"\n"):
        numbers = numbers[:-1]  # torn by the kill
    right = numbers == [str(epoch + index) for index in range(len(numbers))]
    return len(lines) if right else 0


def _rows(data: bytes, separator: str) -> list[list[str]]:
    """Returns the lines of a table, without its header."""
    rows = list(csv.reader(data.decode("latin-1").splitlines(), delimiter=separator))
    return rows[1:] if rows and rows[0][:1] == ["epoch"] else rows


def _numbers(data: bytes, separator: str) -> list[str]:
    """Returns the epochs of the lines of a table, without its header."""
    return [next(iter(row), "") for row in _rows(data, separator)]


def _of_same_files(saved: Mapping[str, Any], files: Mapping[str, str]) -> dict[str, Any]:
    """Returns the saved positions by the names that their logs have now.

    The callbacks of a script may come in another order. A log whose path has changed is one of its class that no other
    callback writes now.
    """
    found = callback_state.paired_names(
        files,
        saved,
        lambda name, key: bool(saved[key].get("file") == files[name]),
        lambda name, key: name == key,
        lambda name, key: True,
    )
    return {name: saved[key] for name, key in found.items()}


def _event_files(callback: Any) -> dict[str, int]:
    """Returns the sizes of a TensorBoard callback's event files, by name relative to `log_dir`."""
    import tensorflow as tf

    found = {}
    for folder in (callback._train_dir, callback._val_dir):
        for name in tf.io.gfile.listdir(folder) if tf.io.gfile.isdir(folder) else ():
            path = posixpath.join(folder, name)
            if "tfevents" in name and not tf.io.gfile.isdir(path):
                found[posixpath.join(posixpath.basename(folder), name)] = int(tf.io.gfile.stat(path).length)
    return found


def _shorten(path: str, size: int) -> None:
    """Replaces a file by a copy of its first `size` bytes; an open writer cannot extend it."""
    import tensorflow as tf

    temporary = posixpath.join(posixpath.dirname(path), f".tmp-{uuid.uuid4().hex}")
    with tf.io.gfile.GFile(path, "rb") as source, tf.io.gfile.GFile(temporary, "wb") as target:
        while size > 0:
            target.write(source.read(min(size, CHUNK_BYTES)))
            size -= CHUNK_BYTES
    tf.io.gfile.rename(temporary, path, overwrite=True)


def _open(path: str, mode: str) -> Any:
    """Opens a local or remote file as `CSVLogger` does."""
    if is_remote(path):
        import tensorflow as tf

        return tf.io.gfile.GFile(path, mode)
    return Path(path).open(mode)


def _read(path: str) -> bytes:
    """Returns a file's content; empty if it does not exist."""
    if is_remote(path):
        import tensorflow as tf

        if not tf.io.gfile.exists(path):
            return b""
    elif not Path(path).exists():
        return b""
    with _open(path, "rb") as file:
        content: bytes = file.read()
    return content


def _write(path: str, content: bytes) -> None:
    with _open(path, "wb") as file:
        file.write(content)
