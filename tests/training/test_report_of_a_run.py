"""Tests that a training writes its report, and that a report that cannot be written does not cost the run."""

import json

import pytest

from kresume import runs
from kresume.evaluation import answers
from kresume.reports.page import write
from kresume.reports.page.write import write_report
from tests.helpers.runs import TINY, run_training


@pytest.mark.one_backend(trains=True)
def test_a_report_that_cannot_be_written_does_not_cost_the_run(workplace, monkeypatch):
    """The run is accepted, the failure is recorded with the command that writes the page, and the exit code is 5.

    That command then writes it, with the answers of the run.
    """

    def broken(facts):
        raise ZeroDivisionError("a fault of the page")

    with monkeypatch.context() as patch:
        patch.setattr(write, "render", broken)
        result = run_training(data=["old"], out="run", **TINY)
    assert (result.status, result.exit_code, result.report) == ("accepted", 5, "")
    assert result.failures == (
        "report.html: ZeroDivisionError: a fault of the page; write it with: kresume report run",
    )
    run = runs.open_run("run")
    assert run.events("not written")[0]["reason"] == result.failures[0]
    assert run.model.is_file()
    assert not (run.path / "report.html").exists()
    written = write_report("run")
    found = answers.read(run.answers("after"))
    assert written.facts.confusion.after.sum() == len(found)
    assert all(shown.picture.uri for shown in written.facts.shown.values())


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize("when", ["before the page", "after the page"])
def test_a_process_that_dies_at_the_page_leaves_a_run_that_the_same_command_ends(workplace, monkeypatch, when):
    """The run is finished after its page: a finished one is refused, or without `--out` trained a second time."""
    whole = run_training(data=["old"], out="whole", **TINY)

    def dying(run):
        if when == "after the page":
            written(run)
        raise KeyboardInterrupt

    written = write.write_run
    with monkeypatch.context() as patch:
        patch.setattr(write, "write_run", dying)
        with pytest.raises(KeyboardInterrupt):
            run_training(data=["old"], **TINY)
    (left,) = runs.list_runs(workplace / "runs").runs
    assert not left.finished
    result = run_training(data=["old"], **TINY)
    assert len(runs.list_runs(workplace / "runs").runs) == 1
    assert (result.status, result.step) == ("accepted", whole.step)
    run, expected = runs.open_run(result.run), runs.open_run("whole")
    assert run.record.result == expected.record.result
    assert run.answers("after").read_bytes() == expected.answers("after").read_bytes()
    assert (run.path / "report.html").is_file()
    assert len(list(run.snapshots.glob("step-*"))) == 1


@pytest.mark.one_backend(trains=True)
def test_a_training_writes_its_report(workplace):
    """It compares the parent with the result, and the record keeps what the page tells of restoring and merging."""
    run_training(data=["old"], out="runs/1-a", **TINY)
    result = run_training("runs/1-a", add=["new"], out="runs/2-a", epochs=1)
    assert (result.exit_code, result.report) == (0, "runs/2-a/report.html")
    assert "report: runs/2-a/report.html" in str(result)
    page = (workplace / result.report).read_text(encoding="utf-8")
    assert "node accepted here" in page  # it was written before the run was finished
    write_report("runs/2-a")
    assert (workplace / result.report).read_text(encoding="utf-8") == page
    text = (workplace / result.report).read_text(encoding="utf-8")
    record = runs.open_run("runs/2-a").record
    assert record.restored in text
    assert record.merged == {
        "leaks": [],
        "leaks_count": 0,
        "conflicts": [],
        "conflicts_count": 0,
        "relabels": [],
        "relabels_count": 0,
    }
    assert '<a href="../1-a/report.html">1-a</a>' in text
    assert json.loads(text.partition('id="island">')[2].partition("</script>")[0])["classes"] == list(
        record.card.classes
    )
