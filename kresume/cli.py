"""Defines the command line: the group of all commands, and what its process does with an error.

Results go to stdout, everything else to stderr. A `KresumeError` becomes one line and its exit code; an exception of
the user's own code, and a disk that refuses a write, become a line and exit code 1; anything else is a bug and keeps its
traceback. Commands never ask questions, and import nothing heavy before they run.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys
from collections.abc import Sequence

import click

from kresume import crash
from kresume.commands import checkpoints, data, evaluate, export, history, machine, predict, report, train
from kresume.commands.options import Group
from kresume.errors import KresumeError, RestoreError
from kresume.spelling import as_flag, spelled
from kresume.storage import refusals


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


for command in (
    train.train,
    train.plan,
    checkpoints.inspect,
    evaluate.evaluate,
    predict.predict,
    export.export,
    data.data,
    history.log,
    report.report,
    machine.doctor,
    machine.demo,
):
    cli.add_command(command)


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

        said = raised_in_own_code(error) or refusals.describe(error)
        if said is None:
            raise  # a bug in kresume
        if refusals.is_full(error):
            _drop_unwritten()
        click.echo(f"kresume: {said}", err=True)
        code = 1
    sys.exit(code if isinstance(code, int) else 0)


def _drop_unwritten() -> None:
    """Drops what a full disk refused of stdout: Python would try again at its end, and show a trace."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print_error(error: KresumeError) -> None:
    if isinstance(error, RestoreError) and error.rows:
        from kresume.reporter import Reporter

        wrong = [row for row in error.rows if row[-1] not in {"restored", "not in this format"}]
        Reporter().table("", error.columns, wrong[:40])
        if len(wrong) > 40:
            click.echo(f"… and {len(wrong) - 40:,} more", err=True)
    click.echo(f"kresume: {' '.join(str(error).split())}", err=True)
