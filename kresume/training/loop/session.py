"""Trains one run in one process: from its newest snapshot, through `fit`, to its last step.

session = Session(run, model, config, reporter, lock, stop)
restore_newest(session)          # an interrupted run
session.train()
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import keras
import numpy as np

from kresume import runs
from kresume.backend import fingerprint, hosts, programs
from kresume.checkpoints import snapshot
from kresume.errors import KresumeError, NotFinite, Stopped, TrainingError
from kresume.evaluation.live import LiveScorer
from kresume.images.manifest import Manifest
from kresume.images.mixing import Mixed, make_order, unmixed
from kresume.images.waiting import Waiting, asked_ahead, batch_times
from kresume.lock import Lock
from kresume.models import structure
from kresume.models.losses import LossChoice
from kresume.models.schedules import set_clock, time_of
from kresume.options.resolve import average_of, cache_limit
from kresume.options.settings import settings_of
from kresume.options.table import TrainConfig
from kresume.reporter import Reporter
from kresume.training.loop.arrivals import Changes
from kresume.training.loop.breakdown import what_to_try
from kresume.training.loop.callbacks import Keeper, Resumption, Scorer
from kresume.training.loop.epochs import Passes
from kresume.training.loop.feed import Feed
from kresume.training.loop.fit import fit
from kresume.training.loop.lines import describe_line, epoch_line
from kresume.training.loop.narrator import Narrator
from kresume.training.loop.profiling import profiled
from kresume.training.loop.progress import Progress
from kresume.training.loop.recording import Moments, samples_of, sinks_of
from kresume.training.loop.scored import Scored, make_scorer
from kresume.training.loop.scoring import score_step
from kresume.training.loop.stop import StopRequest
from kresume.training.loop.teaching import parent_teaches, read_teacher
from kresume.training.loop.thawing import Thawing
from kresume.training.loop.watchers import monitor_of, watchers, why_ended
from kresume.training.loop.writer import RunWriter, SilentWriter
from kresume.training.plan.judging import gates_of
from kresume.training.snapshot_policy import Cadence, Retention


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
        average: share of the weights with which the run began in its result; `"auto"` chooses it.
        thawing: when frozen layers begin to train.
        scored: how the last scored step was scored.
        resumption: state of callbacks and metrics to restore when training begins.
        not_finite: the arrays that were not finite when the run began, the only ones that may be so.
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
        self.average = average_of(config) if run.record.parent is not None else 0.0
        self.writer = (RunWriter if hosts.this().leads else SilentWriter)(
            run.snapshots,
            sinks_of(run, config),
            retention=Retention(self.settings.keep, frozenset({0} if self.average else ())),
            guard=lock.check,
            on_failure=self._not_written,
            on_repeat=self._not_written_again,
            on_stall=lambda text: reporter.warn(f"{text}; training continues as far as it can"),
            on_commit=lambda records: programs.keep(run.path),
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
        self.resumption = Resumption()
        self.not_finite = snapshot.records_of(snapshot.snapshot_path(run.snapshots, 0)).get(snapshot.NOT_FINITE, ())
        self._scoring = Scorer(self._score)
        self._keeper: Keeper | None = None
        self._scorer: LiveScorer | None = None
        self.scored = Scored()
        self._feed: Feed | None = None
        self._narrator: Narrator | None = None

    def _order_of(self, manifest: Manifest) -> Mixed:
        config, held, generation = self.config, self.settings, self.run.generation
        seed, batch_size = self.run.record.seed, self.amount.batch_size
        balance = self.run.record.balance or held.balance
        why = unmixed(manifest, held.mix, config.replay, generation)
        if why and manifest is not self.manifest and not unmixed(self.manifest, held.mix, config.replay, generation):
            # All old or all new images became unreadable during training: not a reason to abort an unattended run.
            self.reporter.warn(f"{why}; from here on an epoch uses every image once")
        return make_order(manifest, seed, batch_size, held.mix, config.replay, balance, generation)

    def _not_written(self, text: str) -> None:
        self.reporter.warn(f"{text}: not written; training continues, and what was written before is safe")
        self._not_written_again(text)

    def _not_written_again(self, text: str) -> None:
        with contextlib.suppress(OSError):  # same disk; the warning above and exit code 5 still report it
            self.run.event("not written", reason=text)

    @property
    def failures(self) -> list[str]:
        """Returns descriptions of what could not be written."""
        return self.writer.failures

    def train(self) -> None:
        """Trains to the last boundary, or until patience runs out.

        Raises:
            Stopped: a signal requested it.
            TrainingError: the loss is no longer a number.
        """
        if self.progress.done:
            return
        record, limit = self.run.record, cache_limit(self.config)
        feed = Feed(self.card, record.loss, record.seed, self.settings, limit, self.reporter, self._replaced)
        feed.open(self.passes.manifest)
        self._feed = feed
        self.changes.open(feed.cache)
        if self.progress.phase == "epoch" and self.progress.epoch:
            self._before_epoch(self.progress.epoch)
        self._set_clock()  # an epoch that still needs scoring reports its rate, too
        self._keeper = keeper = self._make_keeper()
        self._scorer = make_scorer(self, feed.cache)
        if self.progress.step == 0:
            self.writer.put(samples_of(self.passes.manifest, feed.reader(self.passes.manifest), self.run))

        def dataset_from(step: int) -> Any:
            self._set_clock()
            return prepared(feed.dataset(self.passes.manifest, self.passes.order, step))

        others = watchers(self.config, self.run.record.rate)
        teaching = parent_teaches(self.model, record.teaching, read_teacher(self.run), self.loss.head, self.config)
        profiles = profiled(self.config, self.run.path, self.reporter)
        with teaching as prepared, profiles as profilers, self._make_narrator(keeper) as narrator, feed.own_errors():
            fit(
                self.model,
                dataset_from,
                boundaries=self.passes.boundaries,
                callbacks=[narrator, self._scoring, *others, *profilers],
                keeper=keeper,
            )
        for reason in why_ended(others):
            self.reporter.say(reason)
        self.writer.join()

    def _make_narrator(self, keeper: Keeper) -> Narrator:
        """Makes the callback that shows how far the training is."""
        self._narrator = narrator = Narrator(
            self.reporter,
            self.progress,
            self.passes.boundaries,
            batch_size=self.amount.batch_size,
            steps_per_execution=self.amount.steps_per_execution,
            iterations=self.run.record.iterations,
            speed=keeper.speed,
            committed=lambda: self.writer.committed,
            waiting=Waiting(batch_times(), self.amount.steps_per_execution, asked_ahead()),
        )
        keeper.tell = Moments(narrator, self.writer)
        return narrator

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
            resumption=self.resumption,
            records=lambda: {
                "manifest": self.passes.digest,
                "fingerprint": fingerprint.fingerprint(),
                "seed": self.run.record.seed,
                "clock": time_of(self.model.optimizer),
                structure.RECORD: structure.describe(self.model),
                snapshot.NOT_FINITE: list(self.not_finite),
            },
            before_epoch=self._before_epoch,
            scored_with=lambda: self.scored.statistics_of(self.progress.step),
            advise=partial(what_to_try, self.run),
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
        scan = self.changes.before_epoch(done, self.passes.manifest, lambda: self.poll("looking for images"))
        if scan is None or not scan.changes:
            return False
        self.passes.change(done, scan.applied_to(self.passes.manifest))
        with contextlib.suppress(OSError):  # written again at the end
            self.run = self.run.update(images={**self.run.record.images, **self.counts()})
        return True

    def poll(self, doing: str) -> None:
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
        """Scores the step, with statistics recomputed for it."""
        if self._scorer is None or self._feed is None:  # `train` makes them before the first epoch
            raise ValueError("no scorer")
        return score_step(self, self._scorer, self._feed.reader(self.passes.manifest))

    def explain(self, error: NotFinite) -> KresumeError:
        """Returns an error for the user in place of one that names arrays."""
        return self._keeper.explain(error) if self._keeper is not None else error

    def broke(self, what: str) -> KresumeError:
        """Returns the error of a training that broke since the last snapshot."""
        if self._keeper is None:
            return TrainingError(what)
        return self._keeper.broke(what, self._keeper.last_good(), self.progress.step)

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
            waiting=self._narrator.waiting_share() if self._narrator is not None else None,
        )
        if self._narrator is not None:
            self._narrator.row(line, describe_line(line, len(self.passes.boundaries)))
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
