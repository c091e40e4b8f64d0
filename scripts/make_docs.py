"""Writes docs/cli.md from the commands' own help. Run it after an option changes; a test fails when it was forgotten.

python scripts/make_docs.py
"""

import sys
from pathlib import Path

import click

from kresume import cli

PATH = Path(__file__).parents[1] / "docs" / "cli.md"


def render() -> str:
    """The page: each command's help, `train` with every option."""
    parts = ["# The command line\n\nWritten by `scripts/make_docs.py` from the commands' own help.\n"]
    for name, command in sorted(cli.cli.commands.items()):
        group = click.Context(cli.cli, info_name="kresume", **cli.cli.context_settings)
        context = click.Context(command, parent=group, info_name=name, terminal_width=110)
        if isinstance(command, cli.ConfigCommand) and name == "train":
            context.meta["kresume.help_all"] = True
        parts.append(f"## kresume {name}\n\n```text\n{command.get_help(context)}\n```\n")
        for inner, part in sorted(command.commands.items()) if isinstance(command, click.Group) else ():
            below = click.Context(part, parent=context, info_name=inner, terminal_width=110)
            parts.append(f"### kresume {name} {inner}\n\n```text\n{part.get_help(below)}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    PATH.write_text(render(), encoding="utf-8")
    sys.stderr.write(f"wrote {PATH}\n")
