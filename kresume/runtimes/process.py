"""Runs a model in a fresh process with only its own runtime.

    answer = run_apart("saved_model", {"path": "serving/flowers/3", "signature": "serving_default", ...})
    answer.outputs["scores"], answer.indices, answer.failed

`scripts/` has one script per runtime; each is run by its path and does not import kresume. A script
that takes long writes how many images are done to the file that the request names as `progress`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kresume import crash
from kresume.errors import CheckpointError

SCRIPTS = Path(__file__).parent / "scripts"
EVERY_SECONDS = 0.25
"""How often progress is read."""


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


def run_apart(
    script: str,
    request: Mapping[str, Any],
    *,
    environment: Mapping[str, str] | None = None,
    advance: Callable[[int], None] | None = None,
) -> Answer:
    """Runs a script of `scripts/` and reads its answer.

    Args:
        script: its name without `.py`.
        request: the request, as JSON values.
        environment: further environment variables of the process.
        advance: called with the number of images that are done since the last call, from another thread.

    Raises:
        CheckpointError: the model does not load or run there; the message has the last line that the script printed.
    """
    with tempfile.TemporaryDirectory(prefix="kresume-") as name:
        path, output, progress = (Path(name) / each for each in ("request.json", "answer.npz", "progress"))
        path.write_text(json.dumps({**request, "output": str(output), "progress": str(progress)}), encoding="utf-8")
        with _following(progress, advance):
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


@contextmanager
def _following(path: Path, advance: Callable[[int], None] | None) -> Iterator[None]:
    """Reads the counts that a script writes, a few times a second, until the block ends."""
    if advance is None:
        yield
        return
    path.touch()
    ended = threading.Event()

    def follow() -> None:
        with path.open(encoding="utf-8") as file:
            last = False
            while not last:
                last = ended.wait(EVERY_SECONDS)
                # A script appends whole lines, each in one write.
                if count := sum(int(line) for line in file.read().splitlines()):
                    advance(count)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def last_words(stderr: str) -> str:
    """Returns the last meaningful line of stderr: the error of a traceback."""
    lines = [
        line.strip() for line in stderr.splitlines() if line.strip() and not line.startswith((" ", "I0000", "W0000"))
    ]
    return lines[-1][:600] if lines else "it printed nothing"
