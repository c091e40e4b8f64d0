"""Defines the command `export`."""

from __future__ import annotations

from typing import Any

import click

from kresume.commands.options import FEATURE, Command, model_options, read_model_options
from kresume.commands.output import print_result
from kresume.options.settings import EXPORT_FORMAT, ON_BAD_IMAGE, TOP_K


@click.command(cls=Command)
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
    print_result(result, as_json)
    return result.exit_code
