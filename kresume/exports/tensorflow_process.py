"""Writes an export in a separate TensorFlow process, if Keras runs on JAX in this one.

    write_by_tensorflow(subject, directory, job)      # the same call, the same facts, another process

The other process loads the checkpoint itself, so no file written under another backend lies in between.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from kresume import crash
from kresume.backend import selection
from kresume.errors import CheckpointError, ExportError, ImagesError, KresumeError, ModelError, UsageError
from kresume.exports.job import Job, with_tuples
from kresume.models.load import Subject, load
from kresume.models.unscored import with_statistics
from kresume.reporter import Reporter
from kresume.runtimes.process import last_words
from kresume.spelling import as_argument, as_flag, option, spelled
from kresume.storage import refusals

ERRORS = {kind.__name__: kind for kind in (CheckpointError, ExportError, ImagesError, ModelError, UsageError)}
REFUSED = 3


def write_by_tensorflow(subject: Subject, directory: Path, job: Job, *, anonymous: bool) -> dict[str, Any]:
    """Runs the exporter in a TensorFlow process and returns its facts.

    Raises:
        KresumeError: the error that the exporter raised there.
        OSError: the disk refused the export there.
        ExportError: that process failed in another way.
    """
    with tempfile.TemporaryDirectory(prefix="kresume-") as name:
        request, answer = Path(name) / "request.json", Path(name) / "answer.json"
        values: dict[str, Any] = {
            "subject": dataclasses.asdict(subject),
            "directory": str(directory),
            "job": job.as_dict(),
        }
        values |= {
            "answer": str(answer),
            "anonymous": anonymous,
            "arguments": option("like") == as_argument("like", None),
        }
        request.write_text(json.dumps(values), encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-m", "kresume.exports.tensorflow_process", str(request)],
            env={
                **os.environ,
                "KERAS_BACKEND": "tensorflow",
                # The graph does not depend on the device that writes it, and this process uses the accelerator.
                "CUDA_VISIBLE_DEVICES": "-1",
                "TF_CPP_MIN_LOG_LEVEL": "3",
            },
            capture_output=True,
            text=True,
            check=False,
        )
        if answer.is_file():
            facts: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
            if done.returncode == REFUSED and "errno" in facts:
                raise OSError(facts["errno"], os.strerror(facts["errno"]), str(directory))
            if done.returncode == REFUSED:
                raise ERRORS.get(facts["error"], ExportError)(facts["message"])
            if done.returncode == 0:
                return facts
        reason = crash.death(done.returncode) or last_words(done.stderr)
        raise ExportError(f"the process that writes the export under TensorFlow failed: {reason}")


def main(path: str) -> int:
    """Handles one request; returns 0 if the answer holds facts, `REFUSED` if an error."""
    from kresume.exports.formats import EXPORTERS

    request = json.loads(Path(path).read_text(encoding="utf-8"))
    answer = Path(request["answer"])
    subject = Subject(**with_tuples(request["subject"]))
    job = Job.from_dict(request["job"])
    selection.select("tensorflow", None)
    try:
        with spelled(as_argument if request["arguments"] else as_flag):  # errors name options as in the first process
            loaded = load(subject, fallback_classes=None, anonymous=request["anonymous"])
            if not EXPORTERS[job.format].for_training:
                loaded = with_statistics(loaded, Reporter(quiet=True))
            facts = EXPORTERS[job.format].write(loaded, Path(request["directory"]), job)
    except KresumeError as error:
        answer.write_text(json.dumps({"error": type(error).__name__, "message": str(error)}), encoding="utf-8")
        return REFUSED
    except Exception as error:
        if not (number := refusals.number_of(error)):
            raise  # a bug
        answer.write_text(json.dumps({"errno": number}), encoding="utf-8")
        return REFUSED
    answer.write_text(json.dumps(facts), encoding="utf-8")
    return 0


if __name__ == "__main__":
    code = main(sys.argv[1])
    gc.freeze()  # skip the final collection, which would traverse all objects of the frameworks
    sys.exit(code)
