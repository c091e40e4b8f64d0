"""Defines the commands `train` and `plan`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import click

from kresume.commands.options import ConfigCommand, config_options, help_all
from kresume.commands.output import print_result


@click.command(cls=ConfigCommand)
@help_all
@config_options
def train(file: str | None, sets: Sequence[str], as_json: bool, **flags: Any) -> int:
    """Train a new model, extend a checkpoint with more images, or continue an interrupted run.

    \b
    kresume train --data old/ --model convnet --epochs 15 --out runs/1-signs
    kresume train --from runs/1-signs --add new/ --lr 1e-4
    kresume train --out runs/2-signs            (continues it, as the same command does)
    """
    from kresume.backend import hosts, supervisor
    from kresume.options.resolve import resolve
    from kresume.reporter import Reporter
    from kresume.training.together import group_of

    config = resolve(flags, file, sets)
    if group_of(config) is not None and not supervisor.supervised():
        return supervisor.supervise(sys.argv[1:])
    from kresume.training.resume import train as run

    result = run(config, Reporter())
    if not hosts.followed():
        print_result(result, as_json)
    return result.exit_code


@click.command(cls=ConfigCommand)
@help_all
@config_options
def plan(file: str | None, sets: Sequence[str], as_json: bool, **flags: Any) -> None:
    """Show what `train` with the same options would do. Reads and scores, writes nothing.

    \b
    kresume plan --from runs/1-signs --add new/ --lr 1e-4
    """
    from kresume.options.resolve import resolve
    from kresume.reporter import Reporter
    from kresume.training.preview import make_plan

    print_result(make_plan(resolve(flags, file, sets), Reporter()), as_json)
