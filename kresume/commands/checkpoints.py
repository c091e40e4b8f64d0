"""Defines the command `inspect`."""

from __future__ import annotations

import click

from kresume.commands.options import Command
from kresume.commands.output import here_alone, print_result


@click.command(cls=Command)
@click.argument("checkpoint", metavar="CKPT")
@click.option(
    "--write-model",
    metavar="FILE.py",
    callback=here_alone,
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
    from kresume.staging.fetch import here_shown

    here_shown(checkpoint)
    state = read_checkpoint(checkpoint)
    if write_model is not None:
        from kresume.checkpoints import skeleton
        from kresume.storage import atomic

        file = skeleton.check_free(write_model)
        atomic.write_text(file, skeleton.skeleton(state, write_model))
        for line in skeleton.describe_next(state, file):
            click.echo(line, err=True)
    print_result(describe(state), as_json)
