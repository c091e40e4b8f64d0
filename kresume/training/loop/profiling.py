"""Traces a few training steps for TensorBoard, for `--profile`.

    with profiled(config, run.path, reporter) as callbacks:
        model.fit(..., callbacks=callbacks)

The first steps compile and fill the pipeline, so later ones are traced. A profiler that cannot start or write is a warning: the
training does not depend on it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras

from kresume.options.settings import settings_of
from kresume.options.table import TrainConfig
from kresume.reporter import Reporter
from kresume.spelling import option

FOLDER = "profile"
FIRST, LAST = 5, 10
"""Calls of a training step, in each process, between which the trace is taken."""


class Profiler(keras.callbacks.Callback):  # type: ignore[misc]  # keras is untyped
    """Traces the steps after `FIRST` to `LAST` of this process.

    Args:
        folder: where TensorBoard finds the trace.
        reporter: told where it is, or why there is none.
    """

    def __init__(self, folder: Path, reporter: Reporter) -> None:
        super().__init__()
        self._folder = folder
        self._reporter = reporter
        self._done = 0
        self._running = False

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Starts or ends the trace; waits for the device at both ends, so that whole steps are in it."""
        self._done += 1
        if self._done in {FIRST, LAST}:
            float((logs or {}).get("loss", 0.0))
            self._start() if self._done == FIRST else self.stop()

    def on_train_end(self, logs: Any = None) -> None:
        """Ends the trace of a training that is shorter, or says that there is none."""
        if self._done < FIRST:
            self._reporter.warn(
                f"{option('profile', True)} traces steps {FIRST + 1} to {LAST} of a process, and this one had {self._done}"
            )
        self.stop()

    def stop(self) -> None:
        """Ends the trace and writes it, if it runs."""
        if not self._running:
            return
        self._running = False
        try:
            _profiler().stop_trace() if _under_jax() else _profiler().stop()
        except Exception as error:  # of any library below the profiler
            self._failed(error)
            return
        self._reporter.say(
            f"profile:  steps {FIRST + 1} to {min(self._done, LAST)} of this process: tensorboard --logdir {self._folder} "
            "(its profile page needs pip install xprof)"
        )

    def _start(self) -> None:
        try:
            _profiler().start_trace(str(self._folder)) if _under_jax() else _profiler().start(str(self._folder))
            self._running = True
        except Exception as error:  # another profiler runs, for example
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        self._reporter.warn(
            f"{option('profile', True)}: no trace could be written ({type(error).__name__}: {error}); training goes on"
        )


def _under_jax() -> bool:
    return str(keras.config.backend()) == "jax"


def _profiler() -> Any:
    """Returns the module of the backend's profiler."""
    if _under_jax():
        import jax

        return jax.profiler
    import tensorflow as tf

    return tf.profiler.experimental


@contextmanager
def profiled(config: TrainConfig, run: Path, reporter: Reporter) -> Iterator[list[Any]]:
    """Yields the callback of `--profile`, none without it.

    A block that ends by an error ends the trace, too.

    Args:
        config: the run's options.
        run: its directory.
        reporter: told where the trace is.
    """
    if not settings_of(config).profile:
        yield []
        return
    profiler = Profiler(run / FOLDER, reporter)
    try:
        yield [profiler]
    finally:
        profiler.stop()
