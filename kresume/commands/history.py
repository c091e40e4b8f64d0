"""Defines the command `log`."""

from __future__ import annotations

import click

from kresume.commands.options import Command
from kresume.commands.output import print_result


@click.command(cls=Command)
@click.argument("path", default="runs", metavar="RUN|FOLDER")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def log(path: str, as_json: bool) -> None:
    """List a run and its ancestors, or every run in a folder, newest first, with data and results.

    \b
    kresume log runs/
    """
    from kresume.reports.lineage import lineage

    print_result(lineage(path), as_json)
