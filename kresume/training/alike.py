"""Checks that all processes of a training run the same program with the same options.

    check_alike(config)         # before JAX looks for devices
    check_devices()             # afterwards

Every process trains its share by its own copy of the code. An old installation, or another version of the user's file, on one
host would train something else there without a word.
"""

from __future__ import annotations

import hashlib
import platform
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kresume.backend import hosts
from kresume.backend.fingerprint import package_versions, source_digest
from kresume.errors import Followed, UsageError
from kresume.options.given import given
from kresume.options.lookup import MAY_DIFFER
from kresume.options.table import TrainConfig
from kresume.spelling import option

OF_ONE_HOST = MAY_DIFFER - {"devices", "num_processes", "remap"}
"""Options that may differ between the processes of a training. The files of `--import` are compared by their content."""
ABSENT = "not given"


def check_alike(config: TrainConfig) -> None:
    """Compares programs, options and the user's code of all processes.

    Args:
        config: the options of this process.

    Raises:
        UsageError: they differ between process 0 and another one, in both of these.
        Followed: they do, in the others.
    """
    every = {name: value for name, value in given(config).items() if value is not False}
    options = {name: value for name, value in every.items() if name not in OF_ONE_HOST}
    packages = package_versions() | {
        "python": ".".join(platform.python_version_tuple()[:2]),
        "kresume": source_digest(),
    }
    mine = {"host": socket.gethostname(), "options": options, "packages": packages, "code": _digests(every)}
    _agree("alike", mine, _difference)


def check_devices() -> None:
    """Compares the number of devices that each process has.

    Raises:
        UsageError: they differ between process 0 and another one, in both of these.
        Followed: they do, in the others.
    """
    import jax

    _agree("devices", {"host": socket.gethostname(), "devices": jax.local_device_count()}, _uneven)


def _agree(name: str, mine: dict[str, Any], compare: Callable[[dict[str, Any], dict[str, Any], str], str]) -> None:
    """Lets every process compare its facts with those of process 0, and ends all if two differ.

    Args:
        name: of the facts.
        mine: those of this process.
        compare: called with the facts of process 0, those of the other one, and that one's name; returns what differs.
    """
    leads, said = hosts.joined().leads, ""
    for index, theirs in hosts.exchanged(name, mine):
        one, other, number = (mine, theirs, index) if leads else (theirs, mine, hosts.joined().index)
        said = said or compare(one, other, f"process {number} ({other['host']})")
        if said:
            break
    with hosts.together():
        if leads:
            hosts.announce(f"{name}/verdict", said)
        elif not said and (verdict := hosts.announced(f"{name}/verdict")):
            raise Followed(f"process 0 ended: {verdict}", UsageError.exit_code)
    if said:
        raise UsageError(said)


def _difference(leader: dict[str, Any], other: dict[str, Any], name: str) -> str:
    zero = f"process 0 ({leader['host']})"
    for what, way in (
        ("packages", "install the same versions on every host"),
        ("options", f"give the same command on every host, with its own {option('process-id')}"),
        ("code", "give every host the same file"),
    ):
        rows = [
            f"{key}: {_shown(one)} in {zero}, {_shown(theirs)} in {name}"
            for key, one, theirs in _differing(leader[what], other[what])
        ]
        if rows:
            return f"the processes of this training differ ({'; '.join(rows)}): {way}"
    return ""


def _uneven(leader: dict[str, Any], other: dict[str, Any], name: str) -> str:
    if leader["devices"] == other["devices"]:
        return ""
    return (
        f"process 0 ({leader['host']}) has {leader['devices']} devices, {name} has {other['devices']}: JAX shares a batch "
        "among hosts that have equally many: hide the others from JAX (CUDA_VISIBLE_DEVICES), or start more processes with "
        "fewer each"
    )


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    keys = [*one, *(key for key in other if key not in one)]
    rows = ((key, one.get(key, ABSENT), other.get(key, ABSENT)) for key in keys)
    return [(key, mine, theirs) for key, mine, theirs in rows if mine != theirs]


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _digests(options: Mapping[str, Any]) -> dict[str, str]:
    """Returns the digest of every Python file that an option names."""
    values = [each for value in options.values() for each in (value if isinstance(value, list) else [value])]
    named = (str(each).partition(".py:")[0] + ".py" * (".py:" in str(each)) for each in values)
    files = (Path(each) for each in named if each.endswith(".py"))
    return {str(file): hashlib.sha256(file.read_bytes()).hexdigest()[:12] for file in files if file.is_file()}
