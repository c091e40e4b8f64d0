"""Tests the two tables of layouts: every layout has an entry, and only the tables know the layouts by name."""

import ast
from typing import get_args

import pytest

from kresume.checkpoints import layouts as names
from kresume.values.state import Layout, TrainState

LAYOUTS = get_args(Layout)
TABLES = {"kresume/checkpoints/layouts.py", "kresume/models/layouts.py"}


@pytest.mark.one_backend
def test_every_layout_has_an_entry():
    """Both tables have an entry for every layout and for nothing else, in the order of `Layout`."""
    from kresume.models import layouts as rules

    assert tuple(names.LAYOUTS) == tuple(rules.LAYOUTS) == LAYOUTS


@pytest.mark.one_backend
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_layout_of_a_checkpoint_chooses_its_entries(layout):
    """The layout that a reader wrote chooses the entry of both tables."""
    from kresume.models import layouts as rules

    state = TrainState(source="a", format="b", layout=layout, arrays={})
    assert names.names_of(state) is names.LAYOUTS[layout]
    assert rules.rules_of(state) is rules.LAYOUTS[layout]


@pytest.mark.one_backend
def test_no_other_module_compares_a_layout_with_its_name(request):
    """A new layout touches its reader, its matching and the tables: no other module compares `state.layout`."""
    root = request.config.rootpath
    found = []
    for path in sorted((root / "kresume").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            sides = [node.left, *node.comparators] if isinstance(node, ast.Compare) else []
            sides = [node.subject] if isinstance(node, ast.Match) else sides
            if any(isinstance(side, ast.Attribute) and side.attr == "layout" for side in sides) and (
                isinstance(node, ast.Match) or any(_names_a_layout(side) for side in sides)
            ):
                found.append(f"{path.relative_to(root).as_posix()}:{node.lineno}")
    assert [line for line in found if line.partition(":")[0] not in TABLES] == []


def _names_a_layout(node):
    return any(isinstance(part, ast.Constant) and part.value in LAYOUTS for part in ast.walk(node))
