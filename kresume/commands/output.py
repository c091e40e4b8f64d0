"""Prints the result of a command."""

from __future__ import annotations

import json
from typing import Any

import click


def print_result(result: Any, as_json: bool) -> None:
    """Prints a result to stdout, as text or as JSON."""
    click.echo(json.dumps(result.as_dict(), indent=2, ensure_ascii=False) if as_json else str(result))
