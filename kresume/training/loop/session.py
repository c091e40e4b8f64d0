"""Trains one run in one process: from its newest snapshot, through `fit`, to its result.

    course = Course(run, model, config, reporter, lock, stop)
    course.take_up()         # an interrupted run: restores its newest good snapshot
    course.train()
    course.finish()

`finish` can be repeated: if a process is killed while writing the result, the next one writes it again from the
snapshot.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np

from kresume import runs
from kresume.backend import fingerprint
from kresume.checkpoints import snapshot
from kresume.errors import CheckpointError, Stopped, UsageError
from kresume.evaluation.caches import open_cache
from kresume.evaluation.live import LiveScorer
from kresume.evaluation.score import flatten
from kresume.images import augment, collect, inputs, pipeline
from kresume.images.manifest import Manifest
from kresume.images.mixing import Mixed, make_order
from kresume.images.reader import PictureReader
from kresume.images.scans import FOLDER, epochs_begun, manifest_of
from kresume.images.variation import Varied, other_spec
from kresume.lock import NAME as LOCK
from kresume.lock import Lock
from kresume.models import save, structure
from kresume.models.averages import averaged
from kresume.models.losses import LossChoice
from kresume.options.resolve import cache_limit
from kresume.options.settings import DEFAULTS, settings_of
from kresume.options.table import TrainConfig
from kresume.reporter import Reporter
from kresume.storage import atomic
from kresume.training.changes import Changes
from kresume.training.loop.callbacks import Keeper, Narrator, Resumption, Scorer, StopRequest
from kresume.training.loop.epochs import Passes
from kresume.training.loop.fit import assign_state, fit, groups_of
from kresume.training.loop.policy import Cadence, Retention
from kresume.training.loop.progress import Progress
from kresume.training.loop.writer import RunWriter
from kresume.training.plan.plan import describe_epoch
from kresume.training.schedules import set_clock, time_of
from kresume.values.rate import RatePlan
from kresume.values.record import Best, Result
from kresume.values.state import TrainState


class Course:
    """The training of a run in one process.

    Args:
        run: the run on disk; this process holds its lock.
        model: compiled and built, with the state of step 0; any state if `take_up` follows.
        config: the options that apply.
        reporter: shown the epochs.
        lock: checked before each commit.
        stop: set by signals.

    Attributes:
        progress: how far the run is.
    """

    def __init__(
        self, run: runs.Run, model: Any, config: TrainConfig, reporter: Reporter, lock: Lock, stop: StopRequest
    ) -> None:
        self.run = run
        self.model = model
        self.config = config
        self.settings = settings_of(config)
        self.reporter = reporter
        self.lock = lock
        self.stop = stop
        self.progress = Progress()
        self.resumption = Resumption()
        self.manifest = Manifest.read(run.manifest)
        self.card = run.record.card
        self.amount = run.record.amount
        self.loss = LossChoice(**run.record.loss.as_dict())
        self.spec = self.card.spec
        self.passes = Passes(self.manifest, self.amount, self._order_of, config.steps, config.epochs)
        self.writer = RunWriter(
            run.snapshots,
            run.metrics,
            retention=Retention(self.settings.keep),
            guard=lock.check,
            on_failure=self._not_written,
            on_stall=lambda text: reporter.warn(f"{text}; training goes on where it can"),
        )
        self.writer.remember(0, None)
        self.changes = Changes(
            run,
            self.manifest,
            config,
            self.card,
            self.spec,
            reporter,
            guard=lock.check,
            on_failure=self.writer.record_failure,
        )

    def _order_of(self, manifest: Manifest) -> Mixed:
        config, held, generation = self.config, self.settings, self.run.generation
        seed, batch_size = self.run.record.seed, self.amount.batch_size
        try:
            return make_order(manifest, seed, batch_size, held.mix, config.replay, held.balance, generation)
        except UsageError as error:
            if manifest is self.manifest:
                raise
            # All old or all new images became unreadable during training: not a reason to abort an unattended run.
            self.reporter.warn(f"{error}; from here on an epoch deals every image once")
            return make_order(manifest, seed, batch_size, None, None, held.balance, generation)

    def _not_written(self, text: str) -> None:
        self.reporter.warn(f"{text}: not written; training goes on, and what was written before stands")
        with contextlib.suppress(OSError):  # same disk; the warning above and exit code 5 still report it
            self.run.event("not written", reason=text)

    @property
    def failures(self) -> list[str]:
        """Returns descriptions of what could not be written."""
        return self.writer.failures

    def take_up(self) -> None:
        """Restores the newest intact snapshot, and reports which one and why no newer one.

        Raises:
            CheckpointError: no snapshot is intact, or it belongs to another manifest.
        """
        for folder in (self.run.path, self.run.snapshots, self.run.path / FOLDER):
            atomic.remove_leftovers(folder, but=LOCK)  # the heartbeat writes it during this cleanup
        snapshot.put_back(self.run.snapshots)
        state, skipped = snapshot.newest_snapshot(self.run.snapshots)
        for path, reason in skipped:
            self.reporter.warn(f"{path} is damaged ({reason}): going on from the one before")
            self.run.event("snapshot damaged", path=str(Path(path).name), reason=reason)
            snapshot.set_aside(Path(path))
        self.progress = Progress.from_records(state.records)
        for scan in self.changes.recorded(epochs_begun(state.records)):
            self.passes.change(scan.epoch - 1, scan.applied_to(self.passes.manifest))
        if state.records["manifest"] != self.passes.digest:
            raise CheckpointError(
                f"{self.run.manifest} is not the manifest that the snapshots were taken on: restore it from a copy"
            )
        self._assign(state)
        groups = groups_of(state)
        self.resumption = Resumption(
            callbacks=state.records["callbacks"],
            callback_arrays=groups.get("callbacks", ()),
            metrics=groups["metrics"] if self.progress.phase in {"training", "scoring"} else None,
        )
        # If an epoch only repeats its scoring, its line is not lost.
        lost = len(runs.read_metrics(self.run.metrics)) - self.progress.lines - (self.progress.phase == "scoring")
        runs.keep_lines(self.run.metrics, self.progress.lines)
        for step, best in snapshot.pins(self.run.snapshots).items():
            self.writer.remember(step, best)
        self.run = self.run.update(status="running")
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
                f"the process before ended {lost:,} epoch{'s' * (lost > 1)} after its last snapshot: they are done again, "
                "with the same result (--snapshot-every N takes one more often; SIGTERM and Ctrl-C lose nothing)"
            )

    def _assign(self, state: TrainState) -> None:
        assign_state(self.model, state)

    def train(self) -> None:
        """Trains to the last boundary, or until patience runs out.

        Raises:
            Stopped: a signal requested it.
            TrainingError: the loss is no longer a number.
        """
        config, held, record = self.config, self.settings, self.run.record
        if self.progress.done:
            return
        limit = cache_limit(config)
        cache = open_cache(self.spec, held.cache, limit)
        if cache is not None:
            collect.decode_recorded(self.passes.manifest, self.spec, cache, self.reporter, needs_all=False)
        other = other_spec(self.spec) if held.vary_interpolation else None
        second = open_cache(other, held.cache, limit) if other is not None else None
        if other is not None and second is not None:
            collect.decode_recorded(self.passes.manifest, other, second, self.reporter, needs_all=False)
        self.changes.open(cache)
        if self.progress.phase == "epoch" and self.progress.epoch:
            self._before_epoch(self.progress.epoch)
        self._set_clock()  # an epoch that still needs scoring reports its rate, too
        augmenter = augment.augmenter(held.augment, record.seed, held.mixup, held.cutmix, held.rand_augment, held.erase)
        to_model = inputs.to_input(self.card.pixels, self.card.input)

        def dataset_from(step: int) -> Any:
            self._set_clock()
            manifest = self.passes.manifest
            rows = manifest.train_rows()
            # TensorFlow keeps earlier datasets and what they read with; the weak reference lets the reader be freed.
            self._reader = PictureReader(manifest, self.spec, cache)
            reader = weakref.proxy(self._reader)
            varied = None
            if other is not None:
                self._other_reader = PictureReader(manifest, other, second)
                varied = Varied(weakref.proxy(self._other_reader), record.seed)
            return pipeline.training_dataset(
                reader,
                rows,
                manifest.labels[rows],
                self.passes.order,
                start_step=step,
                image_size=self.card.image_size,
                pixels=to_model,
                input_shape=self.card.input_shape,
                augment=augmenter,
                one_hot=len(self.card.classes) if self.loss.one_hot else None,
                on_broken=lambda row, reason: self.changes.broke(
                    reader.manifest, row, reason, "the next image of the order stands in for it"
                ),
                varied=varied,
            )

        keeper = Keeper(
            progress=self.progress,
            boundaries=self.passes.boundaries,
            steps_per_execution=self.amount.steps_per_execution,
            writer=self.writer,
            cadence=Cadence.parse(held.snapshot_every),
            stop=self.stop,
            line=lambda epoch, logs: self._line(epoch, logs, keeper.steps_per_second),
            monitor=monitor_of(config),
            resumption=self.resumption,
            records=lambda: {
                "manifest": self.passes.digest,
                "fingerprint": fingerprint.fingerprint(),
                "seed": record.seed,
                "clock": time_of(self.model.optimizer),
                structure.RECORD: structure.describe(self.model),
            },
            before_epoch=lambda epochs: self._before_epoch(epochs, keeper),
        )
        self.scorer = LiveScorer(
            self.model,
            PictureReader(self.manifest, self.spec, cache),
            self.manifest,
            self.card,
            self.loss,
            self.amount.batch_size,
            self.run.generation,
        )
        self._scoring = Scorer(lambda: self._score(keeper))
        with contextlib.ExitStack() as bars:
            narrator = _narrate(self.reporter, bars, self.passes.boundaries, self.progress)
            fit(
                self.model,
                dataset_from,
                boundaries=self.passes.boundaries,
                callbacks=[narrator, self._scoring, *_watchers(config, record.rate)],
                keeper=keeper,
            )
        self.writer.join()

    def _set_clock(self) -> None:
        set_clock(self.model.optimizer, self.passes.clock, self.run.record.iterations)

    def _before_epoch(self, done: int, keeper: Keeper | None = None) -> bool:
        """Applies images that came or went before the next epoch; returns True if any did."""
        scan = self.changes.before_epoch(done, self.passes.manifest, lambda: self._poll("looking for images", keeper))
        if scan is None or not scan.changes:
            return False
        self.passes.change(done, scan.applied_to(self.passes.manifest))
        with contextlib.suppress(OSError):  # written again at the end
            self.run = self.run.update(images={**self.run.record.images, **self._counts()})
        return True

    def _poll(self, doing: str, keeper: Keeper | None) -> None:
        """Stops between two steps if a signal requested it.

        Scoring or looking for images may outlast the grace period of a preempted machine. Only the state of the last
        step matters: the rest is repeated from it.
        """
        if self.stop.signal is None:
            return
        safe = "its snapshot stands"
        if keeper is not None:
            keeper.snapshot(None, must=True)
            self.writer.join()
            safe = keeper.what_is_safe()
        raise Stopped(f"stopped while {doing} after step {self.progress.step:,}, {safe}", self.stop.exit_code)

    def _score(self, keeper: Keeper) -> tuple[dict[str, Any], dict[str, float]]:
        scores = self.scorer.score(
            self.reporter,
            "scoring",
            poll=lambda: self._poll("scoring", keeper),
            on_broken=lambda row, reason: self.changes.broke(
                self.manifest, row, reason, "the scores of this run go on without it"
            ),
        )
        return scores, flatten(scores)

    def _line(self, epoch: int, logs: Mapping[str, Any], steps_per_second: float | None) -> dict[str, Any]:
        """Returns one line of `metrics.jsonl`; only its last two fields may differ after an interruption."""
        scores = self._scoring.scores
        trained = {name: value for name, value in logs.items() if "." not in name and not name.startswith("val_")}
        rate = float(np.asarray(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate)))
        line = {
            "epoch": epoch + 1,
            "step": self.progress.step,
            "position": self.progress.step * self.amount.batch_size,
            "lr": rate,
            **trained,
            "old": scores["old"],
            "new": scores["new"],
            "all": scores["all"],
            "classes": scores["classes"],
            "shares": self.passes.shares().as_dict(),
            "images_per_second": round(steps_per_second * self.amount.batch_size, 1) if steps_per_second else None,
            "time": runs.now(),
        }
        trained_words = f"{100 * trained['accuracy']:.1f} %, loss {trained['loss']:.3f}"
        epochs = len(self.passes.boundaries)
        self.reporter.say(
            f"epoch {epoch + 1}/{epochs}  step {self.progress.step:,}  lr {rate:.3g}  train {trained_words}  "
            f"validation {describe_epoch(scores)}"
        )
        return line

    def finish(self) -> runs.Run:
        """Writes the result: `model.keras`, `evaluation.json`, the status. Keeps only the result's snapshot."""
        self.writer.finish()
        self.lock.check()  # a machine that slept may have lost the run to another
        lines = runs.read_metrics(self.run.metrics)
        best = self._take_best()
        step = int(best["step"]) if best is not None else self.progress.step
        scores = next(line for line in reversed(lines) if line["step"] == step)
        scores = {name: scores[name] for name in ("all", "old", "new", "classes")}
        record = self.run.record
        lineage = {
            "run": self.run.path.name,
            "generation": self.run.generation,
            "step": step,
            "total_step": record.base_step + step,
            "parent": asdict(record.parent) if record.parent else None,
            "manifest": self._digest_of(best),
        }
        card = replace(record.card, lineage=lineage)
        rate = record.rate
        with averaged(self.model):
            save.save_model(
                self.model,
                self.run.model,
                card,
                rate.peak,
                {"step": record.base_step + step, "peak": rate.peak},
                self.loss,
            )
        self.lock.check()
        atomic.write_json(self.run.path / "evaluation.json", {"before": record.before, "after": scores, "step": step})
        which: Literal["best", "last"] = "best" if best is not None else "last"
        self.run = self.run.update(
            status="accepted",
            result=Result(step, which, scores),
            best=None if best is None else Best(**best),
            images={**record.images, **self._counts()},
            finished=runs.now(),
        )
        self.run.event("finished", step=step, which=which)
        snapshot.prune_snapshots(self.run.snapshots, 0, {step})
        return self.run

    def _digest_of(self, best: Mapping[str, Any] | None) -> str:
        """Returns the digest of the images that the result was trained on."""
        if best is None or self.passes.manifest is self.manifest:
            return self.passes.digest
        return manifest_of(self.run.path, int(best["epoch"]) + 1).digest()

    def _counts(self) -> dict[str, int]:
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

    def _take_best(self) -> dict[str, Any] | None:
        """Loads the best epoch's state into the model, if the result is not the last step.

        Returns:
            The best epoch's record, or None if the last step is the result.
        """
        best = self.progress.best
        if best is None or int(best["step"]) == self.progress.step:
            return best
        try:
            state = snapshot.read_snapshot(snapshot.snapshot_path(self.run.snapshots, int(best["step"])))
        except CheckpointError as error:
            # The disk refused the snapshot or damaged it later: the run records which result it has instead.
            self.writer.record_failure(
                f"the best epoch (step {int(best['step']):,})", f"{error}: the result is the last step"
            )
            return None
        self._assign(state)
        return best


def monitor_of(config: TrainConfig) -> tuple[str, Literal["max", "min"]] | None:
    """Returns `(metric, mode)` that chooses the best epoch; None if the last epoch is the result."""
    if config.monitor is None and config.patience is None:
        return None
    name = config.monitor or DEFAULTS.monitor
    return name, "min" if name.endswith("loss") else "max"


def _watchers(config: TrainConfig, rate: RatePlan) -> list[Any]:
    """Returns Keras's callbacks for `--patience` and `--lr-schedule plateau`."""
    watchers: list[Any] = []
    if rate.schedule == "plateau":
        watchers.append(keras.callbacks.ReduceLROnPlateau(monitor=DEFAULTS.monitor, factor=0.5, patience=3))
    if config.patience is not None:
        monitor = monitor_of(config)
        name, mode = monitor if monitor is not None else (DEFAULTS.monitor, "min")
        watchers.append(keras.callbacks.EarlyStopping(monitor=name, mode=mode, patience=config.patience))
    return watchers


def _narrate(reporter: Reporter, bars: contextlib.ExitStack, boundaries: Sequence[int], progress: Progress) -> Narrator:
    advance: list[Any] = [lambda count: None]

    def begin(epoch: int) -> None:
        first = boundaries[epoch - 1] if epoch else 0
        bars.close()
        advance[0] = bars.enter_context(
            reporter.progress(f"epoch {epoch + 1}/{len(boundaries)}", boundaries[epoch] - first, "steps")
        )
        if progress.step > first:
            advance[0](progress.step - first)

    return Narrator(begin, lambda count: advance[0](count), bars.close)  # noqa: PLW0108  # its target changes
