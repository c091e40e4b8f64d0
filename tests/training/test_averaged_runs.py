"""Tests `--average` on whole runs: the weights between parent and result, exact under kills, read by all that reads runs."""

import json
import shutil

import keras
import numpy as np
import pytest

import kresume
from kresume import runs
from kresume.checkpoints import snapshot
from kresume.checkpoints.read import read_checkpoint
from kresume.errors import CheckpointError, Stopped, UsageError
from kresume.reports.lineage import lineage_of
from kresume.training import averaging
from tests.helpers.backends import few_under_jax
from tests.helpers.pictures import write_pictures
from tests.helpers.runs import (
    TINY,
    assert_same_bytes,
    assert_same_model,
    family,
    kill_at_every_snapshot,
    lines_without_time,
    make_interrupted,
    result_arrays,
    run_training,
    trained,
)

OPTIONS = {"batch_size": 5, "val_split": 0.25, "lr": 3e-3, "epochs": 2}


@pytest.fixture(scope="module")
def place(tmp_path_factory, pictures):
    """Makes a folder with a parent run, and images of old and new classes."""
    return family(tmp_path_factory.mktemp("averaged"), pictures)


def child(place, name, parent="parent", **options):
    """Extends the parent; returns the run."""
    arguments = {"add": [str(place / "new")], **OPTIONS, **options}
    run_training(str(place / parent), out=str(place / name), **arguments)
    return runs.open_run(place / name)


def copy_of(place, to):
    """Copies the parent and the new images, so that runs stand beside their parent."""
    for name in ("parent", "new"):
        shutil.copytree(place / name, to / name)


def weights_of(path):
    """Returns the weights of a `model.keras` as plain Keras reads it, and which of them are statistics."""
    model = keras.models.load_model(path / "model.keras")
    return {
        f"{number} {variable.path}": (np.array(variable), "moving" in variable.path)
        for number, variable in enumerate(model.weights)
    }


@pytest.mark.parametrize("options", few_under_jax([{}, {"bn_stats": "moving"}, {"seed": 3}], [{}]))
@pytest.mark.sample("options0")
def test_the_weights_are_between_those_of_parent_and_child(tmp_path, place, options):
    """Each weight of `model.keras` is the average, computed by numpy alone from two other files of Keras."""
    copy_of(place, tmp_path)
    one = child(tmp_path, "one", average="0.25", **options)
    alone = child(tmp_path, "alone", **options)
    assert one.record.result.average == 0.25
    assert alone.record.result.average == 0
    parent, trained_, mixed = (weights_of(tmp_path / name) for name in ("parent", "alone", "one"))
    moved = 0
    for name, (array, statistic) in mixed.items():
        earlier, own = parent[name][0].astype("float64"), trained_[name][0].astype("float64")
        wanted = (own + 0.25 * (earlier - own)).astype(array.dtype)
        if not statistic:
            assert array.tobytes() == wanted.tobytes(), name
            moved += not np.array_equal(array, trained_[name][0])
        elif not options.get("bn_stats"):
            assert not np.array_equal(array, wanted), name  # recomputed for these weights
    assert moved > 3
    assert lines_without_time(one.path) == lines_without_time(alone.path)  # training itself does not change


AVERAGED = [
    ({"average": "0.5", "epochs": 1, "ema": 0.9, "precision": "mixed_float16"}, (1, -1)),
    ({"average": "auto", "freeze": ["conv*"], "unfreeze_at": 1, "monitor": "val_accuracy"}, (0, -2, -1)),
]


@pytest.mark.one_backend(trains=True)  # what is averaged are arrays
@pytest.mark.parametrize(("options", "kills"), AVERAGED)
@pytest.mark.sample("options1-kills1")
def test_an_averaged_run_continues_exactly(tmp_path, place, options, kills):
    """Killed at any snapshot, also after training, it ends with the same bits."""
    arguments = {**OPTIONS, "checkpoint": str(place / "parent"), "add": [str(place / "more")], "grow": True, **options}
    assert len(kill_at_every_snapshot(tmp_path, places=kills, **arguments)) == len(kills)
    whole = runs.open_run(tmp_path / "whole")
    (event,) = whole.events("averaged")
    assert event["share"] == whole.record.result.average
    assert [*event["tried"]] == (["0", "0.5"] if options["average"] == "0.5" else ["0", "0.25", "0.5", "0.75"])


@pytest.mark.one_backend(trains=True)
def test_killed_while_the_result_is_written(tmp_path, place, monkeypatch):
    """The average is made again from the training's own snapshots, never from an average."""
    arguments = {**OPTIONS, "add": [str(place / "new")], "average": "0.5", "snapshot_every": "1", "keep": 1}
    run_training(str(place / "parent"), out=str(tmp_path / "whole"), **arguments)

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("kresume.models.save.save_model", killed)
        with pytest.raises(KeyboardInterrupt):
            run_training(str(place / "parent"), out=str(tmp_path / "killed"), **arguments)
    half = runs.open_run(tmp_path / "killed")
    assert half.averaged.is_dir()
    assert not half.finished
    # With `--keep 1` the first snapshot would be gone.
    assert snapshot.list_snapshots(half.snapshots)[0][0] == 0
    run_training(out=str(half.path))
    assert_same_bytes(result_arrays(tmp_path / "whole"), result_arrays(half.path))
    assert_same_model(tmp_path / "whole", half.path)


@pytest.mark.one_backend(trains=True)
def test_a_signal_leaves_the_training_as_it_was(tmp_path, place, monkeypatch):
    """A stop while averages are scored writes no snapshot: the model has weights that no training had."""
    arguments = {**OPTIONS, "add": [str(place / "new")], "average": "auto"}
    score = averaging.score_model

    def with_signal(session, *others):
        session.stop.signal = 15
        return score(session, *others)

    with monkeypatch.context() as patch:
        patch.setattr(averaging, "score_model", with_signal)
        with pytest.raises(Stopped, match="while averaging after step"):
            run_training(str(place / "parent"), out=str(tmp_path / "stopped"), **arguments)
    stopped = runs.open_run(tmp_path / "stopped")
    assert stopped.status == "interrupted"
    before = {
        path.name: (path / "state.safetensors").read_bytes() for _, path in snapshot.list_snapshots(stopped.snapshots)
    }
    run_training(out=str(stopped.path))
    run_training(str(place / "parent"), out=str(tmp_path / "whole"), **arguments)
    assert_same_model(tmp_path / "whole", stopped.path)
    last = snapshot.list_snapshots(stopped.snapshots)[-1][1]
    assert (last / "state.safetensors").read_bytes() == before[last.name]


@pytest.mark.one_backend(trains=True)
def test_all_that_reads_a_run_reads_the_average(tmp_path, place):
    """A child, `eval`, `export` and the lineage take the average; `@last` is the training's own state."""
    copy_of(place, tmp_path)
    one = child(tmp_path, "one", average="0.5")
    average, own = result_arrays(one.path), dict(read_checkpoint(f"{one.path}@last").arrays)
    assert_same_bytes(average, dict(read_checkpoint(one.path).arrays))
    assert any(average[name].tobytes() != own[name].tobytes() for name in average if name.startswith("trainable/"))
    assert all(average[name].tobytes() == own[name].tobytes() for name in average if name.startswith("optimizer/"))
    losses = [
        kresume.evaluate(each, data=str(tmp_path / "new")).as_dict()["all"]["loss"]
        for each in (one, one.path / "model.keras", f"{one.path}@last")
    ]
    assert losses[0] == losses[1] != losses[2]
    assert json.loads((one.path / "evaluation.json").read_text())["after"] == dict(one.record.result.scores)
    kresume.export(one, tmp_path / "exported", format="weights-h5")
    built = keras.models.load_model(one.path / "model.keras")
    expected = [np.array(weight) for weight in built.weights]
    built.load_weights(next((tmp_path / "exported").glob("*.weights.h5")))
    assert all(np.array_equal(one, other) for one, other in zip(expected, built.weights, strict=True))
    write_pictures(tmp_path / "later", 4, 1200, ("square", "circle"))
    two = child(tmp_path, "two", "one", add=[str(tmp_path / "later")])
    assert two.record.options["average"] == "0.5"  # its parent's, as every option that is not given
    newest, parent, *_ = lineage_of(two).generations
    assert newest.start.state == "unchanged"
    assert parent.average == 0.5
    assert "averaged with 50%" in str(lineage_of(two))
    three = child(tmp_path, "three", "one@last", add=[str(tmp_path / "later")], average="0")
    assert lineage_of(three).generations[0].start.state == "unchanged"
    assert not three.averaged.exists()


@pytest.mark.one_backend(trains=True)
def test_auto_chooses_what_scores_best_within_the_gates(tmp_path, place, monkeypatch):
    """The metric of `--monitor` decides among those that meet the gates; of equals the smallest share is taken.

    What was trained has the scores of its epoch, with which it would be delivered, in the choice and in the line.
    """
    values = {0.25: 1.6, 0.5: 1.8, 0.75: 1.8}
    assigned = []
    assign, score = averaging.Between.assign, averaging.score_model

    def remembering(self, share):
        assigned.append(share)
        assign(self, share)

    def scored(*arguments):
        scores, how = score(*arguments)
        everything = {**scores["all"], "accuracy": values[assigned[-1]]}
        old = {**scores["old"], "accuracy": float(assigned[-1] == 0.25)}
        return {**scores, "all": everything, "old": old}, how

    monkeypatch.setattr(averaging.Between, "assign", remembering)
    monkeypatch.setattr(averaging, "score_model", scored)
    for gates, wanted in (({}, 0.5), ({"require": ["old.accuracy>=0.99"]}, 0.25), ({}, 0.0)):
        assigned.clear()
        values.update({} if wanted else dict.fromkeys(values, -1.0))
        arguments = {**OPTIONS, "add": [str(place / "new")], "monitor": "val_accuracy", "average": "auto", **gates}
        result = run_training(str(place / "parent"), out=str(tmp_path / f"{wanted}"), **arguments)
        assert assigned == [0.25, 0.5, 0.75, wanted]
        run = runs.open_run(result.run)
        assert (run.record.result.average or 0.0) == wanted
        assert result.status == "accepted"
        (event,) = run.events("averaged")
        best = max(line["all"]["accuracy"] for line in runs.read_metrics(run.metrics))
        assert event["tried"] == {"0": best, **{f"{share:g}": value for share, value in values.items()}}
        assert wanted or result.after["all"]["accuracy"] == best


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize("trouble", ["damaged", "gone", "no number"])
@pytest.mark.sample("damaged")
def test_trouble_costs_the_average_and_not_the_training(tmp_path, place, monkeypatch, trouble):
    """The run ends as it was trained, says so, exits with 5, and keeps no average that a killed process left."""
    shutil.copytree(place / "new", tmp_path / "new")
    shutil.copytree(place / "old", tmp_path / "old")
    trained(tmp_path / "parent", data=[str(tmp_path / "old")], **TINY)
    arguments = {**OPTIONS, "add": [str(tmp_path / "new")], "average": "0.5", "cache": "off"}
    whole = trained(tmp_path / "whole", every_snapshot=True, checkpoint=str(tmp_path / "parent"), **arguments)
    own = dict(read_checkpoint(f"{whole}@last").arrays)
    make_interrupted(whole, snapshot.list_snapshots(whole / "snapshots")[-1][1].name)
    assert (whole / "averaged").is_dir()
    if trouble == "damaged":
        (whole / "snapshots" / "step-00000000" / "state.safetensors").write_bytes(b"damaged")
    elif trouble == "gone":
        shutil.rmtree(tmp_path / "new")
        shutil.rmtree(tmp_path / "old")
    else:
        score = averaging.score_model

        def scored(*arguments):
            scores, how = score(*arguments)
            return {**scores, "all": {**scores["all"], "loss": float("nan")}}, how

        monkeypatch.setattr(averaging, "score_model", scored)
    result = run_training(out=str(whole))
    assert result.exit_code == 5
    assert "the average with the checkpoint: " in result.failures[0]
    assert "the result is as it was trained" in result.failures[0]
    run = runs.open_run(whole)
    assert run.record.result.average == result.average == 0
    assert run.result_snapshots == run.snapshots
    assert not run.averaged.exists()
    assert_same_bytes(own, result_arrays(whole))
    assert_same_weights(whole, own)


def assert_same_weights(whole, arrays):
    """Asserts that `model.keras` has the weights of a snapshot."""
    model = keras.models.load_model(whole / "model.keras")
    for index, variable in enumerate(model.trainable_variables):
        assert np.array(variable).tobytes() == arrays[f"trainable/{index}"].tobytes()


@pytest.mark.one_backend(trains=True)
def test_a_folder_inside_a_run_is_what_the_run_knows_it_as(tmp_path, place):
    """The snapshot of the average is the result; the folder of snapshots is the last one."""
    copy_of(place, tmp_path)
    one = child(tmp_path, "one", average="0.5")
    result, last = result_arrays(one.path), dict(read_checkpoint(f"{one.path}@last").arrays)
    step = f"step-{one.result_step():08d}"
    for named, expected in (("averaged", result), (f"averaged/{step}", result)):
        assert_same_bytes(expected, dict(read_checkpoint(one.path / named).arrays))
    for named in ("snapshots", f"snapshots/{step}"):
        state = read_checkpoint(one.path / named)
        assert_same_bytes(last, dict(state.arrays))
        assert state.architecture is not None
    make_interrupted(one.path, step)
    with pytest.raises(CheckpointError, match="left by a process that ended before the run was finished: give"):
        read_checkpoint(one.path / "averaged")


@pytest.mark.one_backend(trains=True)
def test_the_plan_and_the_end_say_what_is_mixed(tmp_path, place):
    """Both are one line; a run without the option has neither."""
    asked = {"add": [str(place / "new")], "quiet": True, **OPTIONS}
    plan = kresume.plan(str(place / "parent"), average=0.125, **asked)
    assert "disk:     5 snapshots of" in str(plan)
    assert "\naverage:  12.5% of the checkpoint's weights, mixed in when training is done\n" in str(plan)
    auto = kresume.plan(str(place / "parent"), average="auto", **asked)
    assert "average:  the share of the checkpoint's weights with the best val_loss, chosen when" in str(auto)
    assert "forgotten" not in str(auto)
    shutil.copy(place / "parent" / "model.keras", tmp_path / "bare.keras")
    bare = kresume.plan(str(tmp_path / "bare.keras"), average="auto", distill=1.0, **asked)
    assert "no validation image shows what is forgotten, so it mixes in little: better give average='0.25'" in str(bare)
    assert "average:" not in str(kresume.plan(str(place / "parent"), average="off", **asked))
    first = kresume.plan(
        str(tmp_path / "nothing"), or_new=True, data=[str(place / "old")], average=0.5, quiet=True, image_size=10
    )
    assert "average:  nothing, because there is no checkpoint" in str(first)
    result = run_training(
        str(place / "parent"), out=str(tmp_path / "run"), add=[str(place / "new")], average="0.5", **OPTIONS
    )
    assert "the last, averaged with 50% of the checkpoint's weights)" in str(result)


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize(
    ("checkpoint", "options", "words"),
    [
        (
            None,
            {"average": 0.5, "data": ["old"]},
            "mixes the weights of a checkpoint into the result, and there is none",
        ),
        ("parent", {"average": 1.0, "add": ["new"]}, "from 0 to below 1, or auto"),
        ("parent", {"average": "-0.1", "add": ["new"]}, "from 0 to below 1, or auto"),
        ("parent", {"average": "nan", "add": ["new"]}, "from 0 to below 1, or auto"),
        ("parent", {"average": "half", "add": ["new"]}, "from 0 to below 1, or auto"),
        ("parent", {"average": 0.5, "data": ["old"], "new_head": True}, "a new head that answers at random"),
        (
            "bare.keras",
            {"average": "auto", "add": ["new"], "val_split": 0.0, "new_only": True},
            "there are no validation images to measure val_loss on",
        ),
    ],
)
def test_what_cannot_be_averaged_is_refused(place, monkeypatch, checkpoint, options, words):
    """Before anything is trained, with the way on."""
    monkeypatch.chdir(place)
    shutil.copy("parent/model.keras", "bare.keras")
    with pytest.raises(UsageError, match=words):
        kresume.plan(checkpoint, quiet=True, **options)
