"""Writes predictions as CSV, JSON lines or Parquet, as they come.

with writing("csv", 3, "week.csv", None) as write:
    write(Row("inbox/a.jpg", "rose", 0.98, (("rose", 0.98), ("tulip", 0.02))))
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from kresume.errors import UsageError
from kresume.spelling import option
from kresume.staging.output import check_free, output_file
from kresume.storage import atomic

FORMATS = ("csv", "jsonl", "parquet")
ROW_GROUP = 4096
"""Rows that are written to Parquet at once."""
DIGITS = 6
"""Decimals of a score in CSV; the other formats keep all."""


@dataclass(frozen=True)
class Row:
    """The prediction of one picture.

    Attributes:
        path: the picture, below the path that was given.
        label: the predicted class; empty if it cannot be read.
        score: its probability; None if it cannot be read, or the model gives labels alone.
        top: the most probable classes with their probabilities, the predicted one first.
        error: why it cannot be read; empty if it can.
    """

    path: str
    label: str
    score: float | None
    top: tuple[tuple[str, float | None], ...] = ()
    error: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Returns the form of JSON lines and Parquet."""
        top = [{"label": label, "score": score} for label, score in self.top]
        return {"path": self.path, "label": self.label, "score": self.score, "top": top, "error": self.error}


def format_of(output: str | None, format: str | None, *, overwrite: bool) -> str:
    """Returns the format of the rows.

    Args:
        output: the file; None for a stream.
        format: as it was given, or None.
        overwrite: True if the file may exist.

    Raises:
        UsageError: the format is not known, or the file exists or cannot be written.
    """
    kind = format or (Path(output).suffix.lower().lstrip(".") if output is not None else "csv")
    kind = {"ndjson": "jsonl", "pq": "parquet"}.get(kind, kind)
    if kind not in FORMATS:
        said = option("format", format) if format else option("output", output)
        raise UsageError(
            f"{said}: the formats are {', '.join(FORMATS)}; name one with {option('format')}, or by the ending"
        )
    if output is None:
        return kind
    check_free("output", output, overwrite=overwrite)
    return kind


@contextmanager
def writing(
    kind: str, top_k: int, output: str | Path | None, stream: IO[bytes] | None
) -> Iterator[Callable[[Row], None]]:
    """Yields a function that writes a row. A file appears under its name when it is complete.

    Args:
        kind: one of `FORMATS`.
        top_k: classes per row.
        output: the file; None for the stream.
        stream: where to write instead; flushed after each row.
    """
    with contextlib.ExitStack() as stack:
        if output is not None:
            temporary = stack.enter_context(atomic.new_file(stack.enter_context(output_file(output))))
            stream = stack.enter_context(temporary.open("wb"))
        if stream is None:
            raise ValueError("rows go to a file or to a stream")
        writer = {"csv": _csv, "jsonl": _json_lines, "parquet": _parquet}[kind]
        yield stack.enter_context(writer(stream, top_k))


def as_text(rows: Iterable[Row], top_k: int) -> str:
    """Returns rows as CSV, without the last newline."""
    stream = io.BytesIO()
    with _csv(stream, top_k) as write:
        for row in rows:
            write(row)
    return stream.getvalue().decode().rstrip("\n")


@contextmanager
def _csv(stream: IO[bytes], top_k: int) -> Iterator[Callable[[Row], None]]:
    text = io.TextIOWrapper(stream, encoding="utf-8", newline="", write_through=True)
    table = csv.writer(text, lineterminator="\n")
    more = [name for number in range(2, top_k + 1) for name in (f"label_{number}", f"score_{number}")]
    table.writerow(["path", "label", "score", *more, "error"])

    def write(row: Row) -> None:
        cells = [cell for label, score in row.top[1:] for cell in (label, _shown(score))]
        table.writerow([row.path, row.label, _shown(row.score), *cells, *[""] * (len(more) - len(cells)), row.error])

    try:
        yield write
    finally:
        text.detach()  # the stream is not ours to close


def _shown(score: float | None) -> str:
    return "" if score is None else f"{score:.{DIGITS}f}"


@contextmanager
def _json_lines(stream: IO[bytes], top_k: int) -> Iterator[Callable[[Row], None]]:
    def write(row: Row) -> None:
        stream.write(json.dumps(row.as_dict(), ensure_ascii=False).encode() + b"\n")

    yield write
    stream.flush()


@contextmanager
def _parquet(stream: IO[bytes], top_k: int) -> Iterator[Callable[[Row], None]]:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    one = pa.struct([("label", pa.string()), ("score", pa.float64())])
    schema = pa.schema(
        [
            ("path", pa.string()),
            ("label", pa.string()),
            ("score", pa.float64()),
            ("top", pa.list_(one)),
            ("error", pa.string()),
        ]
    )
    waiting: list[dict[str, Any]] = []
    with parquet.ParquetWriter(stream, schema, compression="zstd") as table:

        def flush() -> None:
            if waiting:
                table.write_table(pa.Table.from_pylist(waiting, schema))
                waiting.clear()

        def write(row: Row) -> None:
            waiting.append(row.as_dict())
            if len(waiting) == ROW_GROUP:
                flush()

        yield write
        flush()
