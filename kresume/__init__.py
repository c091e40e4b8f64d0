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

__version__ = "0.1.0"

if TYPE_CHECKING:
    from kresume.checkpoints.read import read_checkpoint
    from kresume.checkpoints.state import TrainState
    from kresume.errors import KresumeError
    from kresume.evaluation.evaluate import Evaluation, evaluate
    from kresume.exports.export import ExportResult, export
    from kresume.images.dataset import image_dataset
    from kresume.images.stream import resumable
    from kresume.runs import Lineage, Run, lineage, open_run
    from kresume.training.backup import BackupAndRestore
    from kresume.training.decisions import Plan
    from kresume.training.plan import plan
    from kresume.training.resume import TrainResult, resume

_MODULES = {
    "BackupAndRestore": "kresume.training.backup",
    "Evaluation": "kresume.evaluation.evaluate",
    "ExportResult": "kresume.exports.export",
    "KresumeError": "kresume.errors",
    "Lineage": "kresume.runs",
    "Plan": "kresume.training.decisions",
    "Run": "kresume.runs",
    "TrainResult": "kresume.training.resume",
    "TrainState": "kresume.checkpoints.state",
    "evaluate": "kresume.evaluation.evaluate",
    "export": "kresume.exports.export",
    "image_dataset": "kresume.images.dataset",
    "lineage": "kresume.runs",
    "open_run": "kresume.runs",
    "plan": "kresume.training.plan",
    "read_checkpoint": "kresume.checkpoints.read",
    "resumable": "kresume.images.stream",
    "resume": "kresume.training.resume",
}

__all__ = [
    "BackupAndRestore", "Evaluation", "ExportResult", "KresumeError", "Lineage", "Plan", "Run", "TrainResult", "TrainState",
    "__version__", "evaluate", "export", "image_dataset", "lineage", "open_run", "plan", "read_checkpoint", "resumable",
    "resume",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'kresume' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
