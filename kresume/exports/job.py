"""Holds the options of an export as plain values, because another process may write it.

job = Job(format="saved-model", top_k=5)
Job.from_dict(job.as_dict()) == job
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from kresume.errors import UsageError
from kresume.exports.graph import OnBadImage
from kresume.spelling import option

Quantize = Literal["float16", "int8"]


@dataclass(frozen=True)
class Job:
    """The options of an export.

    Attributes:
        format: a key of `EXPORTERS`.
        name: the model's name for a server.
        top_k: the number of labels that a served model returns, best first.
        embeddings: True adds the signature `embed`.
        on_bad_image: how a served model handles bytes that it cannot decode.
        like: a SavedModel whose signatures are kept.
        like_pixels: the pixel convention of the numbers that its clients send, if it expects numbers.
        like_logits: True if its scores are logits.
        quantize: `"float16"` or `"int8"`, None for the model's own number type.
        optimizer: `keep`, the optimizer's name for a checkpoint that does not record it, or `NAME:reset`.
        files: images for warm-up records.
        pictures: a `.npy` file with the same images decoded, `(n, height, width, 3) uint8`.

    Raises:
        UsageError: a value is out of range.
    """

    format: str = "saved-model"
    name: str = "model"
    top_k: int = 5
    embeddings: bool = False
    on_bad_image: OnBadImage = "error"
    like: str | None = None
    like_pixels: str | None = None
    like_logits: bool = False
    quantize: Quantize | None = None
    optimizer: str | None = None
    files: tuple[str, ...] = ()
    pictures: str = ""

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise UsageError(f"{option('top-k', self.top_k)}: give at least 1")

    def as_dict(self) -> dict[str, Any]:
        """Returns the JSON form."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Job:
        """Reads the JSON form."""
        return cls(**with_tuples(value))


def with_tuples(value: Mapping[str, Any]) -> dict[str, Any]:
    """Returns fields read from JSON, which has lists where the frozen values have tuples."""
    return {name: tuple(field) if isinstance(field, list) else field for name, field in value.items()}
