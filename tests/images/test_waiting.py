"""Tests the share of time that steps wait for their images."""

import numpy as np
import pytest

from kresume.images import waiting
from kresume.images.waiting import KEPT, Waiting

pytestmark = pytest.mark.one_backend


class Times:
    """Batches that were ready at given times."""

    def __init__(self, ready):
        self.values = np.zeros(KEPT)
        self.values[: len(ready)] = ready

    def read(self):
        return self.values


def test_the_share_of_an_epoch_is_over_all_its_steps(monkeypatch):
    """Steps end at 0, 10, 20, ...; batch n is late by `late[n]`. What one look at the clock sees is not the epoch's share."""
    late = [0, 5, 5, 0, 0, 0, 0, 0, 0, 1]
    ended = [10.0 * step for step in range(10)]
    measured = Waiting(Times([0.0, *(ended[step - 1] + late[step] for step in range(1, 10))]))
    now = iter(ended)
    monkeypatch.setattr(waiting.time, "time", lambda: next(now))
    assert measured.share_since_start() is None
    for step in range(1, 4):
        measured.step_done(step)
    assert measured.share() == pytest.approx((late[1] + late[2]) / 20)
    for step in range(4, 11):
        measured.step_done(step)
    assert measured.share_since_start() == pytest.approx(sum(late) / 90)
    measured.start()
    assert measured.share() is None
    assert measured.share_since_start() is None


def test_time_in_which_the_device_computes_is_no_waiting(monkeypatch):
    """Python is 6 ahead of the device, which waits for a batch that is 8 late only 2."""
    measured = Waiting(Times([0.0, 8.0, 10.0, 20.0]))
    now = iter([0.0, 10.0, 20.0, 26.0])
    monkeypatch.setattr(waiting.time, "time", lambda: next(now))
    for step in range(1, 4):
        measured.step_done(step)
    measured.caught_up()
    assert measured.share() == pytest.approx(2 / 20)
