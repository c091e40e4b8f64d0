"""Records the scores of a training in MLflow (extra `mlflow`).

They go into a local `mlruns` folder or to a server.

A run of kresume is a run of MLflow, whose number is kept in `mlflow.json`. MLflow forgets no value that it was given, so a
process that continues asks for the last epoch that is recorded and adds the later ones alone: training repeats epochs with the
same values. Moments within an epoch are not recorded here, because they are not repeated at the same steps.
"""

from __future__ import annotations

import datetime
import importlib.util
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kresume import runs
from kresume.errors import MissingPackage
from kresume.reports.sinks import Entry, Line
from kresume.spelling import option
from kresume.storage import atomic

RECORD = "mlflow.json"
EXPERIMENT = "kresume"
DONE = "epoch"
"""The metric that is written after all others of its epoch: it tells which epochs are recorded."""
PART = 500
"""Metrics of one request; MLflow takes at most 1,000."""
MOST_CLASSES = 100
"""With more classes only the worst of them is recorded."""
LONGEST_PARAMETER = 500
LIMITS = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "20", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}
"""Settings for a server that does not answer, unless the user has set others: snapshots wait for it."""
ENDS = {"accepted": "FINISHED", "rejected": "FAILED", "interrupted": "KILLED"}


def check_installed() -> None:
    """Raises if the package is missing.

    Raises:
        MissingPackage: the message gives the command that installs it.
    """
    if importlib.util.find_spec("mlflow") is None:
        raise MissingPackage(
            f"{option('mlflow', True)} needs the package `mlflow-skinny`: pip install 'kresume[mlflow]'"
        )


class MLflow:
    """A run of MLflow.

    Args:
        run: the run of kresume.
        uri: a folder, or the address of a server.
        parameters: the options to record, by name.
    """

    name = "mlflow"
    counted = False

    def __init__(self, run: runs.Run, uri: str, parameters: Mapping[str, Any]) -> None:
        self._run = run
        self._uri = uri if "://" in uri else Path(uri).absolute().as_uri()
        self._parameters = parameters
        self._number = ""
        self._last = 0
        self._connected: Any = None

    def write(self, entry: Entry) -> None:
        """Records the scores of an epoch, unless they are recorded."""
        if isinstance(entry, Line) and int(str(entry.facts["epoch"])) > self._last_epoch():
            self._log(entry.facts)

    def keep(self, lines: int, step: int) -> None:
        """Adds the epochs that are missing.

        Those that training repeats are already right, because it repeats them exactly.
        """
        for line in runs.read_metrics(self._run.metrics)[:lines]:
            self.write(Line(line))

    def close(self, status: str) -> None:
        """Sets the status of MLflow's run."""
        self._client().set_terminated(self._number, ENDS[status])

    def _log(self, line: Mapping[str, Any]) -> None:
        from mlflow.entities import Metric

        when = int(datetime.datetime.fromisoformat(line["time"]).timestamp() * 1000)
        metrics = [Metric(name, value, when, int(line["step"])) for name, value in _metrics(line).items()]
        metrics.append(Metric(DONE, float(line["epoch"]), when, int(line["step"])))
        for start in range(0, len(metrics), PART):
            self._client().log_batch(self._number, metrics=metrics[start : start + PART])
        self._last = int(line["epoch"])

    def _last_epoch(self) -> int:
        """Returns the last epoch that is recorded; 0 for none."""
        if self._connected is None:
            history = self._client().get_metric_history(self._number, DONE)
            self._last = max((int(metric.value) for metric in history), default=0)
        return self._last

    def _client(self) -> Any:
        """Returns the client, connected to the run, which is made if there is none."""
        if self._connected is None:
            for name, value in LIMITS.items():
                os.environ.setdefault(name, value)
            if self._uri.startswith("file:"):
                os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # later versions ask for this consent
            from mlflow.tracking import MlflowClient

            client = MlflowClient(tracking_uri=self._uri)
            self._number = self._find_or_make(client)
            self._connected = client
        return self._connected

    def _find_or_make(self, client: Any) -> str:
        path = self._run.path / RECORD
        if path.is_file() and (known := atomic.read_json(path))["uri"] == self._uri:
            client.update_run(known["run_id"], "RUNNING")
            return str(known["run_id"])
        from mlflow.entities import Param

        found = client.get_experiment_by_name(EXPERIMENT)
        experiment = found.experiment_id if found else client.create_experiment(EXPERIMENT)
        record = self._run.record
        parent = record.parent.path if record.parent is not None else ""
        tags = {
            "kresume.run": str(self._run.path.absolute()),
            "kresume.parent": parent,
            "kresume.command": record.command,
        }
        made = client.create_run(experiment, run_name=self._run.path.name, tags=tags).info.run_id
        atomic.write_json(path, {"uri": self._uri, "run_id": made})
        client.log_batch(
            made, params=[Param(name, str(value)[:LONGEST_PARAMETER]) for name, value in self._parameters.items()]
        )
        return str(made)


def _metrics(line: Mapping[str, Any]) -> dict[str, float]:
    """Returns the numbers of a line by the names of monitors and gates; what Keras logged under `train.`."""
    from kresume.evaluation.score import flatten

    left_out = {"epoch", "step", "position", "old", "new", "all", "classes", "shares", "time"}
    values = {f"train.{name}": value for name, value in line.items() if name not in left_out}
    scores = {name: value for name, value in flatten(line).items() if not name.startswith("val_")}
    if len(line["classes"]) > MOST_CLASSES:
        scores = {name: value for name, value in scores.items() if not name.startswith("classes.") or ".min." in name}
    values |= scores
    # MLflow takes letters, digits and some signs alone.
    return {
        re.sub(r"[^\w\-. /:]", "_", name): float(value)
        for name, value in values.items()
        if isinstance(value, (int, float))
    }
