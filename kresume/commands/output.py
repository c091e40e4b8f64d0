"""Prints the result of a command, and refuses addresses for what must be on this machine."""

from __future__ import annotations

import json
from typing import Any

import click

from kresume.addresses import public
from kresume.storage.one_file import require_local


def print_result(result: Any, as_json: bool) -> None:
    """Prints a result to stdout, as text or as JSON."""
    text = json.dumps(result.as_dict(), indent=2, ensure_ascii=False) if as_json else str(result)
    click.echo(public(text))


def here_alone(ctx: click.Context, parameter: click.Parameter, value: Any) -> Any:
    """Refuses an address for an option that names what must be on this machine."""
    require_local(parameter.opts[-1].lstrip("-"), value)
    return value
