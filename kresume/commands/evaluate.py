"""Defines the command `eval`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kresume.commands.options import FEATURE, Command, model_options, read_model_options
from kresume.commands.output import here_alone, print_result
from kresume.errors import RunError
from kresume.options.settings import DEFAULTS
from kresume.values.decode_spec import INTERPOLATIONS, RESIZES

if TYPE_CHECKING:
    from kresume.evaluation.evaluation import Evaluation
    from kresume.reporter import Reporter


@click.command(name="eval", cls=Command)
@click.argument("checkpoint", metavar="RUN|CKPT|SAVEDMODEL")
@click.option("--data", multiple=True, required=True, metavar="PATH", help="Images, one folder per class. Repeatable.")
@click.option("--against", metavar="RUN|CKPT|SAVEDMODEL", help="Another model to compare with on the same images.")
@click.option(
    "--against-classes",
    metavar="a,b,c|FILE",
    help="The outputs of --against in their order, if it does not record them and they are not those of --classes.",
)
@click.option(
    "--against-pixels",
    metavar="KIND",
    callback=here_alone,
    help="Pixel values that --against expects, if it does not record them and they are not those of --pixels.",
)
@click.option(
    "--against-resize",
    type=click.Choice(RESIZES),
    help="How pictures get the size that --against expects, if it does not record that and it is not --resize.",
)
@click.option(
    "--against-interpolation",
    type=click.Choice(INTERPOLATIONS),
    help="How they are sampled, if it does not record that and it is not --interpolation.",
)
@click.option(
    "--require",
    multiple=True,
    metavar="EXPR",
    help='A condition, for example "all.accuracy>=0.93"; exit code 3 if it fails. Repeatable.',
)
@click.option(
    "--max-forgetting",
    type=float,
    metavar="POINTS",
    help="Exit code 3 if the accuracy on old images is further below that of --against.",
)
@click.option(
    "--max-class-drop",
    type=float,
    metavar="POINTS",
    help="Exit code 3 if the recall of a class is further below that of --against.",
)
@click.option(
    "--metric",
    multiple=True,
    metavar="NAME|FILE.py:FN",
    callback=here_alone,
    help="A further metric: one of Keras's, or FN(labels, probabilities). Repeatable.",
)
@click.option("--csv", metavar="FILE", help="Also write the scores as a table, one row per subset and class.")
@click.option("--answers", metavar="FILE", help="Also write the answer to every image, as Parquet.")
@click.option(
    "--report",
    metavar="FILE",
    help="Also write a page with the pictures behind the numbers. With --against and a run it is eval-against-OTHER.html in "
    "the run's folder unless given.",
)
@click.option("--overwrite", is_flag=True, help="Replace the files of --csv, --answers and --report.")
@model_options
@click.option("--feature", multiple=True, metavar="ROLE=NAME", help=FEATURE)
@click.option(
    "--batch-size", type=int, default=DEFAULTS.batch_size, show_default=True, metavar="N", help="Images per prediction."
)
@click.option(
    "--cache", metavar="DIR", callback=here_alone, help="Where decoded pictures are kept: auto, off or a folder."
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def evaluate(
    checkpoint: str,
    data: Sequence[str],
    csv: str | None,
    answers: str | None,
    report: str | None,
    overwrite: bool,
    image_size: str | None,
    classes: str | None,
    as_json: bool,
    **options: Any,
) -> int:
    """Score a run, a checkpoint or a SavedModel on images, per origin and class, with 95 % intervals.

    With --against, a second model is scored on the same images, and a difference that may be chance is called noise
    (McNemar's test). A SavedModel runs with TensorFlow alone, through its own signature.

    \b
    kresume eval runs/2-signs --data test/
    kresume eval runs/2-signs --data test/ --against runs/1-signs --max-class-drop 5
    kresume eval runs/2-signs --data test/ --against serving/signs --json
    kresume eval ckpt.keras --data test/ --pixels 0-1 --metric AUC --csv scores.csv
    """
    from kresume.evaluation import answers as answers_file
    from kresume.evaluation.evaluate import evaluate as run
    from kresume.reporter import Reporter
    from kresume.staging.fetch import here_shown
    from kresume.staging.output import check_free, output_file

    for flag, given in (("csv", csv), ("answers", answers), ("report", report)):
        check_free(flag, given, overwrite=overwrite)
    here_shown(checkpoint)
    options |= read_model_options(image_size, classes)
    reporter = Reporter()
    found = run(checkpoint, list(data), reporter=reporter, **options)
    if csv is not None:
        with output_file(csv) as path:
            found.write_csv(path)
    if answers is not None and found.answers is not None:
        with output_file(answers) as path:
            answers_file.write(path, found.answers)
    _write_report(found, report, reporter)
    print_result(found, as_json)
    return found.exit_code


def _write_report(found: Evaluation, given: str | None, reporter: Reporter) -> None:
    """Writes the page of an evaluation where `--report` says.

    Without it, the page of a run that was compared goes into the run's folder; if it cannot be written, the numbers are shown
    all the same.
    """
    from kresume.checkpoints.run import find_run
    from kresume.reports.page.write import write_evaluation
    from kresume.staging.output import shown

    if given is not None:
        target = given
    elif found.against is not None and (run := find_run(found.model)) is not None:
        target = str(run.path / f"eval-against-{Path(found.against.model).name}.html")
    else:
        return
    try:
        with reporter.waiting(f"writing {target}"):
            write_evaluation(found, target)
    except RunError as error:
        if given is not None:
            raise
        reporter.warn(str(error))
    else:
        reporter.say(f"report: {shown(target)}")
