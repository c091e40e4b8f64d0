"""Resume training an image model from a specific checkpoint, with additional images.

    import kresume

    plan = kresume.plan("ckpt/", data=["old/"], add=["new/"], lr=1e-4)
    run = kresume.resume("ckpt/", data=["old/"], add=["new/"], lr=1e-4, epochs=5)
    print(kresume.evaluate(run, data="test/"))
    print(kresume.export(run, "serving/flowers"))

    data = kresume.image_dataset("old/", add="new/", image_size=(96, 96))
    model.fit(data, epochs=20, callbacks=[kresume.BackupAndRestore("backup/", data=data)])      # your own fit

Every name below is imported when it is first used: `import kresume` alone imports neither Keras nor TensorFlow nor JAX.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from kresume.version import __version__

if TYPE_CHECKING:
    from kresume.checkpoints.read import read_checkpoint
    from kresume.drop_in.backup import BackupAndRestore
    from kresume.drop_in.image_dataset import image_dataset
    from kresume.drop_in.stream import resumable
    from kresume.errors import KresumeError
    from kresume.evaluation.evaluate import evaluate
    from kresume.evaluation.evaluation import Evaluation
    from kresume.evaluation.predictions import Predictions, predict
    from kresume.exports.export import ExportResult, export
    from kresume.models.statistics import recompute_statistics
    from kresume.reports.lineage import Lineage, lineage
    from kresume.runs import Run
    from kresume.staging.run_at import open_run
    from kresume.training.closing import TrainResult
    from kresume.training.plan.plan import Plan
    from kresume.training.preview import plan
    from kresume.training.resume import resume
    from kresume.values.state import TrainState

_MODULES = {
    "BackupAndRestore": "kresume.drop_in.backup",
    "Evaluation": "kresume.evaluation.evaluation",
    "ExportResult": "kresume.exports.export",
    "KresumeError": "kresume.errors",
    "Lineage": "kresume.reports.lineage",
    "Plan": "kresume.training.plan.plan",
    "Predictions": "kresume.evaluation.predictions",
    "Run": "kresume.runs",
    "TrainResult": "kresume.training.closing",
    "TrainState": "kresume.values.state",
    "evaluate": "kresume.evaluation.evaluate",
    "export": "kresume.exports.export",
    "image_dataset": "kresume.drop_in.image_dataset",
    "lineage": "kresume.reports.lineage",
    "open_run": "kresume.staging.run_at",
    "plan": "kresume.training.preview",
    "predict": "kresume.evaluation.predictions",
    "read_checkpoint": "kresume.checkpoints.read",
    "recompute_statistics": "kresume.models.statistics",
    "resumable": "kresume.drop_in.stream",
    "resume": "kresume.training.resume",
}

__all__ = [
    "BackupAndRestore", "Evaluation", "ExportResult", "KresumeError", "Lineage", "Plan", "Predictions", "Run",
    "TrainResult", "TrainState",
    "__version__", "evaluate", "export", "image_dataset", "lineage", "open_run", "plan", "predict", "read_checkpoint",
    "recompute_statistics", "resumable", "resume",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'kresume' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
