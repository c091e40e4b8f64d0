"""Defines the commands `doctor` and `demo`."""

from __future__ import annotations

import click

from kresume.commands.options import Command
from kresume.commands.output import here_alone, print_result


@click.command(cls=Command)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option(
    "--measure/--no-measure", default=True, help="Measure how fast pictures come and how fast it trains: half a minute."
)
def doctor(as_json: bool, measure: bool) -> None:
    """Show backends and devices, what is missing and how to mend it, and how fast this machine is.

    Each backend is asked in a process of its own, so a crash or a device that hangs is a line of the answer.

    \b
    kresume doctor
    kresume doctor --no-measure        (a few seconds)
    """
    from kresume.reporter import Reporter
    from kresume.reports.doctor.diagnose import diagnose

    print_result(diagnose(Reporter(), measure=measure), as_json)


@click.command(cls=Command)
@click.option(
    "--dir",
    "directory",
    default="kresume-demo",
    show_default=True,
    metavar="DIR",
    callback=here_alone,
    help="The folder to write.",
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
