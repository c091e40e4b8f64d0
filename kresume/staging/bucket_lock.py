"""Locks a run in a bucket, so that one machine at a time trains it.

    lock = BucketLock(store, stage)
    lock.acquire()

A bucket has no renames, and not every one has conditional writes; each can create an object only if it does not exist.
The lock is therefore an object with a number in its name, `lock-3.json`, and the highest number holds it. Who takes it
over creates the next number, which succeeds for one process alone. A heartbeat writes the own object only. Content,
waiting and messages are those of `kresume.lock`.
"""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kresume.errors import RunError
from kresume.lock import HEARTBEAT_SECONDS, Lock, is_alive, parse_holder, this_machine
from kresume.storage.stores import Store

PATTERN = re.compile(r"lock-(\d+)\.json")


def host_and_machine() -> str:
    """Returns the host's name with a mark of this machine."""
    return f"{socket.gethostname()}-{this_machine()}"


class BucketLock(Lock):
    """Locks a run in a bucket.

    Args:
        store: the run's place.
        stage: its local folder, which messages name.
        take_over: take the lock from another machine without waiting for its heartbeat to expire.
        options: further arguments of `Lock`.
    """

    def __init__(self, store: Store, stage: Path, *, take_over: bool = False, **options: Any) -> None:
        super().__init__(stage, take_over=take_over, **{"host": host_and_machine(), **options})
        self.store = store
        self._number = 0

    def acquire(self, *, again: bool = False) -> None:
        """Acquires the lock, as `Lock.acquire` does.

        The clocks of two machines may differ, so a heartbeat that looks expired is watched for a while.
        """
        holder = self.holder()
        elsewhere = holder is not None and holder["host"] != self.host and not self.take_over
        if holder is not None and elsewhere and not is_alive(holder, host=self.host, clock=self.clock):
            who = f"pid {holder['pid']} on {holder['host']}"
            self.say(f"{self.run} was held by {who}: watching whether it is alive")
            self.sleep(1.25 * HEARTBEAT_SECONDS)
            fresh = self.holder()
            if fresh is not None and fresh["heartbeat"] != holder["heartbeat"]:
                raise RunError(
                    f"{self.run} is being trained by {who}, whose clock differs: wait for it, or stop that process first "
                    f"({self.way_on} takes it over)"
                )
        super().acquire(again=again)

    def _numbers(self) -> list[int]:
        found = (PATTERN.fullmatch(name) for name in self.store.names(deep=False))
        return sorted(int(match[1]) for match in found if match)

    def _look(self) -> tuple[bytes | None, dict[str, Any] | None]:
        for number in reversed(self._numbers()):
            try:
                content = self.store.read(_name(number))
            except FileNotFoundError:  # released meanwhile
                continue
            return content, parse_holder(content)
        return None, None

    def _take(self, old: bytes | None) -> bool:
        numbers = self._numbers()
        number = max(numbers, default=0) + 1
        if old != self._look()[0]:
            return False
        if not self.store.create(_name(number), self._encoded()):
            holder = self.holder()
            if holder is None or holder.get("token") != self.token:
                return False
        self._number = number  # also if only the answer was lost, and the object is there
        if self._numbers()[-1] != number:  # it was listed long ago: another process has a later one
            self._remove(b"")
            return False
        for older in numbers:
            self.store.remove(_name(older))
        return True

    def _refresh(self) -> None:
        self.store.write(_name(self._number), self._encoded())

    def _remove(self, content: bytes) -> None:
        self.store.remove(_name(self._number))
        self._number = 0

    def _encoded(self) -> bytes:
        return json.dumps(self._facts()).encode()


def _name(number: int) -> str:
    return f"lock-{number}.json"


def lock_of(store: Store, stage: Path, *, take_over: bool, way_on: str, say: Callable[[str], None]) -> Lock:
    """Returns the lock of a place: its own file on a drive, an object in a bucket."""
    from kresume.storage.stores import Mount

    if isinstance(store, Mount):
        Path(store.address).mkdir(parents=True, exist_ok=True)
        return Lock(Path(store.address), take_over=take_over, way_on=way_on, say=say)
    return BucketLock(store, stage, take_over=take_over, way_on=way_on, say=say)
