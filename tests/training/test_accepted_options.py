"""Tests that no option is accepted that could have no effect: it works, or the command is refused before the first step."""

import json

import pytest

import kresume
from kresume.errors import UsageError
from kresume.options.resolve import from_arguments
from kresume.training.plan.amount import count_updates
from kresume.training.preview import make_plan
from tests.helpers.pictures import CLASSES
from tests.helpers.runs import TINY, run_training


@pytest.fixture(scope="module")
def parent(tmp_path_factory, pictures):
    """Trains a run on `old/` for two epochs."""
    path = tmp_path_factory.mktemp("options") / "1"
    run_training(None, data=[str(pictures / "old")], out=str(path), **TINY)
    return path


@pytest.mark.one_backend
@pytest.mark.parametrize(
    ("accumulate", "origin", "steps", "words"),
    [
        (None, 0, 5, ""),
        (1, 0, 5, ""),
        (2, 0, 6, "6 steps are 3 updates of 2 batches (--accumulate 2)"),
        (4, 10, 12, "12 steps are 3 updates of 4 batches (--accumulate 4); the gradients of the last 2 are not used"),
        (4, 3, 1, "1 step is 1 update of 4 batches (--accumulate 4)"),
    ],
)
def test_updates_are_counted_where_gradients_accumulate(accumulate, origin, steps, words):
    """Keras updates at multiples of the optimizer's own count."""
    assert count_updates(accumulate, origin, steps) == words


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"accumulate": 64}, "so no weight would change"),
        ({"val_split": 0, "patience": 1}, "--patience 1: there are no validation images"),
        ({"val_split": 0, "monitor": "val_accuracy"}, "--monitor val_accuracy: there are no validation images"),
        ({"monitor": "old.accuracy"}, "--monitor old.accuracy: there are no validation images"),
        ({"val_split": 0, "lr_schedule": "plateau"}, "--lr-schedule plateau: there are no validation images"),
    ],
)
def test_what_could_do_nothing_is_refused_before_the_first_step(pictures, quiet, given, words):
    arguments = {"data": [str(pictures / "old")], **TINY, **given}
    with pytest.raises(UsageError) as raised:
        make_plan(from_arguments(None, arguments), quiet)
    assert words in str(raised.value)


@pytest.mark.one_backend(trains=True)
def test_the_option_that_decides_is_named(parent, pictures, quiet):
    """Of `--epochs` and `--steps` the one that ends the run first; pixels that the parent was not trained on are noted."""
    arguments = {"add": [str(pictures / "new")]}
    for given, reason in (({"epochs": 1, "steps": 100}, "--epochs"), ({"epochs": 9, "steps": 2}, "--steps")):
        assert make_plan(from_arguments(str(parent), {**arguments, **given}), quiet).amount.reason == reason
    told = "records that it was trained on pixels 0-255: --pixels 0-1 feeds it others"
    for pixels, noted in (("0-1", True), ("0-255", False)):
        plan = make_plan(from_arguments(str(parent), {**arguments, "epochs": 1, "pixels": pixels}), quiet)
        assert any(told in note for note in plan.notes) == noted


@pytest.mark.one_backend(trains=True)
def test_what_a_run_records_is_not_overridden_by_what_a_model_without_records_needs(parent, pictures, tmp_path):
    """Another order of the recorded classes, or another size than the fixed one, would give wrong answers in silence."""
    val, turned = str(pictures / "val"), CLASSES[::-1]
    size = json.loads((parent / "run.json").read_text())["card"]["image_size"][0]
    for answer in (
        lambda **options: kresume.evaluate(parent, data=val, **options),
        lambda **options: kresume.predict(parent, val, **options),
        lambda **options: kresume.export(parent, tmp_path / "out", format="keras", **options),
    ):
        with pytest.raises(UsageError, match=r"another order would make right answers wrong\. Leave classes= out"):
            answer(classes=turned)
        with pytest.raises(UsageError, match=r"is fixed at .*; leave it out"):
            answer(image_size=(size + 4, size + 4))
    expected = kresume.evaluate(parent, data=val).scores["all"]
    assert kresume.evaluate(parent, data=val, classes=CLASSES, image_size=(size, size)).scores["all"] == expected
