"""Makes `export.json`, which traces a served answer to its images and snapshot."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kresume import runs
from kresume.addresses import address_of, relative
from kresume.backend import fingerprint
from kresume.checkpoints import snapshot
from kresume.exports.job import Job
from kresume.exports.parity import Parity
from kresume.exports.samples import Samples
from kresume.models.load import Loaded
from kresume.staging.publish import push
from kresume.storage import atomic

RECORD = "export.json"
FORMAT = 1


def make_record(
    loaded: Loaded,
    job: Job,
    facts: Mapping[str, Any],
    parity: Parity,
    samples: Samples,
    folder: Path,
    backend: str,
) -> dict[str, Any]:
    """Returns the content of `export.json`.

    Args:
        loaded: the exported model.
        job: the options.
        facts: what the exporter reports.
        parity: the comparison with the model.
        samples: the images of the comparison.
        folder: holds the written files.
        backend: of the model in memory.
    """
    run = loaded.run
    options = {name: value for name, value in job.as_dict().items() if name not in {"files", "pictures"}}
    return {
        "export_format": FORMAT,
        "kresume": fingerprint.package_versions().get("kresume", ""),
        "created": runs.now(),
        "format": job.format,
        "options": options,
        "source": {
            "path": address_of(loaded.subject.checkpoint),
            "format": loaded.state.format,
            "step": loaded.state.step,
            "digest": snapshot.digest_of(loaded.state.arrays),
            "run": run.path.name if run else None,
            "generation": run.generation if run else None,
            "manifest": run.record.manifest if run else None,
            "averages": loaded.averages,
            "backend": backend,
        },
        "card": loaded.card.as_dict() if loaded.named else None,
        **facts,
        "parity": parity.as_dict(),
        "compared_on": hashlib.sha256(samples.pictures.tobytes()).hexdigest(),
        "files": {
            str(file.relative_to(folder)): {"bytes": file.stat().st_size, "sha256": atomic.sha256_of_file(file)}
            for file in sorted(folder.rglob("*"))
            if file.is_file()
        },
    }


def tell_run(loaded: Loaded, made: Path, record: Mapping[str, Any]) -> tuple[str, ...]:
    """Adds the export to the events of its run; returns what could not be written."""
    if loaded.run is None:
        return ()
    try:
        loaded.run.event(
            "exported",
            format=record["format"],
            path=relative(made, loaded.run.path),
            step=loaded.state.step,
            digest=hashlib.sha256((made / RECORD).read_bytes()).hexdigest(),
        )
        if loaded.run.finished:  # else the process that trains it writes this file
            push(loaded.run.path / runs.EVENTS)
    except OSError as error:
        return (f"the export in {loaded.run.path / 'events.jsonl'}: {error}",)
    return ()
