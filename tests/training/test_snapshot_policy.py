"""When a snapshot is due and which are kept: values, tested without a training."""

import pytest

from kresume.errors import UsageError
from kresume.training.snapshot_policy import Cadence, Retention, Since

FREE = "when the disk is free"


@pytest.mark.one_backend
@pytest.mark.parametrize(
    ("text", "since", "after_step", "after_epoch"),
    [
        ("5", Since(4, 0, 1e6), "no", "no"),
        ("5", Since(5, 0, 0.0), "now", "now"),
        ("5 steps", Since(6, 9, 0.0), "now", "now"),
        ("2epochs", Since(1000, 2, 1e6), "no", "now"),
        ("2epochs", Since(1000, 1, 1e6), "no", "no"),
        ("1min", Since(1000, 9, 59.9), "no", "no"),
        ("1min", Since(1, 0, 60.0), FREE, FREE),
        ("0.5minutes", Since(1, 0, 30.0), FREE, FREE),
    ],
)
def test_a_snapshot_is_due_by_steps_epochs_or_minutes(text, since, after_step, after_epoch):
    """Steps and epochs wait for the disk, minutes do not; epochs are never due between two steps."""
    cadence = Cadence.parse(text)
    assert cadence.after_step(since) == after_step
    assert cadence.after_epoch(since, urgent=False) == after_epoch


@pytest.mark.one_backend
@pytest.mark.parametrize("text", ["100", "3epochs", "1min"])
def test_the_best_and_the_last_epoch_are_always_due(text):
    """Whatever the cadence says: the best epoch, the last one, and a run that is asked to stop."""
    assert Cadence.parse(text).after_epoch(Since(0, 0, 0.0), urgent=True) == "now"


@pytest.mark.one_backend
@pytest.mark.parametrize("text", ["", "0", "-1", "1.5", "0.5epochs", "ten", "1..2min", "5 parsecs"])
def test_a_cadence_that_means_nothing_is_refused(text):
    """The message names the three forms."""
    with pytest.raises(UsageError, match=r"whole number of steps .*epochs .*minutes"):
        Cadence.parse(text)


@pytest.mark.one_backend
def test_kept_are_the_newest_and_the_best_that_they_refer_to():
    """A best epoch that no kept snapshot refers to is not needed any more."""
    best_of = {2: None, 4: 4, 6: 4, 8: 8, 10: 8, 12: 8}
    assert Retention(3).kept(best_of) == [8, 10, 12]
    assert Retention(3).needed(best_of) == {8}
    assert Retention(4).needed(best_of) == {4, 8}
    assert Retention(1).needed({2: None}) == set()
    assert Retention(3).kept({2: None}) == [2]
