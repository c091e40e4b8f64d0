"""Writes the page of a run, of two runs, or of an evaluation.

written = write_report("runs/2-signs")
written.path, written.facts.verdict
write_evaluation(evaluation, Path("eval.html"))
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kresume import runs
from kresume.addresses import begins_as_address, public
from kresume.errors import RunError
from kresume.evaluation.evaluation import Evaluation
from kresume.reports.page.evaluation import compared_of, told_of
from kresume.reports.page.facts import Facts, collect, compare
from kresume.reports.page.render import render, render_evaluation
from kresume.reports.page.source import Source, find, read_pair, read_run
from kresume.spelling import in_bytes, option
from kresume.staging.output import check_free, output_file
from kresume.staging.publish import push
from kresume.storage import atomic, refusals

NAME = "report.html"


@dataclass(frozen=True, eq=False)
class Written:
    """A page that was written.

    Attributes:
        path: of the file; text for an address.
        bytes: its size.
        facts: what it shows.
    """

    path: Path | str
    bytes: int
    facts: Facts

    def as_dict(self) -> dict[str, Any]:
        """Returns the JSON form."""
        return {"report": str(self.path), "bytes": self.bytes, **self.facts.as_dict()}

    def __str__(self) -> str:
        lines = [f"{self.path}: {in_bytes(self.bytes)}", self.facts.verdict]
        lines += [f"look at: {finding.text}" for finding in self.facts.findings]
        lines += [f"left out: {text}" for text in self.facts.source.missing]
        return "\n".join(lines)


def write_run(run: runs.Run) -> Written:
    """Writes the page of a run into its folder.

    Raises:
        OSError: it cannot be written.
    """
    return _write(read_run(run), run.path / NAME)


def write_report(path: str, against: str | None = None, out: str | None = None) -> Written:
    """Writes the page of a run, or of two runs compared.

    Args:
        path: a run, `RUN@best`, `RUN@1200`, or a folder of runs, which means the newest accepted one.
        against: another run: `path` is then the earlier one and `against` the later one.
        out: the file; by default in the folder of the run that the page is about.

    Raises:
        KresumeError: there is no such run or step, or the file cannot be written.
    """
    check_free("out", out or None, overwrite=True, makes_folder=True)
    run, which = find(path)
    if against is None:
        source, name = read_run(run, which), f"report-step-{which}.html" if which else NAME
    else:
        other, its = find(against)
        source = read_pair(run, other, (which, its))
        name = f"report-against-{run.path.name}.html"
        run = other
    target = run.path / name if not out else out if begins_as_address(out) else Path(out)
    try:
        with output_file(target) as local:
            written = replace(_write(source, local), path=target)
        if not out:
            push(run.path / name)
        return written
    except OSError as error:
        raise RunError(
            f"{target} cannot be written ({refusals.reason(error)}): {refusals.way_on(error)} another file with {option('out')}"
        ) from error


def write_evaluation(evaluation: Evaluation, path: Path | str) -> Path | str:
    """Writes the page of an evaluation.

    Args:
        evaluation: from `evaluate`.
        path: the file; one in the folder of a fetched run is copied to that run's address.

    Raises:
        KresumeError: it cannot be written.
    """
    text = public(render_evaluation(compare(compared_of(evaluation), evaluation.failed), told_of(evaluation)))
    try:
        with output_file(path) as local:
            atomic.write_text(local, text)
        if not begins_as_address(path):
            push(Path(path))
    except OSError as error:
        raise RunError(
            f"{path} cannot be written ({refusals.reason(error)}): {refusals.way_on(error)} another file with "
            f"{option('report')}"
        ) from error
    return path


def _write(source: Source, path: Path) -> Written:
    facts = collect(source)
    text = public(render(facts))
    atomic.write_text(path, text)
    return Written(path, os.path.getsize(path), facts)
