"""Defines the command `report`."""

from __future__ import annotations

import click

from kresume.commands.options import Command
from kresume.commands.output import print_result


@click.command(cls=Command)
@click.argument("run", metavar="RUN|FOLDER")
@click.argument("other", required=False, metavar="[RUN]")
@click.option("--out", metavar="FILE", help="The page. Default: report.html in the run; for two runs, in the second.")
@click.option("--json", "as_json", is_flag=True, help="Print the numbers of the page as JSON.")
def report(run: str, other: str | None, out: str | None, as_json: bool) -> None:
    """Write a page that says whether a run is better, and why; with two runs, a page that compares them.

    \b
    kresume report runs/2-signs                  runs/2-signs/report.html, written again
    kresume report runs/                         of the newest accepted run
    kresume report runs/2-signs runs/3-signs     the second against the first

    Training writes it at its end. The page is one file: it needs no network and can be sent.
    """
    from kresume.reporter import Reporter
    from kresume.reports.page.write import write_report
    from kresume.staging.fetch import here_shown

    for named in (run, *([other] if other else [])):
        here_shown(named)
    with Reporter().waiting(f"writing the report of {other or run}"):
        written = write_report(run, other, out)
    print_result(written, as_json)
