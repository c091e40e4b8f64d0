"""Trains one run in one process: from its newest snapshot, through `fit`, to its last step.

session = Session(run, model, config, reporter, lock, stop)
session.restore_newest()         # an interrupted run
session.train()
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kresume import runs
from kresume.backend import fingerprint
from kresume.checkpoints import snapshot
from kresume.errors import CheckpointError, Stopped, UsageError
from kresume.evaluation.live import LiveScorer
from kresume.evaluation.score import flatten
from kresume.images.manifest import Manifest
from kresume.images.mixing import Mixed, make_order
from kresume.images.scans import FOLDER, epochs_begun
from kresume.lock import NAME as LOCK
from kresume.lock import Lock
from kresume.models import structure
from kresume.models.losses import LossChoice
from kresume.models.schedules import set_clock, time_of
from kresume.models.statistics import stored
from kresume.options.resolve import cache_limit
from kresume.options.settings import settings_of
from kresume.options.table import TrainConfig
from kresume.reporter import Reporter
from kresume.reports.sinks import Sink
from kresume.reports.sinks.jsonl import JsonLines
from kresume.storage import atomic
from kresume.training.loop.arrivals import Changes
from kresume.training.loop.callbacks import Keeper, Resumption, Scorer
from kresume.training.loop.epochs import Passes
from kresume.training.loop.feed import Feed
from kresume.training.loop.fit import assign_state, fit, groups_of
from kresume.training.loop.lines import describe_line, epoch_line
from kresume.training.loop.progress import Progress
from kresume.training.loop.scored import WITHOUT, Scored, make_scorer
from kresume.training.loop.stop import StopRequest
from kresume.training.loop.teaching import parent_teaches
from kresume.training.loop.thawing import Thawing
from kresume.training.loop.watchers import monitor_of, narrator, watchers
from kresume.training.loop.writer import RunWriter
from kresume.training.plan.judging import gates_of
from kresume.training.snapshot_policy import Cadence, Retention
from kresume.values.state import TrainState


class _Asked(Exception):
    """A signal asked to stop while other weights are swapped in."""


class Session:
    """The training of a run in one process.

    Args:
        run: the run on disk; this process holds its lock.
        model: compiled and built, with the state of step 0; any state if `restore_newest` follows.
        config: the options that apply.
        reporter: shown the epochs.
        lock: checked before each commit.
        stop: set by signals.
        thaw: gives the model the optimizer of all layers, after those that are frozen for the first epochs.

    Attributes:
        progress: how far the run is.
        passes: the epochs over its images.
        gates: what its result must meet.
        thawing: when frozen layers begin to train.
        scored: how the last scored step was scored.
        writer: the thread that writes to the run.
    """

    def __init__(
        self,
        run: runs.Run,
        model: Any,
        config: TrainConfig,
        reporter: Reporter,
        lock: Lock,
        stop: StopRequest,
        thaw: Callable[[], None],
    ) -> None:
        self.run = run
        self.model = model
        self.config = config
        self.settings = settings_of(config)
        self.reporter = reporter
        self.lock = lock
        self.stop = stop
        self.thawing = Thawing(run.record.freezing, thaw, reporter.say)
        self.progress = Progress()
        self.manifest = Manifest.read(run.manifest)
        self.card = run.record.card
        self.amount = run.record.amount
        self.loss = LossChoice.of_record(run.record.loss)
        self.passes = Passes(self.manifest, self.amount, self._order_of, config.steps, config.epochs)
        self.gates = gates_of(config)
        self.sinks: list[Sink] = [JsonLines(run.metrics)]
        self.writer = RunWriter(
            run.snapshots,
            self.sinks,
            retention=Retention(self.settings.keep),
            guard=lock.check,
            on_failure=self._not_written,
            on_stall=lambda text: reporter.warn(f"{text}; training continues as far as it can"),
        )
        self.writer.remember(0, None)
        self.changes = Changes(
            run,
            self.manifest,
            config,
            self.card,
            self.card.spec,
            reporter,
            guard=lock.check,
            on_failure=self.writer.record_failure,
        )
        self._resumption = Resumption()
        self._scoring = Scorer(self._score)
        self._keeper: Keeper | None = None
        self._scorer: LiveScorer | None = None
        self.scored = Scored()
        self._feed: Feed | None = None

    def _order_of(self, manifest: Manifest) -> Mixed:
        config, held, generation = self.config, self.settings, self.run.generation
        seed, batch_size = self.run.record.seed, self.amount.batch_size
        balance = self.run.record.balance or held.balance
        try:
            return make_order(manifest, seed, batch_size, held.mix, config.replay, balance, generation)
        except UsageError as error:
            if manifest is self.manifest:
                raise
            # All old or all new images became unreadable during training: not a reason to abort an unattended run.
            self.reporter.warn(f"{error}; from here on an epoch uses every image once")
            return make_order(manifest, seed, batch_size, None, None, balance, generation)

    def _not_written(self, text: str) -> None:
        self.reporter.warn(f"{text}: not written; training continues, and what was written before is safe")
        with contextlib.suppress(OSError):  # same disk; the warning above and exit code 5 still report it
            self.run.event("not written", reason=text)

    @property
    def failures(self) -> list[str]:
        """Returns descriptions of what could not be written."""
        return self.writer.failures

    def restore_newest(self) -> None:
        """Restores the newest intact snapshot, and reports which one and why no newer one.

        Raises:
            CheckpointError: no snapshot is intact, or it belongs to another manifest.
        """
        for folder in (self.run.path, self.run.snapshots, self.run.path / FOLDER):
            atomic.remove_leftovers(folder, keep=LOCK)  # the heartbeat writes it during this cleanup
        snapshot.undo_replacements(self.run.snapshots)
        state, skipped = snapshot.newest_snapshot(self.run.snapshots)
        for path, reason in skipped:
            self.reporter.warn(f"{path} is damaged ({reason}): continuing from the snapshot before it")
            self.run.event("snapshot damaged", path=str(Path(path).name), reason=reason)
            snapshot.set_aside(Path(path))
        self.progress = Progress.from_records(state.records)
        begun = epochs_begun(state.records)
        for scan in self.changes.recorded(begun):
            self.passes.change(scan.epoch - 1, scan.applied_to(self.passes.manifest))
        if state.records["manifest"] != self.passes.digest:
            raise CheckpointError(
                f"{self.run.manifest} is not the manifest that the snapshots were taken with: restore it from a copy"
            )
        self.thawing.restore(begun)
        assign_state(self.model, state)
        groups = groups_of(state)
        self.scored = Scored(self.progress.step, stored(self.model, state))
        self._resumption = Resumption(
            callbacks=state.records["callbacks"],
            callback_arrays=groups.get("callbacks", ()),
            metrics=groups["metrics"] if self.progress.phase in {"training", "scoring"} else None,
        )
        # If an epoch only repeats its scoring, its line is not lost.
        lost = len(runs.read_metrics(self.run.metrics)) - self.progress.lines - (self.progress.phase == "scoring")
        for sink in self.sinks:
            sink.keep(self.progress.lines)
        for step, best in snapshot.best_steps(self.run.snapshots).items():
            self.writer.remember(step, best)
        self.run = self.run.update(status="running")
        self._say_where(state, lost)

    def _say_where(self, state: TrainState, lost: int) -> None:
        """Says from where the run continues and what is repeated."""
        changed = fingerprint.differences(state.records["fingerprint"], fingerprint.fingerprint())
        if changed:
            self.reporter.say(
                f"this is another machine or version ({'; '.join(changed)}): same data and steps, last digits may differ"
            )
            self.run.event("continued elsewhere", changes=changed)
        where = {"training": "", "scoring": ", scoring pending", "epoch": "", "done": ", training done"}
        self.reporter.say(
            f"continuing at step {self.progress.step:,} of {self.passes.boundaries[-1]:,}, epoch {self.progress.epoch + 1} of "
            f"{len(self.passes.boundaries)}{where[self.progress.phase]}"
        )
        if lost > 0:
            self.reporter.say(
                f"the process before ended {lost:,} epoch{'s' * (lost > 1)} after its last snapshot: they are repeated, "
                "with the same result (--snapshot-every N takes one more often; SIGTERM and Ctrl-C lose nothing)"
            )

    def train(self) -> None:
        """Trains to the last boundary, or until patience runs out.

        Raises:
            Stopped: a signal requested it.
            TrainingError: the loss is no longer a number.
        """
        if self.progress.done:
            return
        feed = Feed(self.run.record, self.settings, cache_limit(self.config), self.reporter, self._replaced)
        feed.open(self.passes.manifest)
        self._feed = feed
        self.changes.open(feed.cache)
        if self.progress.phase == "epoch" and self.progress.epoch:
            self._before_epoch(self.progress.epoch)
        self._set_clock()  # an epoch that still needs scoring reports its rate, too
        self._keeper = keeper = self._make_keeper()
        self._scorer = make_scorer(self, feed.cache)

        def dataset_from(step: int) -> Any:
            self._set_clock()
            return prepared(feed.dataset(self.passes.manifest, self.passes.order, step))

        teaching = parent_teaches(self.run, self.model, self.loss, self.config)
        with teaching as prepared, contextlib.ExitStack() as bars:
            bar = narrator(self.reporter, bars, self.passes.boundaries, self.progress)
            fit(
                self.model,
                dataset_from,
                boundaries=self.passes.boundaries,
                callbacks=[bar, self._scoring, *watchers(self.config, self.run.record.rate, self.reporter.say)],
                keeper=keeper,
            )
        self.writer.join()

    def _make_keeper(self) -> Keeper:
        """Makes the callback that counts steps, writes lines and takes snapshots."""
        return Keeper(
            progress=self.progress,
            boundaries=self.passes.boundaries,
            steps_per_execution=self.amount.steps_per_execution,
            writer=self.writer,
            cadence=Cadence.parse(self.settings.snapshot_every),
            stop=self.stop,
            line=self._line,
            monitor=monitor_of(self.config),
            within=lambda: not self.gates.failures(self._scoring.scores, self.run.record.before),
            resumption=self._resumption,
            records=lambda: {
                "manifest": self.passes.digest,
                "fingerprint": fingerprint.fingerprint(),
                "seed": self.run.record.seed,
                "clock": time_of(self.model.optimizer),
                structure.RECORD: structure.describe(self.model),
            },
            before_epoch=self._before_epoch,
            scored_with=lambda: self.scored.statistics_of(self.progress.step),
        )

    def _set_clock(self) -> None:
        set_clock(self.model.optimizer, self.passes.clock, self.run.record.iterations)

    def _replaced(self, manifest: Manifest, row: int, reason: str) -> None:
        """Notes a training image that can no longer be read."""
        self.changes.broke(manifest, row, reason, "the next image of the order replaces it")

    def _before_epoch(self, done: int) -> bool:
        """Applies what changes before the next epoch, images and frozen layers; returns True if anything did."""
        changed = self._change_images(done)
        if not self.thawing.before_epoch(done, self.model):
            return changed
        self.scored = Scored()  # their places among the variables have changed
        return True

    def _change_images(self, done: int) -> bool:
        """Applies images that came or went before the next epoch; returns True if any did."""
        scan = self.changes.before_epoch(done, self.passes.manifest, lambda: self._poll("looking for images"))
        if scan is None or not scan.changes:
            return False
        self.passes.change(done, scan.applied_to(self.passes.manifest))
        with contextlib.suppress(OSError):  # written again at the end
            self.run = self.run.update(images={**self.run.record.images, **self.counts()})
        return True

    def _poll(self, doing: str) -> None:
        """Stops between two steps if a signal requested it.

        Scoring or looking for images may outlast the grace period of a preempted machine. Only the state of the last
        step matters: the rest is repeated from it.
        """
        if self.stop.signal is None:
            return
        safe = "its snapshot is safe"
        if self._keeper is not None:
            self._keeper.snapshot(None, must=True)
            self.writer.join()
            safe = self._keeper.what_is_safe()
        raise Stopped(f"stopped while {doing} after step {self.progress.step:,}, {safe}", self.stop.exit_code)

    def _score(self) -> tuple[dict[str, Any], dict[str, float]]:
        """Scores the step, with statistics recomputed for it.

        A signal is answered after the scorer has put the weights and statistics of training back: it predicts with others.
        """
        if self._scorer is None or self._feed is None:  # `train` makes them before the first epoch
            raise ValueError("no scorer")
        try:
            if self.run.record.statistics == "recomputed":
                reader = self._feed.reader(self.passes.manifest)
                found = self._scorer.recompute(
                    reader, self.passes.rows_of_statistics(self.progress.epoch), lambda count: self._raise_if_asked()
                )
                self.scored = Scored(self.progress.step, found)
            scores, answers = self._scorer.score(
                self.reporter,
                "scoring",
                poll=self._raise_if_asked,
                on_broken=lambda row, reason: self.changes.broke(self.manifest, row, reason, WITHOUT),
            )
            self.scored = Scored(self.progress.step, self._scorer.statistics, answers)
        except _Asked:
            self._poll("scoring")
            raise
        return scores, flatten(scores)

    def _raise_if_asked(self) -> None:
        if self.stop.signal is not None:
            raise _Asked

    def _line(self, epoch: int, logs: Mapping[str, Any], steps_per_second: float | None) -> dict[str, Any]:
        """Makes the line of an epoch and shows it."""
        line = epoch_line(
            epoch,
            self.progress,
            logs,
            self._scoring.scores,
            rate=float(np.asarray(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))),
            batch_size=self.amount.batch_size,
            shares=self.passes.shares(),
            steps_per_second=steps_per_second,
        )
        self.reporter.say(describe_line(line, len(self.passes.boundaries)))
        return line

    def counts(self) -> dict[str, int]:
        """Counts the images at the end of training, after arrivals and departures."""
        manifest = self.passes.manifest
        new = int((manifest.origins == self.run.generation).sum())
        return {
            "total": len(manifest),
            "old": len(manifest) - new,
            "new": new,
            "added": new,
            "train": len(manifest.train_rows()),
            "validation": len(manifest.val_rows()),
        }
