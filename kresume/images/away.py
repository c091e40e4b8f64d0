"""Remembers images of earlier generations that a run does not have, so that they keep their split.

    ever = read_ever(run, digest)                                    # every image that any generation recorded
    merged = merge(..., ever=ever)                                   # merged.away: those that the new run does not have
    write_away(folder, merged.away)

An image is away if its file is missing, if it is in conflict, or if it was not given. Whoever gives it again must not
validate on what the weights were trained on, nor train on what chose them. The file has the columns of a manifest.
Images that `--drop` named are not in it: nothing of them is kept but their hash.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kresume.errors import ImagesError
from kresume.images.manifest import VAL, Manifest, schema
from kresume.images.scans import remembered
from kresume.images.splits import Row
from kresume.spelling import counted

if TYPE_CHECKING:
    import pyarrow as pa

FILE = "away.parquet"
WAS = "was"
"""Key of the recorded path of an image that is back, beside the columns of its row."""


def write_away(run: Path, table: pa.Table) -> None:
    """Writes the rows of the images that are away, atomically; no file if there are none."""
    if len(table):
        _of_all_labels(table).write(run / FILE)


def away_digest(table: pa.Table) -> str:
    """Returns the digest by which a run knows its file again; empty if no image is away."""
    return _of_all_labels(table).digest() if len(table) else ""


def read_away(run: Path, digest: str) -> Manifest | None:
    """Reads the images that a run does not have, and an earlier generation had.

    Args:
        run: the run's directory.
        digest: the digest that it recorded.

    Returns:
        Their rows, with the class names that they had; None if there are none.

    Raises:
        ImagesError: if the file is missing, damaged, or not the recorded one.
    """
    if not digest:
        return None
    away = Manifest.read(run / FILE)
    if away.digest() != digest:
        raise ImagesError(f"{run / FILE} is not the file that the run wrote: restore it from a copy of the run")
    return away


def recorded_ever(had: Manifest, away: Manifest | None) -> Manifest:
    """Returns every image that a run or an earlier generation recorded.

    Args:
        had: the images of the run.
        away: those that earlier generations had besides. One of them that came back while the run trained counts once,
            as the run has it.
    """
    import pyarrow as pa

    if away is None:
        return had
    more = rows_beside(away.table, had.table)
    return _of_all_labels(pa.concat_tables([_plain(had.table), more])) if len(more) else had


def read_ever(run: Path, digest: str) -> Manifest:
    """Reads every image that a run or an earlier generation recorded; for the arguments see `read_away`.

    Raises:
        ImagesError: if a file is missing, damaged, or not the recorded one.
    """
    return recorded_ever(remembered(run), read_away(run, digest))


def rows_beside(ever: pa.Table | None, table: pa.Table | None, dropped: Collection[str] = ()) -> pa.Table:
    """Returns the rows of `ever` whose image is neither in `table` nor dropped."""
    import pyarrow as pa
    import pyarrow.compute as compute

    if ever is None:
        return schema().empty_table()
    rows = _plain(ever)
    if table is not None and rows.column("sha256").equals(table.column("sha256")):
        return rows.slice(0, 0)  # the usual case, without a look-up of a million hashes
    there = [] if table is None else table.column("sha256").combine_chunks()
    for known in (there, sorted(dropped)):
        if len(known):
            inside = compute.is_in(rows.column("sha256"), pa.array(known, pa.string()))
            rows = rows.filter(compute.invert(inside))
    return rows


def returned(newcomers: list[Row], beside: pa.Table) -> tuple[list[Row], list[Row], pa.Table]:
    """Gives images that were away their earlier split and origin.

    Args:
        newcomers: the rows of the images that the parent does not have.
        beside: the rows of those that only earlier generations had.

    Returns:
        `(the rows of the images that are back, the other newcomers, the rows of what is still away)`.
    """
    if not len(beside):
        return [], newcomers, beside
    import pyarrow as pa
    import pyarrow.compute as compute

    given = pa.array([row["sha256"] for row in newcomers], pa.string())
    here = compute.is_in(beside.column("sha256"), given)
    kept = ["origin", "side", "seen", "replaced", WAS]
    facts = beside.filter(here).select(["sha256", "origin", "side", "seen", "replaced", "path"]).to_pydict().values()
    known = {sha: dict(zip(kept, row, strict=True)) for sha, *row in zip(*facts, strict=True)}
    of_now = [(row, {"replaced": row["replaced"]} if row["replaced"] else {}) for row in newcomers]
    back = [row | known[row["sha256"]] | corrected for row, corrected in of_now if row["sha256"] in known]
    fresh = [row for row in newcomers if row["sha256"] not in known]
    return back, fresh, beside.filter(compute.invert(here))


def describe_back(back: Sequence[Row]) -> list[str]:
    """Returns a note on the images that were away and are back."""
    if not back:
        return []
    validate = sum(row["side"] == VAL for row in back)
    parts = [("trains", "train", len(back) - validate), ("validates", "validate", validate)]
    sides = " and ".join(f"{count:,} {one if count == 1 else many}" for one, many, count in parts if count)
    return [f"{counted(len(back), 'image', 'is', 'are')} back, recorded by an earlier run: {sides}, as there"]


def _plain(table: pa.Table) -> pa.Table:
    return table.select(schema().names).cast(schema())


def _of_all_labels(table: pa.Table) -> Manifest:
    """Returns a manifest whose classes are the labels of its rows: a class may have left the model since."""
    return Manifest.from_table(table, tuple(sorted(table.column("label").unique().to_pylist())))
