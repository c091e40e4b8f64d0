"""Defines the result of `kresume eval`: what it prints, its JSON form and its CSV form.

print(evaluation)
evaluation.as_dict()["old"]["accuracy"]
evaluation.write_csv(Path("scores.csv"))
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from kresume.errors import GateFailed
from kresume.evaluation.answers import Answers
from kresume.evaluation.block import ORDER, describe, describe_comparison, left_out
from kresume.evaluation.measure import confused
from kresume.evaluation.verdict import Verdict, in_words, judge_classes, judge_origins
from kresume.images.manifest import Manifest
from kresume.storage import atomic
from kresume.values.decode_spec import DecodeSpec


@dataclass(frozen=True)
class Evaluation:
    """Scores of one model on one set of images.

    Attributes:
        model: the path of the scored model.
        data: the sources of the images.
        scores: `{"all": {...}, "old": {...}, "new": {...}, "classes": {NAME: {...}}}`, each with `intervals`.
        quarantined: number of files that could not be read.
        note: a note for the user on how the model was scored, or an empty string.
        against: the scores of another model on the same images, if requested.
        answers: the answer to every image.
        calibration: for bins of confidence, the number of images, the mean confidence and the accuracy.
        generation: images with a lower origin are old.
        generations: the scores on the images of each generation of the scored run, and on those that it does not have.
        failed: descriptions of the gates that the scores fail.
        lacks: classes of the images that the model does not have.
        manifest: the images, a row for each answer; None if the answers were made elsewhere.
        spec: how their pictures are decoded.
        cache: where decoded pictures are: a folder, `"off"`, or None for the usual one.
        duplicates: number of files whose content another one has: such an image counts once.
        conflicts: files of images that are given under two labels, as (path, label, other label): they are left out.
        notes: which files of the sources were left out.
    """

    model: str
    data: tuple[str, ...]
    scores: Mapping[str, Any]
    quarantined: int
    note: str = ""
    against: Evaluation | None = None
    answers: Answers | None = field(default=None, repr=False)
    calibration: Sequence[Mapping[str, Any]] = field(default=(), repr=False)
    generation: int = 0
    generations: Sequence[Mapping[str, Any]] = ()
    failed: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()
    manifest: Manifest | None = field(default=None, repr=False)
    spec: DecodeSpec | None = field(default=None, repr=False)
    cache: str | None = field(default=None, repr=False)
    duplicates: int = 0
    conflicts: Sequence[tuple[str, str, str]] = field(default=(), repr=False)
    notes: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """Returns 0, or 3 if a gate failed."""
        return GateFailed.exit_code if self.failed else 0

    @cached_property
    def confused(self) -> list[dict[str, Any]]:
        """Returns the cells of the confusion matrix that have images, the most mistakes first."""
        return confused(self.answers) if self.answers is not None else []

    @cached_property
    def verdicts(self) -> dict[str, Verdict]:
        """Returns how it compares with the other model on new, old and all images; empty without one."""
        if self.against is None or self.answers is None or self.against.answers is None:
            return {}
        return judge_origins(self.against.answers, self.answers, self.generation)

    @cached_property
    def class_verdicts(self) -> dict[str, Verdict]:
        """Returns the same for the images of each class."""
        if self.against is None or self.answers is None or self.against.answers is None:
            return {}
        return judge_classes(self.against.answers, self.answers)

    def as_dict(self) -> dict[str, Any]:
        """Returns the JSON form that `eval --json` prints."""
        facts = {
            **self.scores,
            "model": self.model,
            "data": list(self.data),
            "quarantined": self.quarantined,
            "duplicates": self.duplicates,
            "conflicts": [list(each) for each in self.conflicts],
            "notes": list(self.notes),
            "confusion": self.confused,
            "calibration": list(self.calibration),
            "generations": list(self.generations),
            "failed": list(self.failed),
            "exit_code": self.exit_code,
        }
        if self.note:
            facts["note"] = self.note
        if self.against is not None:
            facts["against"] = self.against.as_dict()
            facts["comparison"] = {
                **{name: verdict.as_dict() for name, verdict in self.verdicts.items()},
                "classes": {name: verdict.as_dict() for name, verdict in self.class_verdicts.items()},
                "words": in_words(self.verdicts),
            }
        return facts

    def __str__(self) -> str:
        lines = [f"{self.model} on {', '.join(self.data)} (95 % intervals in brackets)"]
        lines += [f"  {line}" for line in describe(self.scores, self.calibration, self.confused, self.generations)]
        lines += [f"  {line}" for line in left_out(self.quarantined, self.duplicates, self.conflicts)]
        lines += [f"  note: {note}" for note in (*self.notes, self.note) if note]
        if self.against is not None:
            lines += ["", f"{self.against.model} -> {self.model}, on the same images"]
            told = describe_comparison(self.against.scores, self.scores, self.verdicts, self.class_verdicts)
            lines += [f"  {line}" for line in told]
            if self.against.note:
                lines.append(f"  note on {self.against.model}: {self.against.note}")
        lines += [f"gate failed: {failure}" for failure in self.failed]
        return "\n".join(lines)

    def write_csv(self, path: Path) -> None:
        """Writes a table with one row for each model, subset, and class of a subset."""
        rows = list(self._rows(self.verdicts, self.class_verdicts))
        if self.against is not None:
            rows += self.against._rows({}, {})
        text = io.StringIO()
        columns = dict.fromkeys(name for row in rows for name in row)
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        atomic.write_text(path, text.getvalue())

    def _rows(self, verdicts: Mapping[str, Verdict], classes: Mapping[str, Verdict]) -> Iterator[dict[str, Any]]:
        for subset in ORDER:
            facts = self.scores[subset]
            yield self._row(subset, "", facts, verdicts.get(subset))
            own = self.scores["classes"] if subset == "all" else facts.get("classes", {})
            for name, each in own.items():
                yield self._row(subset, name, each, classes.get(name) if subset == "all" else None)

    def _row(self, subset: str, name: str, facts: Mapping[str, Any], verdict: Verdict | None) -> dict[str, Any]:
        row: dict[str, Any] = {"model": self.model, "subset": subset, "class": name, "images": facts["images"]}
        for metric, value in facts.items():
            if metric in {"images", "intervals", "classes"}:
                continue
            low, high = facts["intervals"].get(metric) or (None, None)
            row[metric] = value
            if metric in facts["intervals"]:
                row |= {f"{metric}_low": low, f"{metric}_high": high}
        if verdict is not None:
            row |= {"difference": verdict.difference, "p": verdict.p, "gained": verdict.gained, "lost": verdict.lost}
        return row
