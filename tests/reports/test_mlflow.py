"""Tests the scores that a training records in MLflow: in a folder and on a server, after kills, and when it fails."""

import json
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from kresume import runs
from kresume.errors import MissingPackage
from kresume.options.given import to_command
from kresume.options.resolve import from_arguments, resolve
from kresume.reports.sinks import Line
from kresume.reports.sinks import mlflow as sink
from tests.helpers.runs import TINY, run_training

pytest.importorskip("mlflow")
pytestmark = [
    pytest.mark.one_backend(trains=True),
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::ResourceWarning"),
]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Changes to an empty folder and removes settings of MLflow."""
    monkeypatch.chdir(tmp_path)
    for name in (*sink.LIMITS, "MLFLOW_TRACKING_URI", "MLFLOW_ALLOW_FILE_STORE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def recorded(uri, number, metric):
    """Returns (step, value) of a metric, as MLflow gives them back."""
    from mlflow.tracking import MlflowClient

    history = MlflowClient(tracking_uri=uri).get_metric_history(number, metric)
    return sorted((each.step, each.value) for each in history)


def test_a_training_records_its_scores_and_a_child_does_the_same(place, pictures):
    """Each epoch is recorded under the names of monitors; a child run records beside its parent; both are marked finished."""
    from mlflow.tracking import MlflowClient

    run_training(data=[str(pictures / "old")], out="1-shapes", mlflow=True, **TINY)
    run_training("1-shapes", add=[str(pictures / "new")], out="2-shapes", epochs=1)
    uri = (place / "mlruns").as_uri()
    for name in ("1-shapes", "2-shapes"):
        known = json.loads(Path(name, "mlflow.json").read_text())
        assert known["uri"] == uri
        lines = runs.read_metrics(Path(name, "metrics.jsonl"))
        for metric in ("accuracy", "loss", "f1"):
            wanted = [(line["step"], pytest.approx(line["all"][metric])) for line in lines]
            assert recorded(uri, known["run_id"], f"all.{metric}") == wanted
        assert recorded(uri, known["run_id"], "train.lr") == [
            (line["step"], pytest.approx(line["lr"])) for line in lines
        ]
        run = MlflowClient(tracking_uri=uri).get_run(known["run_id"])
        assert run.info.status == "FINISHED"
        assert run.info.run_name == name
        assert run.data.params["batch-size"] == "5"
    assert run.data.tags["kresume.parent"] == "../1-shapes"


def lines_of(count):
    """Returns lines of epochs."""
    scores = {"images": 4, "accuracy": 0.5, "loss": 1.0, "f1": None}
    return [
        {
            "epoch": epoch, "step": 4 * epoch, "lr": 0.1, "loss": float(epoch), "old": scores, "new": scores, "all": scores,
            "classes": {"rosé (pink)": {"recall": 0.5}}, "shares": {}, "time": "2026-01-01T00:00:00+00:00",
        }
        for epoch in range(1, count + 1)
    ]  # fmt: skip


def test_each_step_is_recorded_once_whatever_was_interrupted(place, pictures):
    """A process that repeats an epoch does not record it again; one that finds epochs missing adds them."""
    run_training(data=[str(pictures / "old")], out="run", **{**TINY, "epochs": 1})
    run = runs.open_run("run")
    check_once(place / "mlruns", run)


def check_once(uri, run):
    """Records epochs from several processes, and asserts that each is there once."""
    lines = lines_of(4)
    write_lines(run, lines[:2])
    first = sink.MLflow(run, str(uri), {})
    for line in lines[:3]:
        first.write(Line(line))
    again = sink.MLflow(run, str(uri), {})  # killed after epoch 3, whose snapshot is that of epoch 2
    again.keep(2, 8)
    again.write(Line(lines[2]))
    write_lines(run, lines)
    last = sink.MLflow(run, str(uri), {})  # epoch 4 was not written before the kill
    last.keep(4, 16)
    last.close("accepted")
    known = json.loads((run.path / "mlflow.json").read_text())
    assert recorded(known["uri"], known["run_id"], "train.loss") == [(4, 1.0), (8, 2.0), (12, 3.0), (16, 4.0)]
    assert len(recorded(known["uri"], known["run_id"], "classes.rosé _pink_.recall")) == 4


def write_lines(run, lines):
    """Replaces `metrics.jsonl`."""
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def server(place):
    """Starts MLflow's own server on loopback; skips where only its client is installed."""
    pytest.importorskip("flask", reason="mlflow-skinny has no server")
    pytest.importorskip("sqlalchemy", reason="mlflow-skinny has no server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    store = ["--backend-store-uri", f"sqlite:///{place}/mlflow.db"]
    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow", *command, *store], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
                break
            except OSError:
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def test_a_server_has_the_same(place, pictures, server):
    """On a server each epoch is recorded once, too."""
    run_training(data=[str(pictures / "old")], out="run", mlflow=server, **{**TINY, "epochs": 1})
    known = json.loads(Path("run", "mlflow.json").read_text())
    assert known["uri"] == server
    (line,) = runs.read_metrics(Path("run", "metrics.jsonl"))
    assert recorded(server, known["run_id"], "all.loss") == [(line["step"], pytest.approx(line["all"]["loss"]))]
    Path("run", "mlflow.json").unlink()
    check_once(server, runs.open_run("run"))


def test_a_server_that_is_gone_costs_the_training_nothing(place, pictures, monkeypatch):
    """Training goes on without the server; it is said once, and the exit code is 5."""
    monkeypatch.setitem(sink.LIMITS, "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nothing listens there
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
        result = run_training(data=[str(pictures / "old")], out="run", mlflow=address, **TINY)
    assert result.exit_code == 5
    (failure,) = result.failures
    assert failure.startswith("mlflow: ")
    assert len(runs.read_metrics(Path("run", "metrics.jsonl"))) == TINY["epochs"]


def test_the_forms_of_the_option(monkeypatch):
    """Alone it means `mlruns`, or what MLflow's own variable names; it is repeated as it was given."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert resolve({"mlflow": ""}).mlflow == from_arguments(None, {"mlflow": True}).mlflow == "mlruns"
    assert from_arguments(None, {"mlflow": False}).mlflow == "off"
    assert to_command(resolve({"mlflow": "http://h:1"})) == "kresume train --mlflow=http://h:1"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://h:2")
    assert resolve({"mlflow": ""}).mlflow == "http://h:2"


def test_a_missing_package_is_named_before_anything_is_loaded(place, pictures, monkeypatch):
    """Without the package the error gives the command that installs it."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingPackage, match=r"pip install 'kresume\[mlflow\]'"):
        run_training(data=[str(pictures / "old")], out="run", mlflow="mlruns", **TINY)
