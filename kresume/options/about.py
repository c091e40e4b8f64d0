"""Defines the facts of an option beside its type: group, metavar, range, how runs share it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from kresume.addresses import BUCKETS, MUST_BE_HERE, begins_as_address


@dataclass(frozen=True)
class Range:
    """The values that an option may have.

    Attributes:
        holds: True for a value that is allowed.
        expected: the rest of the message for one that is not.
    """

    holds: Callable[[Any], bool]
    expected: str


AT_LEAST_1 = Range(lambda value: value >= 1, "give a whole number of at least 1")
AT_LEAST_0 = Range(lambda value: 0 <= value < float("inf"), "give a number of at least 0")
ABOVE_0 = Range(lambda value: 0 < value < float("inf"), "give a number above 0")
SHARE = Range(lambda value: 0 <= value <= 1, "give a number from 0 to 1")
BELOW_1 = Range(lambda value: 0 <= value < 1, "give a number from 0 to below 1")
SEED = Range(lambda value: 0 <= value < 2**32, f"give a whole number from 0 to {2**32 - 1:,}")
LOCAL = Range(lambda value: not begins_as_address(value), MUST_BE_HERE)
FOLDER_OR_SERVER = Range(
    lambda value: not value.lower().startswith(BUCKETS),
    f"{MUST_BE_HERE}, or give the address of a server of MLflow",
)


@dataclass(frozen=True)
class About:
    """Facts of an option beside its name, type and help.

    Attributes:
        group: the heading of `--help-all` under which it is listed.
        daily: True if `--help` lists it, too.
        metavar: the word for its value in the help.
        flag: its flag, where that is not the field's name with dashes.
        range: the values that it may have, of several each; None for any of its type.
        inherited: True if a child run uses the parent's value where the command gives none.
        held: True if the checkpoint itself holds the value, so that without one the parent's stays.
        may_differ: True if the command that continues an interrupted run may give another value.
        bare: True if its flag may stand alone, without names.
    """

    group: str
    daily: bool = False
    metavar: str | None = None
    flag: str | None = None
    range: Range | None = None
    inherited: bool = False
    held: bool = False
    may_differ: bool = False
    bare: bool = False


class Options(BaseModel):
    """A part of the table: each field is an option."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def option_of(help: str, group: str, **about: Any) -> Any:
    """Describes a field of the table.

    Args:
        help: what it does, for `--help-all` and `docs/cli.md`.
        group: the heading under which it is listed.
        **about: further facts, see `About`.
    """
    return Field(None, description=help, json_schema_extra={"about": About(group, **about)})  # type: ignore[dict-item]
