"""Tells which process of a training this is, and shares decisions among several hosts.

    hosts.join(groups.find(coordinator, count, process), "cpu")
    with hosts.together():
        hosts.this()                        # Process(index=1, count=4)
        order = hosts.decided(look)         # process 0 calls look(); every process gets its value
    hosts.this()                            # Process(index=0, count=1): what is outside of the block is done by one process

Process 0 leads: it alone decides and writes. The others follow: they train their share of each batch, take every decision from
process 0, and end when it ends. Small facts travel through the key-value store of `jax.distributed`. A process that dies is
missed after `HEARTBEAT_SECONDS`; jaxlib then aborts all others from C++, which `supervisor.py` translates.

`jax.distributed.global_state`, which holds the store's client, is private to JAX; Orbax uses it, too.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeVar

from kresume.backend.groups import Group, check_port
from kresume.errors import PeerDied, UsageError
from kresume.spelling import option

HEARTBEAT_SECONDS = 10
"""A process that was silent for so long is dead."""
JOIN_SECONDS = 300
"""How long the processes wait for each other at the start."""
LEAVE_SECONDS = 30
"""How long they wait for each other at the end."""
POLL_MILLISECONDS = 1000
MISSING = object()
OUTCOME = "kresume/outcome"

Value = TypeVar("Value")


@dataclass(frozen=True)
class Process:
    """One process of a training.

    Attributes:
        index: 0 for the one that leads.
        count: how many train together.
    """

    index: int = 0
    count: int = 1

    @property
    def leads(self) -> bool:
        """Returns True for the process that decides and writes; a training by one process is led by it."""
        return self.index == 0

    @property
    def alone(self) -> bool:
        """Returns True if no other process takes part."""
        return self.count == 1

    def share(self, length: int) -> slice:
        """Returns this process's contiguous share of something that divides evenly, of a batch for example."""
        each = length // self.count
        return slice(self.index * each, (self.index + 1) * each)


ALONE = Process()
_joined = ALONE
_acting = ALONE
_parted = _followed = False
"""True once this process has left the others, and if it followed one of them."""
_number = 0
"""Counts the shared facts; every process shares them in the same order."""


def this() -> Process:
    """Returns which process this is in what it does now: alone, unless it is in a block of `together`."""
    return _acting


def joined() -> Process:
    """Returns which process this is among those that it has met."""
    return _joined


@contextlib.contextmanager
def _acting_as(process: Process) -> Iterator[None]:
    global _acting  # noqa: PLW0603
    before, _acting = _acting, process
    try:
        yield
    finally:
        _acting = before


def followed() -> bool:
    """Returns True for a process that follows another one, or did: the result is that one's."""
    return _followed or not _joined.leads


def together() -> AbstractContextManager[None]:
    """Makes this process act as one of those that it has met, during a block that all of them go through."""
    return _acting_as(_joined)


def by_itself() -> AbstractContextManager[None]:
    """Makes this process act alone during a block inside that of `together`."""
    return _acting_as(ALONE)


def join(group: Group, device: str | None) -> Process:
    """Meets the other processes; before anything else uses JAX.

    Args:
        group: from `find`.
        device: `"auto"` (or None), `"cpu"`, `"gpu"` or `"tpu"`.

    Raises:
        PeerDied: the others did not come.
        UsageError: this Python process has trained with others before.
    """
    import jax

    global _joined  # noqa: PLW0603
    if not _joined.alone:
        return _joined
    if _parted:
        raise UsageError(
            f"{group.found}: this Python process has trained with others already, and JAX meets others once in a process: "
            f"start a Python process for each such training, or give {option('num-processes', 1)} to train by one process"
        )
    if device not in {None, "auto"}:
        jax.config.update("jax_platforms", {"gpu": "cuda"}.get(str(device), device))
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", False)  # it takes SIGTERM from `StopRequest`
    check_port(group)
    try:
        with _ended_by_interrupts():
            jax.distributed.initialize(
                group.coordinator,
                group.count,
                group.process,
                initialization_timeout=JOIN_SECONDS,
                heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
                shutdown_timeout_seconds=LEAVE_SECONDS,
            )
    except (jax.errors.JaxRuntimeError, RuntimeError, ValueError) as error:
        raise PeerDied(
            f"the processes of this training ({group.found}) did not all meet within {JOIN_SECONDS} s ({error}): start one on "
            f"each host, with the same options but {option('process-id')}, and check that the port is free and not blocked"
        ) from error
    from jax._src.distributed import global_state

    _joined = Process(global_state.process_id, global_state.num_processes)
    return _joined


@contextlib.contextmanager
def _ended_by_interrupts() -> Iterator[None]:
    """Lets Ctrl-C end this process at once during a block in which Python would not hear of it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _client() -> Any:
    from jax._src.distributed import global_state

    return global_state.client


def _take(key: str) -> Any:
    """Waits for a value; a process that dies meanwhile ends this one from C++."""
    while (found := _look(key)) is MISSING:
        pass  # in parts, so that Python sees signals between them
    return found


def _look(key: str) -> Any:
    """Returns a value that was shared, `MISSING` if it is not there within a second.

    Raises:
        PeerDied: the store is gone, and process 0 with it.
    """
    try:
        return json.loads(_client().blocking_key_value_get(key, POLL_MILLISECONDS))
    except Exception as error:  # jaxlib raises one type for everything
        if "DEADLINE_EXCEEDED" in str(error) or "NOT_FOUND" in str(error):
            return MISSING
        raise PeerDied.seen_by(error) from error


def _tell(key: str, value: Any) -> None:
    try:
        _client().key_value_set(key, json.dumps(value), allow_overwrite=True)
    except Exception as error:
        raise PeerDied.seen_by(error) from error


def decided(decide: Callable[[], Value]) -> Value:
    """Lets process 0 decide, and returns its decision in every process.

    Args:
        decide: called in process 0 alone; its value must be what JSON can hold.
    """
    if _acting.alone:
        return decide()
    if not _acting.leads:
        value: Value = receive()
        return value
    found = decide()
    send(found)
    return found


def send(value: Any) -> None:
    """Sends a value from process 0 to all others, each of which calls `receive`."""
    _tell(_next(), value)


def receive() -> Any:
    """Waits for the value that process 0 sends."""
    return _take(_next())


def announce(name: str, value: Any) -> None:
    """Tells all others a value by its name, if this is process 0 of several that act together."""
    if _acting.leads and not _acting.alone:
        _tell(f"kresume/{name}", value)


def announced(name: str) -> Any:
    """Waits for the value that process 0 announces under this name."""
    return _take(f"kresume/{name}")


def exchanged(name: str, value: Value) -> Iterator[tuple[int, Value]]:
    """Tells the processes that have joined a value, and yields theirs as they come, each with its process.

    Process 0 sees the values of all others, those see the one of process 0.

    Args:
        name: of the value.
        value: what JSON can hold.
    """
    _tell(f"kresume/{name}/{_joined.index}", value)
    waiting = list(range(1, _joined.count)) if _joined.leads else [0]
    while waiting:
        for index in list(waiting):
            if (found := _look(f"kresume/{name}/{index}")) is not MISSING:
                waiting.remove(index)
                yield index, found


def _next() -> str:
    """Returns the key of the next shared fact."""
    global _number  # noqa: PLW0603
    _number += 1
    return f"kresume/{_number}"


def gathered(value: Value) -> list[Value]:
    """Returns the values of all processes, in their order; each must be what JSON can hold. Waits for all."""
    return [value] if _acting.alone else _gather(value)


def meet() -> None:
    """Waits until every process that has joined is here."""
    _gather(None)


def _gather(value: Value) -> list[Value]:
    key = _next()
    _tell(f"{key}/{_joined.index}", value)
    return [_take(f"{key}/{index}") for index in range(_joined.count)]


def ask(kind: str, value: Any) -> None:
    """Asks process 0 for something while it trains.

    Args:
        kind: `"signal"` to stop, or `"failed"` to end because this process has failed.
        value: the number of the signal, or the reason.
    """
    _tell(asked(kind), {"value": value, "process": _joined.index})


def asked(kind: str) -> str:
    """Returns the key under which others ask process 0 for something."""
    return f"kresume/asked/{kind}"


@contextlib.contextmanager
def listening(key: str, heard: Callable[[Any], None]) -> Any:
    """Calls a function on a thread once another process tells a value under this key during the block."""
    ended = threading.Event()

    def listen() -> None:
        while not ended.is_set():
            with contextlib.suppress(PeerDied):  # the main thread finds out too
                found = _look(key)
                if found is not MISSING and not ended.is_set():
                    heard(found)
                    return

    thread = threading.Thread(target=listen, name="kresume-hosts", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(2 * POLL_MILLISECONDS / 1000)


def leave(outcome: Mapping[str, Any] | None = None) -> None:
    """Ends the training of this process: process 0 tells the others the outcome, and all part.

    Args:
        outcome: what process 0 tells.
    """
    global _joined, _parted, _followed  # noqa: PLW0603
    if _joined.alone:
        return
    import jax

    with contextlib.suppress(Exception):  # one of them died meanwhile
        if _joined.leads:
            _tell(OUTCOME, dict(outcome or {}))
        jax.distributed.shutdown()
    _followed = not _joined.leads
    _joined, _parted = ALONE, True


def end(code: int) -> None:
    """Ends this process at once, whatever its threads wait for."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
