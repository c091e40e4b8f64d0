"""Finds out with how many other processes this one trains: from the options, or from what launched it.

group = groups.find("node1:12345", 4, 0)        # Group(coordinator="node1:12345", count=4, process=0, ...)
groups.check_port(group)                        # before JAX listens there
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from kresume.errors import UsageError
from kresume.spelling import option

AUTO = "auto"
"""As a coordinator: JAX finds the others by itself."""


@dataclass(frozen=True)
class Group:
    """The processes that train together, before they have met.

    Attributes:
        coordinator: `"HOST:PORT"` of process 0, or None where JAX finds it.
        count: how many there are; None where JAX counts them.
        process: which one this is; None where JAX knows.
        found: who says so, for messages.
    """

    coordinator: str | None
    count: int | None
    process: int | None
    found: str


def find(coordinator: str | None, count: int | None, process: int | None) -> Group | None:
    """Finds out with how many other processes this one trains.

    Args:
        coordinator: `--coordinator`: `"HOST:PORT"`, or `"auto"`.
        count: `--num-processes`.
        process: `--process-id`.

    Returns:
        None for a training by one process: neither the options nor SLURM, Open MPI or a TPU pod say another.

    Raises:
        UsageError: the options do not fit together.
    """
    given = {"coordinator": coordinator, "num-processes": count, "process-id": process}
    if count == 1:
        return None
    if coordinator == AUTO:
        return Group(None, count, process, option("coordinator", AUTO))
    if all(value is None for value in given.values()):
        return _of_environment(os.environ)
    missing = [option(name) for name, value in given.items() if value is None]
    if missing:
        raise UsageError(
            f"several hosts need {option('coordinator', 'HOST:PORT')}, {option('num-processes')} and {option('process-id')}: "
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing"
        )
    host, _, port = str(coordinator).rpartition(":")
    if not host or not port.isdigit():
        raise UsageError(f"{option('coordinator', coordinator)}: give HOST:PORT of process 0, node1:12345 for example")
    if process is not None and count is not None and not process < count:
        raise UsageError(f"{option('process-id', process)}: give a number from 0 to {count - 1}, one to each process")
    return Group(coordinator, count, process, option("coordinator", coordinator))


def _of_environment(environment: Mapping[str, str]) -> Group | None:
    """Returns the group that a launcher has started this process in; None for no launcher, or one process.

    JAX reads the rest from the same variables.
    """
    sizes = {
        "SLURM": ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
        "Open MPI": ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    }
    for name, (size, rank) in sizes.items():
        if environment.get(size, "1").isdigit() and int(environment.get(size, "1")) > 1 and rank in environment:
            return Group(None, None, None, f"{name} ({size})")
    for name in ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES"):
        if "," in environment.get(name, "") and "TPU_WORKER_ID" in environment:
            return Group(None, None, None, f"the TPU pod ({name})")
    return None


def check_port(group: Group) -> None:
    """Raises UsageError if process 0 cannot listen on its port, which would crash jaxlib."""
    if group.coordinator is None or group.process != 0:
        return
    port = int(group.coordinator.rpartition(":")[2])
    try:
        if socket.has_dualstack_ipv6():  # as gRPC listens
            socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True).close()
        else:
            socket.create_server(("", port)).close()
    except (OSError, OverflowError) as error:
        if isinstance(error, OSError) and error.errno not in {errno.EADDRINUSE, errno.EACCES}:
            return  # this host has no such addresses: JAX finds its own
        raise UsageError(
            f"{option('coordinator', group.coordinator)}: process 0 cannot listen on port {port} of {socket.gethostname()} "
            f"({os.strerror(error.errno) if isinstance(error, OSError) and error.errno else error}): does another training use "
            f"it, or another process with {option('process-id', 0)}? Else give all processes another port"
        ) from error
