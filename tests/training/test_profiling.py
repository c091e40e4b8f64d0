"""Tests that `--profile` writes a trace of later steps that can be read, and never ends a training."""

import io

import keras
import numpy as np
import pytest
from jax.profiler import ProfileData

from kresume.options.table import TrainConfig
from kresume.reporter import Reporter
from kresume.training.loop.profiling import FIRST, FOLDER, LAST, profiled


def trained(folder, steps, told):
    """Trains a tiny model under `--profile`."""
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.compile("sgd", "mse")
    with profiled(TrainConfig(profile=True), folder, Reporter(told)) as callbacks:
        model.fit(np.ones((steps, 3)), np.ones((steps, 2)), batch_size=1, epochs=1, verbose=0, callbacks=callbacks)


def test_the_trace_holds_later_steps_and_can_be_read(tmp_path):
    """The file of TensorBoard's profile page parses and has events; the steps are told with the command."""
    told = io.StringIO()
    trained(tmp_path, LAST + 2, told)
    (trace,) = (tmp_path / FOLDER).glob("plugins/profile/*/*.xplane.pb")
    events = [
        event.name
        for plane in ProfileData.from_file(str(trace)).planes
        for line in plane.lines
        for event in line.events
    ]
    assert len(events) > 10
    assert (
        f"profile:  steps {FIRST + 1} to {LAST} of this process: tensorboard --logdir {tmp_path / FOLDER}"
        in told.getvalue()
    )


def test_a_short_training_and_a_profiler_that_fails_are_only_told(tmp_path, monkeypatch):
    """Too few steps, a folder that cannot be written, and a block that raises leave no profiler running."""
    told = io.StringIO()
    trained(tmp_path, FIRST - 1, told)
    assert "this one had 4" in told.getvalue()
    assert not (tmp_path / FOLDER).exists()
    monkeypatch.setattr("kresume.training.loop.profiling._profiler", lambda: None)
    trained(tmp_path, LAST, told)
    assert "no trace could be written (AttributeError" in told.getvalue()
    with profiled(TrainConfig(), tmp_path, Reporter(told)) as callbacks:
        assert callbacks == []


def test_a_training_that_breaks_ends_its_trace(tmp_path):
    """After an error within the traced steps another trace can be taken in the same process."""
    told = io.StringIO()

    def broken():
        with profiled(TrainConfig(profile=True), tmp_path, Reporter(told)) as (profiler,):
            for step in range(FIRST):
                profiler.on_train_batch_end(step, {"loss": 1.0})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        broken()
    trained(tmp_path / "again", LAST, told)
    assert "no trace" not in told.getvalue()
