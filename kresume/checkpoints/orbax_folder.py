"""Reads Orbax checkpoints: of `keras.callbacks.OrbaxCheckpoint`, and plain pytrees of arrays.

    state = read("orbax/")          # the highest step; "orbax/12" that one

Keras's own restore is not used: it matches exact paths, ignores paths that it does not find, and silently returns wrong
weights (https://github.com/keras-team/keras/issues/23251). The arrays on disk are correct. orbax-checkpoint reads them
as a tree, and `kresume.models.match_tree` finds their variables. Keras writes architecture and compile config beside
them (`model_config`).
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from kresume.checkpoints.json_text import read_file, read_object
from kresume.checkpoints.keras_arrays import described, rate_of_schedule, unwrapped
from kresume.errors import CheckpointError, MissingPackage
from kresume.storage import atomic
from kresume.values.state import SavedRate, TrainState

TREE, STEP = ("_METADATA", "manifest.ocdbt"), "_CHECKPOINT_METADATA"
ITEMS = ("pytree", "default", "state", "params", "items")
CONFIG = Path("model_config") / "_strings.json"
OPTIMIZER = "optimizer_variables"
LARGEST_SHARE = 10_000
"""Largest ratio of claimed bytes to bytes on disk. Momentum that is all zeros compresses well; a forged shape exceeds
this."""
SMALLEST_LIMIT = 2**30


def accepts(path: str) -> bool:
    """Returns True for a pytree of Orbax, a step folder or a folder of steps."""
    folder = Path(path)
    return folder.is_dir() and (_is_tree(folder) or _is_step(folder) or bool(_steps(folder)))


def _is_tree(folder: Path) -> bool:
    return any((folder / name).is_file() for name in TREE)


def _is_step(folder: Path) -> bool:
    return (folder / STEP).is_file() or any(_is_tree(folder / name) for name in ITEMS)


def _steps(folder: Path) -> list[Path]:
    """Returns the folders of finished steps, lowest first.

    The folder of an unfinished step has a longer name and does not match.
    """
    found = []
    for child in folder.iterdir():
        number = re.fullmatch(r"(?:\w+_)?(\d+)", child.name)
        if number and child.is_dir() and (_is_step(child) or _is_tree(child)):
            found.append((int(number.group(1)), child))
    return [child for _, child in sorted(found)]


def read(path: str) -> TrainState:
    """Reads every array of the tree, and the files that Keras wrote beside it.

    Raises:
        CheckpointError: if the checkpoint is truncated or damaged, or holds several trees.
        MissingPackage: if orbax-checkpoint is not installed.
    """
    if importlib.util.find_spec("orbax") is None:
        raise MissingPackage(f"reading {path} needs orbax-checkpoint: pip install 'kresume[orbax]'")
    folder = Path(path).absolute()
    way = "use an earlier one"
    if not _is_tree(folder) and not _is_step(folder):
        *earlier, folder = _steps(folder)
        other = f"use {Path(path) / earlier[-1].name}" if earlier else "it has no other"
        way = f"its newest step is {folder.name}; {other}"
    item = folder if _is_tree(folder) else _item(folder, path)
    arrays = dict(_flat(_tree(item, path, way), ()))
    config = _config(folder, path)
    compiled = config.get("compile_config") if config else None
    saved = unwrapped((compiled or {}).get("optimizer"))
    scaling = scaling_of(arrays)
    names = [name for name in arrays if name.startswith(f"{OPTIMIZER}/") and name not in scaling]
    iterations = _scalar(arrays, names, "iteration") if names else arrays.get("step")
    is_count = iterations is not None and iterations.shape == () and iterations.dtype.kind in "iu"
    return TrainState(
        source=path,
        format="orbax",
        layout="tree",
        arrays=arrays,
        architecture={**config, "compile_config": None} if config else None,
        compiled=compiled,
        optimizer=described(saved, len(names), bool(scaling)) if names else None,
        step=int(iterations) if iterations is not None and is_count else None,
        rate=_rate(saved, _scalar(arrays, names, "learning_rate")),
        writer="orbax, Keras 3" if config else "orbax",
        written=atomic.modified(item),
    )


def _item(folder: Path, path: str) -> Path:
    """Returns the only tree in a step's folder."""
    named = [folder / name for name in ITEMS if _is_tree(folder / name)]
    others = [child for child in sorted(folder.iterdir()) if child.is_dir() and _is_tree(child)]
    others = [child for child in others if child.name != CONFIG.parent.name]
    found = named[:1] or others
    if len(found) != 1:
        what = ", ".join(child.name for child in found) or "none"
        raise CheckpointError(
            f"{path}: expected one tree of arrays in {folder.name}, found {what}: give the path of one, {path}/NAME"
        )
    return found[0]


def _tree(item: Path, path: str, way: str) -> Any:
    import orbax.checkpoint as orbax

    def read_all() -> Any:
        with _quiet(), _loops_that_finish(), orbax.PyTreeCheckpointer() as checkpointer:
            metadata = checkpointer.metadata(item).item_metadata
            if metadata is None:
                raise CheckpointError(f"{path} is truncated or damaged ({item.name} describes no tree): {way}")
            tree = metadata.tree
            _check_size(tree, item, path)
            kinds = _mapped(
                tree, lambda leaf: orbax.RestoreArgs(restore_type=np.ndarray if hasattr(leaf, "shape") else None)
            )
            return checkpointer.restore(item, restore_args=kinds)

    try:
        return _in_own_thread(read_all)
    except (ValueError, KeyError, TypeError, AttributeError, OSError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise CheckpointError(f"{path} is truncated or damaged ({reason}): {way}") from error


def _in_own_thread(function: Callable[[], Any]) -> Any:
    """Calls the function in a thread without an event loop.

    In a notebook an event loop already runs in the main thread.
    """
    result: Future[Any] = Future()

    def run() -> None:
        try:
            result.set_result(function())
        except BaseException as error:  # raised again in the caller's thread
            result.set_exception(error)

    threading.Thread(target=run, name="kresume-orbax", daemon=True).start()
    return result.result()


_ONE_READER = threading.Lock()


def _finishing(loop: asyncio.AbstractEventLoop) -> asyncio.AbstractEventLoop:
    """Makes an event loop finish its tasks before it closes."""
    close = loop.close

    def finish_and_close() -> None:
        while not loop.is_closed() and (tasks := asyncio.all_tasks(loop)):
            loop.run_until_complete(asyncio.wait(tasks))
        close()

    loop.set_exception_handler(lambda loop, context: None)  # the first failure is raised; ignore the others
    loop.close = finish_and_close  # type: ignore[method-assign]
    return loop


@contextmanager
def _loops_that_finish() -> Iterator[None]:
    """Makes the event loops of this thread finish their tasks before they close.

    Orbax closes its loop when one array cannot be read, while others are still being read. Each of those later raises
    "RuntimeError: Event loop is closed" on another thread, during unrelated work.
    """
    with _ONE_READER:
        reader, make = threading.get_ident(), asyncio.new_event_loop

        def new_event_loop() -> asyncio.AbstractEventLoop:
            return _finishing(make()) if threading.get_ident() == reader else make()

        asyncio.new_event_loop = new_event_loop
        try:
            yield
        finally:
            asyncio.new_event_loop = make


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppresses orbax's log messages, for example that a bare tree has no step metadata."""
    logger = logging.getLogger("absl")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _check_size(tree: Any, item: Path, path: str) -> None:
    on_disk = sum(file.stat().st_size for file in item.rglob("*") if file.is_file())
    claimed = 0
    for _, leaf in _leaves(tree, ()):
        if getattr(leaf, "shape", None) is not None and getattr(leaf, "dtype", None) is not None:
            claimed += int(np.prod([float(side) for side in leaf.shape])) * np.dtype(leaf.dtype).itemsize
    if claimed > max(LARGEST_SHARE * on_disk, SMALLEST_LIMIT):
        raise CheckpointError(f"{path} claims {claimed:,} bytes of arrays, but has {on_disk:,} on disk: refused")


def _children(tree: Any) -> list[tuple[str, Any]] | None:
    if isinstance(tree, Mapping):
        return [(str(key), value) for key, value in tree.items()]
    if isinstance(tree, (list, tuple)):
        return [(str(index), value) for index, value in enumerate(tree)]
    return None


def _mapped(tree: Any, function: Any) -> Any:
    if isinstance(tree, Mapping):
        return {key: _mapped(value, function) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [_mapped(value, function) for value in tree]
    return function(tree)


def _leaves(tree: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    children = _children(tree)
    if children is None:
        yield path, tree
    else:
        for key, value in children:
            yield from _leaves(value, (*path, key))


def _flat(tree: Any, path: tuple[str, ...]) -> Iterator[tuple[str, np.ndarray]]:
    """Yields arrays and numbers by path, without texts and empty nodes."""
    for leaf_path, leaf in _leaves(tree, path):
        if isinstance(leaf, (np.ndarray, np.generic, int, float)) and not isinstance(leaf, bool):
            yield "/".join(leaf_path), np.asarray(leaf)


def _config(folder: Path, path: str) -> dict[str, Any] | None:
    """Reads architecture and compile config, which Keras's callback writes beside the tree."""
    file = next((parent / CONFIG for parent in (folder, folder.parent) if (parent / CONFIG).is_file()), None)
    if file is None:
        return None
    text = read_file(file).get("config")
    value = read_object(text, f"{path}: {CONFIG}") if isinstance(text, str) else {}
    if "class_name" not in value:
        raise CheckpointError(f"{path}: {CONFIG} holds no model: the checkpoint is damaged")
    return value


def scaling_of(names: Iterable[str]) -> frozenset[str]:
    """Returns the arrays of loss scaling, which wraps the optimizer and has a count and a rate of its own.

    Args:
        names: those of all arrays.
    """
    listed = [name for name in names if name.startswith(f"{OPTIMIZER}/")]
    roots = {name.rpartition("/")[0] for name in listed if name.rpartition("/")[2] == "dynamic_scale"}
    return frozenset(name for name in listed if name.rpartition("/")[0] in roots)


def _scalar(arrays: Mapping[str, np.ndarray], names: Iterable[str], last: str) -> np.ndarray | None:
    found = [arrays[name] for name in names if name.rpartition("/")[2] == last and arrays[name].shape == ()]
    return found[0] if len(found) == 1 else None


def _rate(saved: Mapping[str, Any] | None, stored: np.ndarray | None) -> SavedRate | None:
    rate = saved["config"].get("learning_rate") if saved is not None else None
    if isinstance(rate, Mapping):
        return rate_of_schedule(rate)
    return SavedRate(float(stored), "float") if stored is not None else None
