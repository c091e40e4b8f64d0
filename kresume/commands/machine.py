"""Defines the commands `doctor` and `demo`."""

from __future__ import annotations

import click

from kresume.commands.options import Command
from kresume.commands.output import print_result


@click.command(cls=Command)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def doctor(as_json: bool) -> None:
    """Show backends, devices, versions, and what is missing.

    \b
    kresume doctor
    """
    from kresume.reports.doctor import diagnose

    print_result(diagnose(), as_json)


@click.command(cls=Command)
@click.option(
    "--dir", "directory", default="kresume-demo", show_default=True, metavar="DIR", help="The folder to write."
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def demo(directory: str, as_json: bool) -> None:
    """Show everything on real digits, in about a minute: train, kill, continue, add images, compare.

    \b
    kresume demo
    """
    from kresume.demo import run
    from kresume.reporter import Reporter

    print_result(run(directory, Reporter()), as_json)
