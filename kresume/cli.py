"""Defines the command line: each command parses, makes one library call and prints.

Results go to stdout, everything else to stderr. A `KresumeError` becomes one line and its exit code; an exception of
the user's own code becomes a line and exit code 1; anything else is a bug and keeps its traceback. Commands never ask
questions, and import nothing heavy before they run.
"""

from __future__ import annotations

import atexit
import gc
import json
import sys
from collections.abc import Sequence
from typing import Any

import click

from kresume import crash
from kresume.cli_options import (
    FEATURE,
    ConfigCommand,
    Group,
    config_options,
    help_all,
    model_options,
    read_model_options,
    source_options,
)
from kresume.errors import KresumeError, RestoreError
from kresume.options.settings import DEFAULTS, EXPORT_FORMAT, ON_BAD_IMAGE, SHEET_SIZE, TOP_K
from kresume.spelling import as_flag, spelled


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="kresume", message="kresume %(version)s")
def cli() -> None:
    """Resume training an image model from a checkpoint, with additional images, exactly.

    \b
    kresume train --data old/ --out runs/1-signs                  a first training
    kresume train --from runs/1-signs --add new/ --lr 1e-4        more images, another rate
    kresume train --from ckpt/ --model my.py:build --data old/ --add new/

    An interrupted command is continued by running it again.
    """


@cli.command(cls=ConfigCommand)
@help_all
@config_options
def train(file: str | None, sets: Sequence[str], as_json: bool, **flags: Any) -> int:
    """Train a new model, extend a checkpoint with more images, or continue an interrupted run.

    \b
    kresume train --data old/ --model convnet --epochs 15 --out runs/1-signs
    kresume train --from runs/1-signs --add new/ --lr 1e-4
    kresume train --out runs/2-signs            (continues it, as the same command does)
    """
    from kresume.options.resolve import resolve
    from kresume.reporter import Reporter
    from kresume.training.resume import train as run

    result = run(resolve(flags, file, sets), Reporter())
    _print(result, as_json)
    return result.exit_code


@cli.command(cls=ConfigCommand)
@help_all
@config_options
def plan(file: str | None, sets: Sequence[str], as_json: bool, **flags: Any) -> None:
    """Show what `train` with the same options would do. Reads and scores, writes nothing.

    \b
    kresume plan --from runs/1-signs --add new/ --lr 1e-4
    """
    from kresume.options.resolve import resolve
    from kresume.reporter import Reporter
    from kresume.training.plan.decide import make_plan

    _print(make_plan(resolve(flags, file, sets), Reporter()), as_json)


@cli.command()
@click.argument("checkpoint", metavar="CKPT")
@click.option(
    "--write-model",
    metavar="FILE.py",
    help="Write a Keras skeleton of a PyTorch state dict: its layers in order, to be filled in.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def inspect(checkpoint: str, write_model: str | None, as_json: bool) -> None:
    """Show what a checkpoint holds and which options resuming it needs.

    \b
    kresume inspect runs/1-signs
    kresume inspect ckpt/
    kresume inspect resnet18.pth --write-model model.py
    """
    from kresume.checkpoints.inspect import describe
    from kresume.checkpoints.read import read_checkpoint

    state = read_checkpoint(checkpoint)
    if write_model is not None:
        from kresume.checkpoints import skeleton
        from kresume.storage import atomic

        file = skeleton.check_free(write_model)
        atomic.write_text(file, skeleton.skeleton(state, write_model))
        for line in skeleton.describe_next(state, file):
            click.echo(line, err=True)
    _print(describe(state), as_json)


@cli.command(name="eval")
@click.argument("checkpoint", metavar="RUN|CKPT|SAVEDMODEL")
@click.option("--data", multiple=True, required=True, metavar="PATH", help="Images, one folder per class. Repeatable.")
@model_options
@click.option("--against", metavar="RUN|CKPT|SAVEDMODEL", help="Another model to compare with on the same images.")
@click.option("--feature", multiple=True, metavar="ROLE=NAME", help=FEATURE)
@click.option(
    "--batch-size", type=int, default=DEFAULTS.batch_size, show_default=True, metavar="N", help="Images per prediction."
)
@click.option("--cache", metavar="DIR", help="Where decoded pictures are kept: auto, off or a folder.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def evaluate(
    checkpoint: str, data: Sequence[str], image_size: str | None, classes: str | None, as_json: bool, **options: Any
) -> None:
    """Score a run, a checkpoint or a SavedModel on images, per origin and class.

    A SavedModel runs with TensorFlow alone, through its own signature.

    \b
    kresume eval runs/2-signs --data test/ --json
    kresume eval runs/2-signs --data test/ --against serving/signs
    """
    from kresume.evaluation.evaluate import evaluate as run
    from kresume.reporter import Reporter

    options |= read_model_options(image_size, classes)
    _print(run(checkpoint, list(data), reporter=Reporter(), **options), as_json)


@cli.command()
@click.argument("checkpoint", metavar="RUN|CKPT")
@click.argument("directory", metavar="DIR")
@click.option(
    "--format",
    type=click.Choice(["saved-model", "onnx", "litert", "keras", "tf-checkpoint", "weights-h5"]),
    default=EXPORT_FORMAT,
    show_default=True,
    help="The last three include the optimizer: they convert a checkpoint.",
)
@click.option("--version", type=int, metavar="N", help="saved-model: the version's number. Default: the next free one.")
@click.option("--prune-keep", type=int, metavar="N", help="saved-model: remove all versions but the newest N.")
@click.option("--top-k", type=int, default=TOP_K, show_default=True, metavar="K", help="saved-model: labels per image.")
@click.option("--embeddings", is_flag=True, help="saved-model: add `embed`, the features before the head.")
@click.option(
    "--on-bad-image",
    type=click.Choice(["error", "flag"]),
    default=ON_BAD_IMAGE,
    show_default=True,
    help="saved-model: fail a request with an unreadable image, or flag that image and answer the others.",
)
@click.option("--like", metavar="SAVEDMODEL", help="saved-model: keep the signatures and label order of this one.")
@click.option(
    "--like-pixels",
    metavar="NAME",
    help="saved-model: the pixel values that clients of --like send, as in --pixels, if its answers do not show them.",
)
@click.option("--name", metavar="NAME", help="saved-model: the model's name for the server. Default: DIR's name.")
@click.option("--quantize", type=click.Choice(["float16", "int8"]), help="litert: smaller numbers.")
@click.option(
    "--optimizer",
    metavar="keep|NAME|NAME:reset",
    help="Training formats: its name, if the checkpoint does not record it; NAME:reset writes a fresh one.",
)
@click.option(
    "--data", multiple=True, metavar="PATH", help="Images to verify on. Default: the run's validation images."
)
@click.option("--feature", multiple=True, metavar="ROLE=NAME", help=FEATURE)
@click.option("--tolerance", type=float, metavar="F", help="Accept scores that differ by up to F (0 to 1).")
@click.option("--overwrite", is_flag=True, help="Formats without versions: move the content of DIR aside.")
@model_options
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def export(
    checkpoint: str, directory: str, image_size: str | None, classes: str | None, as_json: bool, **options: Any
) -> int:
    """Export a run or a checkpoint, verified: one that differs from the model is not written to DIR.

    \b
    kresume export runs/2-signs serving/signs                       the next version for TensorFlow Serving
    kresume export runs/2-signs serving/signs --like serving/old    clients of the old model need no change
    kresume export runs/2-signs phone/ --format litert --quantize float16
    kresume export ckpt/ converted/ --format keras --model my.py:build --optimizer adam
    """
    from kresume.exports.export import export as run
    from kresume.reporter import Reporter

    options |= read_model_options(image_size, classes)
    result = run(checkpoint, directory, reporter=Reporter(), **options)
    _print(result, as_json)
    return result.exit_code


@cli.group(cls=Group)
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
    from pathlib import Path

    from kresume.images.sources.records import parse_features
    from kresume.reporter import Reporter
    from kresume.reports import data as report

    scanned = report.scan(paths, Reporter(), features=parse_features(tuple(feature)), cache=cache)
    report.write(scanned, Path(out))
    _print(report.describe(scanned), as_json)


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
    from kresume.images.scans import remembered
    from kresume.images.sources.records import parse_features
    from kresume.reporter import Reporter
    from kresume.reports import data as report
    from kresume.runs import open_run

    against = remembered((find_run(run) or open_run(run)).path) if run else None
    features = parse_features(tuple(feature))
    scanned = report.scan(paths, Reporter(), val=val, against=against, features=features, cache=cache)
    checked = report.check(scanned)
    _print(checked, as_json)
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

    reporter = Reporter()
    scanned = report.open_run(paths[0]) if len(paths) == 1 else None
    scanned = scanned or report.scan(paths, reporter, features=parse_features(tuple(feature)), cache=cache)
    _print(report.describe(scanned), as_json)
    if sheet is not None:
        count = sheets.sheet_of(scanned, options, sheet)
        reporter.say(f"{sheet}: {count} images, as they are and as training may see them")


@cli.command()
@click.argument("path", default="runs", metavar="RUN|FOLDER")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def log(path: str, as_json: bool) -> None:
    """List a run and its ancestors, or every run in a folder, newest first, with data and results.

    \b
    kresume log runs/
    """
    from kresume.reports.lineage import lineage

    _print(lineage(path), as_json)


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def doctor(as_json: bool) -> None:
    """Show backends, devices, versions, and what is missing.

    \b
    kresume doctor
    """
    from kresume.reports.doctor import diagnose

    _print(diagnose(), as_json)


@cli.command()
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

    _print(run(directory, Reporter()), as_json)


def _print(result: Any, as_json: bool) -> None:
    click.echo(json.dumps(result.as_dict(), indent=2, ensure_ascii=False) if as_json else str(result))


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and exits with its exit code."""
    crash.show_traces()
    # Skip the final garbage collection: it would visit every object of the frameworks, for about a second.
    atexit.register(gc.freeze)
    try:
        arguments = list(arguments) if arguments is not None else None
        with spelled(as_flag):
            code = cli.main(args=arguments, prog_name="kresume", standalone_mode=False)
    except KresumeError as error:
        _print_error(error)
        code = error.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        code = 2
    except click.ClickException as error:
        click.echo(f"kresume: {' '.join(error.format_message().split())}", err=True)
        code = 2
    except (click.Abort, KeyboardInterrupt):
        click.echo("kresume: stopped by Ctrl-C", err=True)
        code = 130
    except BrokenPipeError:
        sys.stderr.close()
        code = 1
    except Exception as error:
        from kresume.models.own_code import raised_in_own_code

        said = raised_in_own_code(error)
        if said is None:
            raise  # a bug in kresume
        click.echo(f"kresume: {said}", err=True)
        code = 1
    sys.exit(code if isinstance(code, int) else 0)


def _print_error(error: KresumeError) -> None:
    if isinstance(error, RestoreError) and error.rows:
        from kresume.reporter import Reporter

        wrong = [row for row in error.rows if row[-1] not in {"restored", "not in this format"}]
        Reporter().table("", error.columns, wrong[:40])
        if len(wrong) > 40:
            click.echo(f"… and {len(wrong) - 40:,} more", err=True)
    click.echo(f"kresume: {' '.join(str(error).split())}", err=True)
