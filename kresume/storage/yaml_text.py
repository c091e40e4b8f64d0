"""Reads YAML whose scalars stay the text that the user wrote.

    read("mix: 1:1", "--config a.yaml")         # {"mix": "1:1"}

YAML 1.1 reads 1:1 as 61, `off` as False, a class `no` as False and 1e-4 as text. Here the option decides what a text
means, as on the command line. Only `null`, `~` and nothing at all mean None.
"""

from __future__ import annotations

from typing import Any

import yaml

from kresume.errors import UsageError

KEPT = frozenset({"tag:yaml.org,2002:null", "tag:yaml.org,2002:merge"})


def read(text: str, where: str) -> Any:
    """Returns mappings, lists and texts.

    Args:
        text: in YAML.
        where: begins the message of an error.

    Raises:
        UsageError: the text is not YAML, or a mapping has a key twice.
    """
    try:
        return yaml.load(text, _Loader)
    except _TwiceError as error:
        raise UsageError(f"{where}: {error}: leave one out") from error
    except yaml.YAMLError as error:
        raise UsageError(f"{where}: this is not YAML ({' '.join(str(error).split())})") from error


class _TwiceError(Exception):
    """Raised if a mapping has a key twice."""


class _Loader(yaml.SafeLoader):
    """The safe loader, with texts instead of numbers, booleans and dates."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Constructs a mapping; of a key that stands twice YAML would keep the last value without a message."""
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                line = key.start_mark.line + 1
                if key.value in lines:
                    raise _TwiceError(f"{key.value} stands twice, in the lines {lines[key.value]} and {line}")
                lines[key.value] = line
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [entry for entry in entries if entry[0] in KEPT]
    for first, entries in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
