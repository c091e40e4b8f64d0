"""Reads a run on this machine or at an address, of which the run is fetched.

run = open_run("s3://bucket/runs/1-signs")
run.record.result, run.path                # the path is that of its stage, the local copy
"""

from __future__ import annotations

import os

from kresume import runs
from kresume.addresses import as_address, is_remote
from kresume.reporter import Reporter
from kresume.runs import Run
from kresume.staging.fetch import here
from kresume.storage import one_file


def run_at(path: str, reporter: Reporter | None = None) -> Run | None:
    """Returns the run at a path or an address, None if it is no run; only a run is fetched."""
    if is_remote(path):
        if not one_file.is_file(f"{path.rstrip('/')}/{runs.RECORD}"):
            return None
        path = here(path, reporter)
    return runs.open_run(path) if runs.is_run(path) else None


def open_run(path: str | os.PathLike[str]) -> Run:
    """Reads a run.

    Args:
        path: the run directory; at an address, the run is fetched.

    Raises:
        RunError: there is no run at `path`, its address cannot be read, or its record cannot be read, was changed or is of a
            later version.
        MissingPackage, UsageError: the scheme of the address needs a package, or is unknown.
    """
    text = as_address(path)
    return run_at(text) or runs.open_run(text)  # which says that there is none
