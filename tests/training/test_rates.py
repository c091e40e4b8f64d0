"""Tests that the requested rate is the rate that trains."""

import numpy as np
import pytest

from kresume.errors import UsageError
from kresume.training.plan.rate import decide_rate, goes_on, keras_rate, look_ahead
from kresume.values.rate import RatePlan
from kresume.values.state import SavedRate

FLOAT = SavedRate(1e-2, "float")
DECAY = {
    "class_name": "ExponentialDecay",
    "config": {"initial_learning_rate": 1e-2, "decay_steps": 100, "decay_rate": 0.5, "staircase": False, "name": "d"},
}
SCHEDULE = SavedRate(1e-2, "schedule", DECAY)


def decide(saved=FLOAT, **changes):
    return decide_rate(**{"saved": saved, "optimizer": "Adam", "steps": 800, "adds_images": True, **changes})


@pytest.mark.parametrize("saved", [FLOAT, SCHEDULE, SavedRate(3e-3, "run")])
@pytest.mark.parametrize("schedule", [None, "constant", "cosine", "rewarm-cosine", "cooldown", "plateau"])
@pytest.mark.one_backend
def test_lr_always_wins(saved, schedule):
    """With `--lr` the peak is that number, for any checkpoint and schedule."""
    plan = decide(saved, lr=1e-4, schedule=schedule)
    assert plan.peak == 1e-4
    assert plan.checkpoint == saved.value
    assert "1e-4" in str(plan) or "0.0001" in str(plan)


@pytest.mark.parametrize("saved", [FLOAT, SCHEDULE])
@pytest.mark.one_backend
def test_lr_scale_is_a_factor_on_the_checkpoints_rate(saved):
    """`--lr-scale 0.1` on 1e-2 gives 1e-3."""
    assert decide(saved, lr_scale=0.1).peak == pytest.approx(1e-3)


@pytest.mark.one_backend
def test_added_images_rewarm_to_the_checkpoints_rate():
    """Without `--lr`, added images rewarm to the checkpoint's rate: rewarm-cosine. A child's child has that rate, too."""
    plan = decide()
    assert (plan.schedule, plan.peak, plan.warmup_steps) == ("rewarm-cosine", 1e-2, 40)
    assert decide(SavedRate(plan.peak, "run")).peak == 1e-2


@pytest.mark.one_backend
def test_without_any_old_image_the_rate_is_lower():
    """None of the old images is there to hold what the checkpoint knows; the line says so."""
    plan = decide(lacks_old=True)
    assert plan.peak == pytest.approx(3e-3)
    assert "0.3x the checkpoint's: none of the old images is there" in str(plan)
    assert decide(lacks_old=True, adds_images=False).peak == 1e-2


@pytest.mark.one_backend
def test_a_chain_of_runs_without_old_images_is_lowered_once():
    """Its next run has the same rate, not 0.3 of it, and the first with old images has the whole one again."""
    first = decide(lacks_old=True)
    parent = SavedRate(first.peak, "run", None, first.lowered_from)
    second = decide(parent, lacks_old=True)
    assert (second.peak, second.lowered_from) == (pytest.approx(3e-3), 1e-2)
    assert "0.3x what the checkpoint's was lowered from" in str(second)
    third = decide(SavedRate(second.peak, "run", None, second.lowered_from))
    assert (third.peak, third.lowered_from) == (1e-2, None)
    assert "0.003 (checkpoint) -> 0.01 by" in str(third)
    for asked in ({"lr": 1e-4}, {"lr_scale": 0.5}):
        assert decide(parent, lacks_old=True, **asked).lowered_from is None
    assert decide(parent, lr_scale=0.5).peak == pytest.approx(0.5 * first.peak)
    assert decide(parent, schedule="keep").peak == first.peak
    assert RatePlan.from_dict(first.as_dict()).lowered_from == 1e-2


@pytest.mark.one_backend
def test_the_rate_of_an_interrupted_parent_comes_down():
    """An interrupted training is held at its rate and brought down to 0, also if images are added.

    Its own schedule goes on if it still changes the rate; `--lr` and `--lr-schedule` win.
    """
    plan = decide(interrupted=True)
    assert (plan.schedule, plan.peak, plan.start, plan.warmup_steps) == ("cooldown", 1e-2, 1e-2, 400)
    assert "0.01 to step 400, then to 0 at step 800 (cooldown; the checkpoint's" in str(plan)
    assert decide(SCHEDULE, interrupted=True, goes_on=lambda: True).schedule == "keep"
    assert decide(SCHEDULE, interrupted=True, goes_on=lambda: False).schedule == "cooldown"
    assert decide(interrupted=True, lr=1e-4).schedule == "rewarm-cosine"
    unread = decide(
        SCHEDULE, interrupted=True, lr=1e-4, goes_on=lambda: pytest.fail("a schedule that nobody asked for")
    )
    assert unread.peak == 1e-4
    assert decide(interrupted=True, schedule="keep").schedule == "keep"
    assert decide(lr=1e-3, schedule="cooldown").peak == 1e-3
    with pytest.raises(UsageError, match="starts at the rate that it holds"):
        decide(schedule="cooldown", warmup_steps=5)


def test_a_cooldown_holds_and_then_falls_to_zero():
    """The rate is the peak for the first half, falls in each step after it and ends at 0."""
    schedule = keras_rate(decide(interrupted=True), origin=70)
    rates = np.array([float(schedule(70 + step)) for step in range(801)])
    np.testing.assert_allclose(rates[:401], 1e-2, rtol=1e-6)
    assert (np.diff(rates[401:]) < 0).all()
    assert rates[800] == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize(
    ("schedule", "origin", "expected"),
    [
        (None, 0, False),
        (DECAY, 0, True),
        ({"class_name": "CosineDecay", "config": {"initial_learning_rate": 1e-2, "decay_steps": 1000}}, 60, True),
        ({"class_name": "CosineDecay", "config": {"initial_learning_rate": 1e-2, "decay_steps": 100}}, 60, False),
        ({"class_name": "CosineDecay", "config": {"initial_learning_rate": 1e-2, "decay_steps": 100}}, 100, False),
        ({"class_name": "PiecewiseConstantDecay", "config": {"boundaries": [50], "values": [1e-2, 1e-3]}}, 40, True),
        ({"class_name": "PiecewiseConstantDecay", "config": {"boundaries": [50], "values": [1e-2, 1e-3]}}, 60, False),
    ],
)
def test_a_schedule_goes_on_while_it_changes_the_rate(schedule, origin, expected):
    """A schedule that has ended, at 0 or at a constant rate, does not go on; nor one that ends early in the run."""
    assert goes_on(SavedRate(1e-2, "schedule", schedule), origin, 800) is expected


def test_a_kept_schedule_takes_no_warm_up():
    """The schedule sets the rate, so that a warm-up would be ignored."""
    saved = SavedRate(1e-2, "schedule", DECAY)
    with pytest.raises(UsageError, match="--warmup-steps 3: the checkpoint's schedule goes on"):
        decide_rate(saved=saved, optimizer="Adam", steps=10, schedule="keep", warmup_steps=3)
    assert (
        decide_rate(
            saved=SavedRate(1e-2, "float"), optimizer="Adam", steps=10, schedule="keep", warmup_steps=3
        ).warmup_steps
        == 3
    )


@pytest.mark.one_backend
def test_keep_carries_the_checkpoints_schedule():
    """`keep` uses the checkpoint's schedule as the file has it."""
    plan = decide(SCHEDULE, schedule="keep")
    assert plan.saved == DECAY
    assert "ExponentialDecay" in str(plan)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lr": 1e-3, "lr_scale": 0.1}, "give one of them"),
        ({"lr": 0.0}, "above 0"),
        ({"lr": float("nan")}, "above 0"),
        ({"lr_scale": -1.0}, "above 0"),
        ({"schedule": "kosine"}, "use one of keep"),
        ({"saved": None, "lr_scale": 0.1}, "there is none"),
        ({"saved": None, "schedule": "keep"}, "give --lr"),
        ({"saved": SCHEDULE, "schedule": "keep", "lr": 1e-3}, "leave it out, or --lr"),
        ({"warmup_steps": 800}, "has 800 steps"),
        ({"schedule": "plateau", "warmup_steps": 10}, "cannot be combined with it"),
        ({"saved": SavedRate(1e-6, "float")}, "probably decayed"),
    ],
)
@pytest.mark.one_backend
def test_what_contradicts_itself_is_a_usage_error(changes, words):
    """Options that cannot all take effect are refused with a remedy."""
    with pytest.raises(UsageError, match=words):
        decide(**changes)


@pytest.mark.one_backend
def test_a_plan_survives_json():
    """`run.json` pins the plan: reading it gives an equal plan."""
    plan = decide(SCHEDULE, schedule="keep")
    assert RatePlan.from_dict(plan.as_dict()) == plan


def test_the_optimizer_trains_at_the_rate_of_the_plan():
    """The optimizer trains at the plan's rate at the first step, peak and end.

    The rates are read from a Keras optimizer whose iterations were carried over.
    """
    import keras
    import numpy as np

    plan = decide(lr=1e-4)
    optimizer = keras.optimizers.Adam(keras_rate(plan, origin=16431))
    weight = keras.Variable(np.zeros(1, "float32"))
    optimizer.build([weight])

    def rate_at(step):
        optimizer._iterations.assign(16431 + step)
        return float(keras.ops.convert_to_numpy(optimizer.learning_rate))

    assert rate_at(0) == pytest.approx(1e-4 / 40, rel=1e-5)
    assert rate_at(39) == pytest.approx(1e-4, rel=1e-5)
    assert rate_at(40) == pytest.approx(1e-4, rel=1e-5)
    assert rate_at(420) == pytest.approx(0.5e-4, rel=1e-4)
    assert rate_at(800) == 0.0


def test_keep_says_what_its_schedule_gives_and_when_it_ends():
    """`keep` prints the rate at both ends of the run, and a note if most of the run would learn nothing.

    There is no note if the schedule ends with the run.
    """
    import keras

    cosine = keras.optimizers.schedules.serialize(keras.optimizers.schedules.CosineDecay(0.02, 72))
    saved = SavedRate(0.02, "schedule", cosine)
    plan, note = look_ahead(decide(saved, schedule="keep", steps=12), 66)
    assert (plan.now > 0, plan.end) == (True, 0.0)
    assert "now and 0 at the last step" in str(plan)
    assert "CosineDecay reaches 0 after 6 of 12 steps: nothing is learned" in note
    plan, note = look_ahead(decide(saved, schedule="keep", steps=73), 0)
    assert (plan.end, note) == (0.0, "")
    with pytest.raises(UsageError, match="has ended at 0 after 80 steps"):
        look_ahead(decide(saved, schedule="keep", steps=12), 80)
    assert look_ahead(decide(lr=1e-3), 0)[1] == ""


def test_keep_on_a_schedule_that_has_ended_is_refused():
    """`keep` on a schedule that has ended at 0 is an error, because it would train nothing."""
    ended = {"class_name": "CosineDecay", "config": {"initial_learning_rate": 1e-2, "decay_steps": 100, "alpha": 0.0}}
    plan = decide(SavedRate(1e-2, "schedule", ended), schedule="keep")
    with pytest.raises(UsageError, match="has ended at 0 after 100"):
        keras_rate(plan, origin=100)


def test_a_held_rate_warms_up_and_stays():
    """`constant` with a warm-up rises to the rate and holds it; without one it is a float."""
    assert keras_rate(decide(lr=1e-4, schedule="constant"), origin=5) == 1e-4
    schedule = keras_rate(decide(lr=1e-4, schedule="constant", warmup_steps=10), origin=5)
    assert float(schedule(5)) == pytest.approx(1e-5)
    assert float(schedule(1000)) == pytest.approx(1e-4)


@pytest.mark.parametrize(("optimizer", "rate"), [("SGD", "0.02"), ("AdamW", "0.0141")])
@pytest.mark.one_backend
def test_another_batch_size_says_what_it_does_and_the_rate_that_goes_with_it(optimizer, rate):
    """Another batch size prints its effect and the matching rate.

    Twice the batch means half the steps, twice SGD's rate, and Adam's by the square root. The same size prints nothing.
    """
    from kresume.training.plan.amount import describe_batch_change

    text = describe_batch_change(32, 64, 640, 1e-2, optimizer)
    assert "20.0 -> 10.0 steps an epoch" in text
    assert f"--lr {rate} in place of 0.01" in text
    assert describe_batch_change(32, 32, 640, 1e-2, optimizer) == ""


def test_a_schedule_of_ours_is_found_under_its_first_module_and_without_the_registry(monkeypatch):
    """A recorded schedule names the module of 0.1.0, and loads although Keras's registry lost it.

    A class that nobody registered is an error, not its name.
    """
    import keras

    from kresume.models.schedules import Cosine, deserialize

    config = keras.optimizers.schedules.serialize(Cosine(1e-2, 50, 5))
    assert (config["module"], config["registered_name"]) == ("kresume.training.schedules", "kresume>Cosine")
    monkeypatch.delitem(keras.saving.get_custom_objects(), "kresume>Cosine")
    found = deserialize(config)
    assert isinstance(found, Cosine)
    assert float(found(10)) == float(Cosine(1e-2, 50, 5)(10))
    with pytest.raises(ValueError, match="unknown class Wave"):
        deserialize({**config, "class_name": "Wave", "registered_name": "mine>Wave"})
