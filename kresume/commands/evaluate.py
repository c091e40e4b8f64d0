"""Defines the command `eval`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from kresume.commands.options import FEATURE, Command, model_options, read_model_options
from kresume.commands.output import print_result
from kresume.options.settings import DEFAULTS


@click.command(name="eval", cls=Command)
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
    print_result(run(checkpoint, list(data), reporter=Reporter(), **options), as_json)
