"""Builds the command line's options, and the errors for commands that cannot be parsed."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Callable
from typing import Any

import click

from kresume.commands.output import here_alone
from kresume.errors import UsageError
from kresume.options.settings import DEFAULTS
from kresume.values.decode_spec import INTERPOLATIONS, RESIZES

FEATURE = "Name of a TFRecord feature: encoded, label or text. Repeatable."
COMMANDS = {
    "resume": "train", "continue": "train", "fit": "train", "extend": "train", "evaluate": "eval", "val": "eval",
    "test": "eval", "classify": "predict", "infer": "predict", "info": "inspect", "convert": "export", "history": "log",
    "scan": "data scan", "check": "data check",
    "show": "data show", "env": "doctor",
}  # fmt: skip
"""Names of commands in other tools, with the command of kresume."""


class Command(click.Command):
    """A command whose errors for unknown options give a translation or the nearest name."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parses the arguments; errors say what to do."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            raise UsageError(_explain(error.option_name, self, ctx)) from error
        except click.UsageError as error:
            raise UsageError(_complete(error, ctx)) from error


def _explain(option: str, command: click.Command, ctx: click.Context) -> str:
    from kresume.options.lookup import flag_of
    from kresume.options.neighbours import nearest
    from kresume.options.table import TrainConfig

    known = [flag for parameter in command.get_params(ctx) for flag in parameter.opts if flag.startswith("--")]
    if option in {flag_of(name) for name in TrainConfig.model_fields} - set(known):
        return f"{ctx.command_path} has no option {option}: it is one of `kresume train` and `kresume plan`"
    return f"no option {option}: {nearest(option.partition('=')[0], known) or f'see {ctx.command_path} --help'}"


def _complete(error: click.UsageError, ctx: click.Context) -> str:
    """Returns Click's message with what to do."""
    said = " ".join(error.format_message().split()).rstrip(".")
    if isinstance(ctx.command, ConfigCommand) and said.startswith("Got unexpected extra argument"):
        path = said.partition("(")[2].rstrip(")").split()[0]
        return (
            f"{path} is given without an option: --from {path} extends that checkpoint or run, --out {path} continues that "
            f"run, --data {path} trains on those images"
        )
    help_text = getattr(error.param, "help", None) if isinstance(error, click.MissingParameter) else None
    if help_text:
        said += f" ({help_text.rstrip('.')})"
    if isinstance(error, click.MissingParameter) or "unexpected extra argument" in said:
        form = " ".join([ctx.command_path, *ctx.command.collect_usage_pieces(ctx)]).replace("[OPTIONS]", "[options]")
        said += f": the form is `{form}`"
    return f"{said}; see {ctx.command_path} --help"


class Group(click.Group):
    """A group whose unknown commands get the nearest name."""

    command_class = Command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """Finds the command."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            near = difflib.get_close_matches(args[0], self.commands, 1)
            known = COMMANDS.get(args[0]) if ctx.parent is None else None
            hint = f"did you mean {near[0]}?" if near else f"commands are {', '.join(self.commands)}"
            hint = f"that is kresume {known}" if known else hint
            raise UsageError(f"no command {args[0]}: {hint}") from error


def config_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds `--config`, `--set` and `--json`; `ConfigCommand` adds the options of the table."""
    function = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")(function)
    function = click.option(
        "--set", "sets", multiple=True, metavar="KEY=VALUE", help="An option by its name, as in YAML."
    )(function)
    return click.option("--config", "file", metavar="FILE", help="Options in YAML; flags and --set override them.")(
        function
    )


class ConfigCommand(Command):
    """A command with the options of `TrainConfig`: `--help` shows the common ones, `--help-all` every one."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Returns the options of the table and the command's own."""
        if not hasattr(self, "_all_params"):
            self._all_params = [*_table_options(), *super().get_params(ctx)]
        return self._all_params

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the options by group."""
        everything = bool(ctx.meta.get("kresume.help_all"))
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is None or (isinstance(parameter, TableOption) and not everything and not parameter.daily):
                continue
            group = parameter.group if isinstance(parameter, TableOption) else "Other"
            groups.setdefault(group, []).append(record)
        for group, records in groups.items():
            with formatter.section(group):
                formatter.write_dl(records)
        if not everything:
            formatter.write_paragraph()
            formatter.write_text(
                f"{len(self.get_params(ctx)) - sum(map(len, groups.values()))} more options: --help-all"
            )


class TableOption(click.Option):
    """An option from the table of `TrainConfig`."""

    def __init__(self, *names: str, group: str, daily: bool, **attributes: Any) -> None:
        super().__init__(list(names), **attributes)
        self.group = group
        self.daily = daily


def _show_all(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        ctx.meta["kresume.help_all"] = True
        click.echo(ctx.get_help())
        ctx.exit()


def _table_options() -> list[TableOption]:
    from kresume.options.lookup import about, flag_of, help_of
    from kresume.options.table import TrainConfig

    options = []
    for name, field in TrainConfig.model_fields.items():
        said = about(name)
        kind, choices, repeats, is_flag = _kind(field.annotation)
        attributes: dict[str, Any] = (
            {"is_flag": True, "default": None} if is_flag else {"type": choices or kind, "multiple": repeats}
        )
        if said.bare:
            attributes = {"type": str, "is_flag": False, "flag_value": ""}
        if said.metavar and not choices:
            attributes["metavar"] = said.metavar
        flag = flag_of(name)
        off = f"/--no-{flag[2:]}" if is_flag and said.inherited else ""  # turns off an option that the parent had on
        options.append(
            TableOption(
                f"{flag}{off}",
                name,
                group=said.group,
                daily=said.daily,
                help=help_of(name),
                **attributes,
            )
        )
    return options


def _kind(annotation: Any) -> tuple[type, click.Choice[str] | None, bool, bool]:
    """Converts a field's type for Click: `(type, choices, True if repeatable, True if a flag)`."""
    inner = next(part for part in typing.get_args(annotation) if part is not type(None))
    if typing.get_origin(inner) is typing.Literal:
        return str, click.Choice(typing.get_args(inner)), False, False
    if typing.get_origin(inner) is tuple:
        return str, None, True, False
    return inner, None, False, inner is bool


help_all = click.option(
    "--help-all",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_all,
    help="Show every option, grouped.",
)


def model_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options for facts that a checkpoint may not record, and for backend and device."""
    options = [
        click.option(
            "--model", metavar="SPEC", callback=here_alone, help="The architecture, for a checkpoint without one."
        ),
        click.option(
            "--import",
            "imports",
            multiple=True,
            metavar="FILE",
            callback=here_alone,
            help="File that registers custom layers.",
        ),
        click.option(
            "--map",
            "map_file",
            metavar="FILE",
            help="YAML that maps the arrays of a PyTorch state dict to variables.",
        ),
        click.option(
            "--trust",
            is_flag=True,
            help="Run the code of the checkpoint's Lambda layers; only for a checkpoint that you trust.",
        ),
        click.option(
            "--classes",
            metavar="FILE|a,b,c",
            help="Names of the outputs in their order, if the checkpoint has none.",
        ),
        click.option(
            "--pixels",
            metavar="NAME",
            callback=here_alone,
            help="Pixel values that the model expects, if the checkpoint does not record them.",
        ),
        click.option("--image-size", metavar="N|HxW", help="Size of the pictures, for a model that accepts any."),
        click.option(
            "--resize",
            type=click.Choice(RESIZES),
            help=f"How pictures get that size, if the checkpoint does not record it. Default {DEFAULTS.resize}.",
        ),
        click.option(
            "--interpolation",
            type=click.Choice(INTERPOLATIONS),
            help="How resizing samples pixels, if the checkpoint does not record it; image_dataset_from_directory uses "
            f"bilinear, and its area is kerasarea here. Default {DEFAULTS.interpolation}.",
        ),
        click.option("--axes", metavar="ORDER", help="Order of the axes of its input (hwc, chw, hw, wh ...)."),
        click.option(
            "--backend", type=click.Choice(["tensorflow", "jax"]), help="Default: the run's, else as for train."
        ),
        click.option("--device", type=click.Choice(["auto", "cpu", "gpu", "tpu"]), help=f"Default {DEFAULTS.device}."),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def read_model_options(image_size: str | None, classes: str | None) -> dict[str, Any]:
    """Converts `--image-size` and `--classes` to the library's arguments."""
    from kresume.class_names import read_classes
    from kresume.options.resolve import parse_image_size

    return {
        "image_size": parse_image_size(image_size) if image_size else None,
        "classes": read_classes(classes) if classes else None,
    }


def source_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options of commands that list images."""
    function = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")(function)
    function = click.option(
        "--cache",
        metavar="DIR",
        callback=here_alone,
        help="Where facts about files are kept, so that they are read once: auto, off or a folder.",
    )(function)
    return click.option("--feature", multiple=True, metavar="ROLE=NAME", help=FEATURE)(function)
