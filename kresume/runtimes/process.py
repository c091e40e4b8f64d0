"""Runs a model in a fresh process with only its own runtime.

    answer = run_apart("saved_model", {"path": "serving/flowers/3", "signature": "serving_default", ...})
    answer.outputs["scores"], answer.indices, answer.failed

`scripts/` has one script per runtime; each is run by its path and does not import kresume.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kresume import crash
from kresume.errors import CheckpointError

SCRIPTS = Path(__file__).parent / "scripts"


@dataclass(frozen=True)
class Answer:
    """The outputs of a runtime.

    Attributes:
        outputs: arrays by output name; their rows are in the order of `indices`.
        indices: the index of the image of each row.
        failed: index of an image -> why the model could not read it.
        facts: other values that the script reports.
    """

    outputs: Mapping[str, np.ndarray]
    indices: np.ndarray
    failed: Mapping[int, str]
    facts: Mapping[str, Any]


def run_apart(script: str, request: Mapping[str, Any], *, environment: Mapping[str, str] | None = None) -> Answer:
    """Runs a script of `scripts/` and reads its answer.

    Args:
        script: its name without `.py`.
        request: the request, as JSON values.
        environment: further environment variables of the process.

    Raises:
        CheckpointError: the model does not load or run there; the message has the last line that the script printed.
    """
    with tempfile.TemporaryDirectory(prefix="kresume-") as name:
        path, output = Path(name) / "request.json", Path(name) / "answer.npz"
        path.write_text(json.dumps({**request, "output": str(output)}), encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-P", str(SCRIPTS / f"{script}.py"), str(path)],
            env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3", **(environment or {})},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise CheckpointError(
                f"{request['path']} cannot be run by its own runtime in a fresh process ({script.replace('_', ' ')}): "
                f"{crash.death(done.returncode) or last_words(done.stderr)}"
            )
        with np.load(output) as answer:
            facts = json.loads(str(answer["facts"]))
            outputs = {key.removeprefix("output:"): answer[key] for key in answer.files if key.startswith("output:")}
            failed = {int(row): reason for row, reason in facts.pop("failed", {}).items()}
            return Answer(outputs, answer["indices"], failed, facts)


def last_words(stderr: str) -> str:
    """Returns the last meaningful line of stderr: the error of a traceback."""
    lines = [
        line.strip() for line in stderr.splitlines() if line.strip() and not line.startswith((" ", "I0000", "W0000"))
    ]
    return lines[-1][:600] if lines else "it printed nothing"
