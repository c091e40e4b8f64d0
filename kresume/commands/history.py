"""Defines the command `log`."""

from __future__ import annotations

import click

from kresume.commands.options import Command
from kresume.commands.output import print_result
from kresume.errors import UsageError


@click.command(cls=Command)
@click.argument("paths", nargs=-1, metavar="[RUN|FOLDER] [RUN]")
@click.option("--short", is_flag=True, help="One line per run.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def log(paths: tuple[str, ...], short: bool, as_json: bool) -> None:
    """Show runs and their parents as a tree, newest first; with two runs, what differs between them.

    For each run: accepted or rejected, its exports, its parent and whether that still is what it was, the images that were
    added, what changed, and the results before -> after. A run is above its parent; branches are to the right. Default: runs/.

    \b
    kresume log runs/                      every run in the folder and its subfolders
    kresume log runs/3-signs               the run and its ancestors
    kresume log runs/2-signs runs/3-signs  options, images and results that differ
    kresume log runs/ --short              one line per run
    """
    if len(paths) > 2:
        raise UsageError(f"kresume log takes a folder, a run, or two runs to compare; got {len(paths)} paths")
    from kresume.staging.fetch import here_shown

    for path in paths:
        here_shown(path)
    if len(paths) == 2:
        from kresume.reports.differences import compare_runs

        print_result(compare_runs(*paths), as_json)
        return
    from kresume.reports import lineage

    found = lineage.lineage(*(paths or ("runs",)))
    if as_json or not short:
        print_result(found, as_json)
    else:
        click.echo(found.text(short=True))
