"""Defines the command `predict`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import click

from kresume.commands.options import FEATURE, Command, model_options, read_model_options
from kresume.options.settings import DEFAULTS, MIN_SCORE


@click.command(cls=Command)
@click.argument("checkpoint", metavar="RUN|CKPT|SAVEDMODEL")
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option(
    "-o", "--output", metavar="FILE", help="Write the rows to a .csv, .jsonl or .parquet file; default stdout."
)
@click.option(
    "--format", type=click.Choice(["csv", "jsonl", "parquet"]), help="Default: by the ending of -o, else csv."
)
@click.option("--overwrite", is_flag=True, help="Replace the file of -o.")
@click.option("--top-k", type=int, default=1, show_default=True, metavar="K", help="Classes per picture.")
@click.option("--sort", metavar="FOLDER", help="Also copy the pictures into a folder per class, and unsure/.")
@click.option(
    "--min-score",
    type=float,
    default=MIN_SCORE,
    show_default=True,
    metavar="F",
    help="Lowest score of a picture in a class folder of --sort; others go to unsure/.",
)
@click.option("--link", is_flag=True, help="Link files for --sort instead of copying them.")
@model_options
@click.option("--feature", multiple=True, metavar="ROLE=NAME", help=FEATURE)
@click.option(
    "--batch-size", type=int, default=DEFAULTS.batch_size, show_default=True, metavar="N", help="Images per prediction."
)
def predict(
    checkpoint: str,
    paths: Sequence[str],
    output: str | None,
    image_size: str | None,
    classes: str | None,
    **options: Any,
) -> None:
    """Predict the classes of pictures: files, folders, lists, archives, TFRecord files.

    Prints path, label, score and, for a picture that cannot be read, the reason. --sort prepares next week's images: look
    through its class folders, move what is wrong, and train with --add FOLDER, which leaves unsure/ out.

    \b
    kresume predict runs/2-signs inbox/ -o week.csv
    kresume predict runs/2-signs inbox.zip --sort week/ --min-score 0.95 -o week.csv
    kresume predict serving/signs photo.jpg --top-k 3 --format jsonl
    """
    from kresume.evaluation.predictions import predict as run
    from kresume.reporter import Reporter
    from kresume.staging.fetch import here

    reporter = Reporter()
    here(checkpoint, reporter)  # an address is fetched with its progress shown
    options |= read_model_options(image_size, classes)
    stream = None if output is not None else sys.stdout.buffer
    found = run(checkpoint, list(paths), output=output, stream=stream, reporter=reporter, **options)
    for line in found.summary:
        reporter.say(line)
