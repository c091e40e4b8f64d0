"""Tests the command line of the exports: the library call, its options and its output."""

import json
import os
import time

import click
import pytest

from kresume import cli
from kresume.exports import export as story
from kresume.exports.formats import EXPORTERS
from kresume.models import averages
from kresume.models.load import Subject, load
from tests.helpers.runs import TINY, run_training, trained


@pytest.mark.one_backend
def test_the_command_knows_every_format():
    """The choices of --format are the dictionary's keys, in its order."""
    option = next(parameter for parameter in cli.export.export.params if parameter.name == "format")
    assert isinstance(option.type, click.Choice)
    assert list(option.type.choices) == list(EXPORTERS)


@pytest.mark.one_backend(trains=True)
def test_a_run_becomes_a_keras_file(workplace, capsys):
    """`kresume export --format keras --json` prints the record; --overwrite moves the old export aside."""
    trained("runs/1-shapes", data=["old"], val=["val"], **{**TINY, "epochs": 1})
    code = _run(["export", "runs/1-shapes", "out", "--format", "keras", "--json"])
    printed = json.loads(capsys.readouterr().out)
    assert code == 0
    assert printed["path"] == "out"
    assert printed["parity"]["agreement"] == 1.0
    assert printed["source"]["run"] == "1-shapes"
    assert (workplace / "out" / "model.keras").is_file()
    assert _run(["export", "runs/1-shapes", "out", "--format", "keras"]) == 2
    assert "exists already" in capsys.readouterr().err
    assert _run(["export", "runs/1-shapes@last", "out", "--format", "weights-h5", "--overwrite"]) == 0
    assert "verified: max |Δ score|" in capsys.readouterr().out
    assert (workplace / "out" / "model.weights.h5").is_file()
    assert (workplace / "out.before-1" / "model.keras").is_file()
    assert _run(["log", "runs/1-shapes", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"][0]["exports"] == ["keras out", "weights-h5 out"]


@pytest.mark.one_backend(trains=True)
def test_what_stood_comes_back_when_an_export_fails(workplace, capsys, monkeypatch):
    """If an export with --overwrite fails, the old one is restored."""
    trained("runs/1-shapes", data=["old"], val=["val"], **{**TINY, "epochs": 1})
    (workplace / "out").mkdir()
    (workplace / "out" / "precious").touch()
    monkeypatch.setattr(story, "tolerance_of", lambda loaded, quantize: -1.0)
    assert _run(["export", "runs/1-shapes", "out", "--format", "keras", "--overwrite"]) == 1
    assert "the export differs from the model" in capsys.readouterr().err
    assert [path.name for path in (workplace / "out").iterdir()] == ["precious"]
    assert [path.name for path in workplace.iterdir() if path.name.startswith((".tmp", "out."))] == []


@pytest.mark.one_backend(trains=True)
def test_eval_of_a_run_with_averages_uses_them(workplace):
    """`eval` of a run with averages scores the averages, which model.keras and the server use, too."""
    import numpy as np

    run_training(data=["old"], val=["val"], out="runs/1-shapes", ema=0.9, **{**TINY, "lr": 0.05})
    by_run, by_file = load(Subject("runs/1-shapes")), load(Subject("runs/1-shapes/model.keras"))
    assert by_run.averages
    assert not averages.uses_averages(by_run.model)
    for one, other in zip(by_run.model.trainable_variables, by_file.model.trainable_variables, strict=True):
        assert np.asarray(one.value).tobytes() == np.asarray(other.value).tobytes()


def _run(arguments):
    try:
        cli.main(arguments)
    except SystemExit as stopped:
        return stopped.code
    return 0


@pytest.mark.one_backend(trains=True)
def test_what_a_killed_export_left_is_removed_after_a_day(workplace):
    """An unfinished export is removed after a day; a younger one may still be written."""
    trained("runs/1-shapes", data=["old"], val=["val"], **{**TINY, "epochs": 1})
    for name, age in ((".tmp-1-aaaa", 2 * 24 * 3600), (".tmp-2-bbbb", 60)):
        (workplace / name).mkdir()
        (workplace / name / "half").touch()
        os.utime(workplace / name, (time.time() - age,) * 2)
    assert _run(["export", "runs/1-shapes", "out", "--format", "weights-h5"]) == 0
    assert [path.name for path in workplace.iterdir() if path.name.startswith(".tmp-")] == [".tmp-2-bbbb"]
