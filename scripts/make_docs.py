"""Writes docs/cli.md from the commands' help, and the table of tested formats from the goldens.

Run it after an option or a golden changes; a test fails if the docs are out of date.

    python scripts/make_docs.py
"""

import json
import re
import sys
from pathlib import Path

import click

from kresume import cli
from kresume.commands import options

PATH = Path(__file__).parents[1] / "docs" / "cli.md"


def render() -> str:
    """Returns the page: the help of each command, for `train` with every option."""
    parts = ["# The command line\n\nWritten by `scripts/make_docs.py` from the commands' own help.\n"]
    for name, command in sorted(cli.cli.commands.items()):
        group = click.Context(cli.cli, info_name="kresume", **cli.cli.context_settings)
        context = click.Context(command, parent=group, info_name=name, terminal_width=110)
        if isinstance(command, options.ConfigCommand) and name == "train":
            context.meta["kresume.help_all"] = True
        parts.append(f"## kresume {name}\n\n```text\n{command.get_help(context)}\n```\n")
        for inner, part in sorted(command.commands.items()) if isinstance(command, click.Group) else ():
            below = click.Context(part, parent=context, info_name=inner, terminal_width=110)
            parts.append(f"### kresume {name} {inner}\n\n```text\n{part.get_help(below)}\n```\n")
    return "\n".join(parts)


FORMATS = PATH.with_name("checkpoint-formats.md")
GOLDEN = Path(__file__).parents[1] / "tests" / "golden"
TABLE = re.compile(r"(<!-- table: golden -->\n).*?(<!-- end -->)", re.DOTALL)


def golden_cases() -> list[tuple[Path, str, str]]:
    """Lists the goldens that the tests use: (path as a user would give it, network, optimizer)."""
    cases = []
    for file in sorted(GOLDEN.glob("*/expected.json")):
        for name, case in json.loads(file.read_text()).items():
            cases.append((file.parent / name, case["model"], case["optimizer"] or "none"))
    for file in sorted(GOLDEN.glob("*/*/expected.json")):
        case = json.loads(file.read_text())
        optimizer = file.parent.name.partition(f"{case['model']}-")[2] or file.parent.name.rpartition("-")[2]
        cases.append((file.parent / case["path"], case["model"], optimizer))
    return cases


def render_formats(text: str) -> str:
    """Returns the page with its table replaced: one row for each format and writer."""
    from kresume.checkpoints.read import READERS, recognise

    rows: dict[tuple[str, str], tuple[set[str], set[str]]] = {}
    for path, network, optimizer in golden_cases():
        writer = path.relative_to(GOLDEN).parts[0]
        found = rows.setdefault((READERS[recognise(str(path)) or ""].called, writer), (set(), set()))
        found[0].add(network)
        found[1].add(optimizer)
    lines = ["| format | written by | networks | optimizers |", "|---|---|---|---|"]
    for (called, writer), (networks, optimizers) in sorted(rows.items()):
        lines.append(f"| {called} | {writer} | {', '.join(sorted(networks))} | {', '.join(sorted(optimizers))} |")
    return TABLE.sub(lambda match: match[1] + "\n".join(lines) + "\n" + match[2], text)


if __name__ == "__main__":
    PATH.write_text(render(), encoding="utf-8")
    FORMATS.write_text(render_formats(FORMATS.read_text(encoding="utf-8")), encoding="utf-8")
    sys.stderr.write(f"wrote {PATH} and the table of {FORMATS}\n")
