"""Says at the end of a training what came of it.

print(TrainResult(run="runs/2-signs", ...))

runs/2-signs: accepted, 14 epochs, result is step 477 (epoch 14, the last)
before: 93.2 % of 383 validation images (old 94.0 % of 83, new 93.0 % of 300)
after:  95.3 % of 383 validation images (old 97.6 % of 83, new 94.7 % of 300)
change: better on new (+1.7 points, p = 0.04), unchanged on old within noise (+3.6 points, p = 0.2)
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kresume import runs
from kresume.errors import GateFailed
from kresume.evaluation import answers
from kresume.evaluation.forgetting import forgetting_of
from kresume.evaluation.gates import Gates
from kresume.evaluation.verdict import Pair, Verdict, in_words, judge_origins
from kresume.options.given import to_train
from kresume.options.settings import DEFAULTS
from kresume.spelling import counted, in_percent, in_python, option
from kresume.training.plan.plan import describe_scores

SHOWN = 5
"""Failures that are printed: a full disk may refuse a snapshot of every step. The JSON form names all."""


@dataclass(frozen=True)
class TrainResult:
    """Result of a finished run, which `kresume train` prints last.

    Attributes:
        run: the run directory.
        status: `"accepted"` or `"rejected"`.
        step: the step of the result.
        epochs: the number of epochs trained.
        before: the parent's scores, None for a new model.
        after: the result's scores.
        failures: descriptions of snapshots and records that could not be written.
        failed: descriptions of the gates that no epoch met.
        parent: the path of the run that stays the accepted one, if a gate failed; may be empty.
        feed: the line of plain Keras code that feeds the result as it was trained.
        report: the path of the page about the run; empty if it could not be written.
        needs: the package besides Keras that `model.keras` needs; may be empty.
        which: the epoch of the result in words: `"epoch 9, the best by val_loss"`.
        verdicts: how the result compares with the parent on new, old and all images; empty if that is unknown.
        forgot: on what it is worse than the parent by more than noise; empty if unknown.
        best: which other epoch had a lower loss on the validation images; empty if none.
        average: share of the checkpoint's weights in the result; 0 for the weights as they were trained.
        seen: validation images that the first checkpoint was probably trained on, so that it looks better there.
        unread: images that could not be read any more while it trained.
        waiting: what the watched sources hold for the next generation; empty if nothing.
        added: images that it added to its parent's.
        dropped: images that `--drop` named in this run or before it.
        alike: that all validation images get one class; empty if they do not.
    """

    run: str
    status: str
    step: int
    epochs: int
    before: Mapping[str, Any] | None
    after: Mapping[str, Any]
    failures: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    parent: str = ""
    feed: str = ""
    report: str = ""
    needs: str = ""
    which: str = ""
    verdicts: Mapping[str, Verdict] = field(default_factory=dict)
    forgot: str = ""
    best: str = ""
    average: float = 0.0
    seen: int = 0
    unread: int = 0
    waiting: str = ""
    added: int = 0
    dropped: int = 0
    alike: str = ""

    @property
    def exit_code(self) -> int:
        """Returns 0, 3 if a gate failed, or 5 if something could not be written."""
        return GateFailed.exit_code if self.failed else 5 if self.failures else 0

    def as_dict(self) -> dict[str, Any]:
        """Returns the JSON form."""
        return {
            **vars(self),
            "failures": list(self.failures),
            "failed": list(self.failed),
            "verdicts": {name: verdict.as_dict() for name, verdict in self.verdicts.items()},
            "exit_code": self.exit_code,
        }

    def __str__(self) -> str:
        epochs = f"{self.epochs} epoch{'' if self.epochs == 1 else 's'}"
        which = f" ({self.which})" if self.which else ""
        seen = f"; {self.seen:,} of the validation images were probably seen in training before" if self.seen else ""
        needs = f" (loads where {self.needs} is installed)" if self.needs else ""
        named = [
            ("before", describe_scores(self.before) if self.before else ""),
            ("after", describe_scores(self.after)),
            ("change", f"{in_words(self.verdicts)}{seen}" if self.verdicts else ""),
            ("forgot", self.forgot),
            ("note", self.alike),
            (
                "unread",
                f"{counted(self.unread, 'image')} while it trained, named in events.jsonl" if self.unread else "",
            ),
            ("waits", self.waiting),
            ("best", self.best),
            ("model", f"{Path(self.run) / 'model.keras'}{needs}"),
            ("feed", self.feed),
            ("report", self.report),
        ]
        lines = [f"{self.run}: {self.status}, {epochs}, result is step {self.step:,}{which}"]
        lines += [f"{name + ':':<8}{text}" for name, text in named if text]
        lines += [f"gate failed: {failure}" for failure in self.failed]
        run = shlex.quote(self.run)
        if self.failed:
            stays = f", {self.parent} stays the accepted one" if self.parent else ""
            dropped = f", what {option('drop')} named stays dropped" if self.dropped else ""
            new = f"; the images that it added are new to the next run{dropped}" if self.added else ""
            lines.append(f"{self.run} is rejected{stays}{new}")
        else:
            export = f"kresume.export({self.run!r}, 'serving/')" if in_python() else f"kresume export {run} serving/"
            lines.append(f"next:   {export}, or {to_train(from_=self.run, add=('MORE_IMAGES',))}")
        lines += [f"not written: {failure}" for failure in self.failures[:SHOWN]]
        if len(self.failures) > SHOWN:
            lines.append(f"… and {len(self.failures) - SHOWN:,} more")
        return "\n".join(lines)


def closing_facts(run: runs.Run, pair: Pair | None) -> dict[str, Any]:
    """Returns the facts of a finished run that are not in its record, by the names of `TrainResult`.

    Args:
        run: finished.
        pair: the answers of its parent and its result; None if one of them is unknown.
    """
    verdicts: Mapping[str, Verdict] = {}
    forgot = ""
    if pair is not None:
        verdicts = judge_origins(pair.before, pair.after, pair.generation)
        forgot = str(forgetting_of(pair, run.record.new_classes))
    found = pair.after if pair is not None else answers.read(run.answers("after"))
    lines = runs.read_metrics(run.metrics)
    epoch = next((line["epoch"] for line in lines if line["step"] == run.result_step()), None)
    options = run.record.options
    monitor = options.get("monitor") or DEFAULTS.monitor
    is_best = run.record.result is not None and run.record.result.which == "best"
    gates = Gates.of(options.get("require"), options.get("max_forgetting"), options.get("max_class_drop"))
    within = " of those within the gates" if gates else ""
    share = run.record.result.average if run.record.result is not None else 0.0
    mixed = f", averaged with {in_percent(share)} of the checkpoint's weights" if share else ""
    return {
        "average": share,
        "which": ""
        if epoch is None
        else f"epoch {epoch}, {f'the best by {monitor}{within}' if is_best else 'the last'}{mixed}",
        "verdicts": verdicts,
        "forgot": forgot,
        "best": "" if is_best or share else _better_epoch(lines, epoch),
        "seen": int(run.record.images.get("seen", 0)),
        "unread": len({event.get("sha256") for event in run.events(runs.BROKE)}),
        "waiting": _waiting_in(run),
        "added": int(run.record.images.get("added", 0)),
        "dropped": len(run.record.dropped),
        "alike": found.describe_sameness() if found is not None else "",
    }


def _waiting_in(run: runs.Run) -> str:
    """Names what the watched sources hold for the next generation; empty if they hold nothing more."""
    count, first = run.waiting()
    if not count:
        return ""
    more = f" and {count - 1:,} more (the report names them)" if count > 1 else ""
    return f"{first[0][0]} ({first[0][1]}){more} in the watched sources, for the next generation"


def _better_epoch(lines: list[dict[str, Any]], epoch: int | None) -> str:
    """Names the epoch with the lowest validation loss, if the result is another one."""
    scored = [line for line in lines if (line.get("all") or {}).get("loss") is not None]
    last = next((line for line in scored if line["epoch"] == epoch), None)
    if last is None:
        return ""
    best = min(scored, key=lambda line: float(line["all"]["loss"]))
    if best["all"]["loss"] >= last["all"]["loss"]:
        return ""
    low, ours = best["all"]["loss"], last["all"]["loss"]
    return (
        f"epoch {best['epoch']} had the lowest validation loss ({low:.3f}, the result {ours:.3f}); "
        f"{option('monitor', DEFAULTS.monitor)} makes such an epoch the result"
    )
