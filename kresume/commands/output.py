"""Prints the result of a command, and checks the files that it will write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from kresume.addresses import public
from kresume.errors import UsageError
from kresume.spelling import option


def print_result(result: Any, as_json: bool) -> None:
    """Prints a result to stdout, as text or as JSON."""
    text = json.dumps(result.as_dict(), indent=2, ensure_ascii=False) if as_json else str(result)
    click.echo(public(text))


def check_free(flag: str, path: str | None, *, overwrite: bool) -> None:
    """Checks that a file can be written, before a command works for minutes.

    Args:
        flag: the option that names it.
        path: the file; None if the option is not given.
        overwrite: True if an existing file may be replaced.

    Raises:
        UsageError: the file exists, or its folder does not.
    """
    if path is None:
        return
    file = Path(path)
    if file.exists() and (not overwrite or file.is_dir()):
        way = "give the name of a file" if file.is_dir() else f"give another name, or {option('overwrite')}"
        raise UsageError(f"{option(flag, path)}: it already exists; {way}")
    if not file.absolute().parent.is_dir():
        raise UsageError(f"{option(flag, path)}: the folder {file.absolute().parent} does not exist")
