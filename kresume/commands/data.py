"""Defines the commands of `kresume data`: `scan`, `check`, `show`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from kresume.commands.options import Group, source_options
from kresume.commands.output import print_result
from kresume.errors import UsageError
from kresume.options.settings import DEFAULTS, SHEET_SIZE
from kresume.spelling import option


@click.group(cls=Group)
def data() -> None:
    """Examine images: manifests, duplicates, leaks between training and validation, unusable files.

    \b
    kresume data scan old/ new.tar -o m.parquet
    kresume data check new/ --from runs/1-signs
    kresume data show runs/2-signs --sheet sheet.png
    """


@data.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH…")
@click.option("-o", "--out", required=True, metavar="FILE", help="The manifest to write, a Parquet table.")
@source_options
def scan(paths: Sequence[str], out: str, feature: Sequence[str], cache: str | None, as_json: bool) -> None:
    """Read every image once and write a manifest, which is a source itself (--data m.parquet).

    \b
    kresume data scan old/ shard-000.tar list.csv -o m.parquet
    """
    from kresume.images.sources.records import parse_features
    from kresume.reporter import Reporter
    from kresume.reports import data as report
    from kresume.staging.output import check_free

    check_free("out", out, overwrite=True, makes_folder=True)
    scanned = report.scan(paths, Reporter(), features=parse_features(tuple(feature)), cache=cache)
    report.write(scanned, out)
    print_result(report.describe(scanned), as_json)


@data.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH…")
@click.option("--val", multiple=True, metavar="PATH", help="Validation images: reports leaks to them. Repeatable.")
@click.option("--from", "run", metavar="RUN", help="A run, or a folder of runs, to which these images would be added.")
@source_options
def check(
    paths: Sequence[str], val: Sequence[str], run: str | None, feature: Sequence[str], cache: str | None, as_json: bool
) -> int:
    """Report duplicates, conflicts, leaks and unusable files. The exit code is 1 if there is any.

    \b
    kresume data check new/ --from runs/1-signs
    kresume data check old/ --val holdout/ --json
    """
    from kresume.checkpoints.run import find_run
    from kresume.images.away import read_away
    from kresume.images.scans import remembered
    from kresume.images.sources.records import parse_features
    from kresume.reporter import Reporter
    from kresume.reports import data as report
    from kresume.reports.data_check import check
    from kresume.runs import dropped_by, open_run

    parent = (find_run(run) or open_run(run)) if run else None
    against = remembered(parent.path) if parent else None
    away = read_away(parent.path, parent.record.away) if parent else None
    features = parse_features(tuple(feature))
    scanned = report.scan(
        paths,
        Reporter(),
        val=val,
        against=against,
        ever=away,
        features=features,
        cache=cache,
        dropped=dropped_by(parent) if parent else frozenset(),
    )
    checked = check(scanned)
    print_result(checked, as_json)
    return 1 if checked.problems else 0


@data.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH…|RUN")
@click.option("--sheet", metavar="FILE.png", help="Draw a sheet of augmented samples.")
@click.option(
    "--augment",
    type=click.Choice(["none", "light", "strong"]),
    help=f"Default: the run's, else {DEFAULTS.augment}.",
)
@click.option("--image-size", metavar="N|HxW", help=f"Of the sheet. Default: the run's, else {SHEET_SIZE}.")
@click.option("--mixup", type=float, metavar="F", help="Of the sheet.")
@click.option("--cutmix", type=float, metavar="F", help="Of the sheet.")
@click.option("--rand-augment", type=float, metavar="F", help="Of the sheet.")
@click.option("--erase", type=float, metavar="F", help="Of the sheet.")
@source_options
def show(
    paths: Sequence[str], sheet: str | None, feature: Sequence[str], cache: str | None, as_json: bool, **options: Any
) -> None:
    """Count images per class, origin and split; show sizes, formats and imbalance.

    \b
    kresume data show runs/2-signs
    kresume data show old/ --sheet sheet.png --augment strong
    """
    from kresume.images.sources.records import parse_features
    from kresume.reporter import Reporter
    from kresume.reports import contact_sheet as sheets
    from kresume.reports import data as report
    from kresume.staging.output import check_free

    unused = [name for name, value in options.items() if value is not None] if sheet is None else []
    if unused:
        raise UsageError(
            f"{option(unused[0].replace('_', '-'))} is about the sheet of samples: give {option('sheet', 'FILE.png')}, too"
        )
    check_free("sheet", sheet, overwrite=True, makes_folder=True)
    reporter = Reporter()
    scanned = report.open_run(paths[0], reporter) if len(paths) == 1 else None
    scanned = scanned or report.scan(paths, reporter, features=parse_features(tuple(feature)), cache=cache)
    print_result(report.describe(scanned), as_json)
    if sheet is not None:
        count = sheets.sheet_of(scanned, options, sheet)
        reporter.say(f"{sheet}: {count} images, as they are and as training may see them")
