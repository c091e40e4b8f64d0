"""Leaves cases of large tables to the long pass (`scripts/test long`).

    @pytest.mark.sample("missing")                      # of three cases CI runs this one; none without an argument
    @pytest.mark.parametrize("why", ["missing", "conflict", "replaced"])

A case is left out if another one takes the same way through kresume. Without KRESUME_TEST_SAMPLED, which `scripts/test` sets,
pytest runs all.
"""

import os
from collections import defaultdict

import pytest

ASKED = "KRESUME_TEST_SAMPLED"


def take(config, items) -> None:
    """Leaves out what is not in the sample.

    Raises:
        pytest.UsageError: a mark names a case that does not exist.
    """
    if not os.environ.get(ASKED):
        return
    named, seen = defaultdict(set), defaultdict(set)
    left = []
    for item in items:
        if (mark := item.get_closest_marker("sample")) is not None:
            test, case = item.nodeid.partition("[")[0], item.callspec.id if hasattr(item, "callspec") else ""
            named[test].update(mark.args)
            seen[test].add(case)
            if case not in mark.args:
                left.append(item)
    whole = os.environ["KERAS_BACKEND"] == "tensorflow" and not any("::" in argument for argument in config.args)
    if wrong := {test: names - seen[test] for test, names in named.items() if names - seen[test]} if whole else {}:
        raise pytest.UsageError(f"marks `sample` name cases that do not exist: {wrong}")
    config.hook.pytest_deselected(items=left)
    gone = set(left)
    items[:] = [item for item in items if item not in gone]
