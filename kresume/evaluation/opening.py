"""Opens any model that answers pictures with classes, in one way for `eval` and `predict`.

select_for(keras_model_among({"runs/2-signs": None}), backend, device, reporter)
model = read_model(Subject("runs/2-signs"), reporter)     # Loaded: a model in this process
model = read_model(Subject("serving/signs"), reporter)    # Served: a SavedModel, for a process with TensorFlow alone
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kresume.backend.selection import loading
from kresume.checkpoints.read import recognise
from kresume.evaluation.keras_facts import has_keras_model
from kresume.models.load import Loaded, Subject, load, select_backend
from kresume.models.unscored import with_statistics
from kresume.reporter import Reporter
from kresume.runtimes.signatures import has_signatures, labels_of
from kresume.staging.fetch import here
from kresume.storage import sealed
from kresume.storage.model_folders import find_saved_model


@dataclass(frozen=True)
class Served:
    """A SavedModel that runs through its own signature.

    Attributes:
        subject: the model, with facts that it does not record.
        folder: contains `saved_model.pb`.
        labels: names of its outputs in order; None if they are neither recorded nor given.
    """

    subject: Subject
    folder: Path
    labels: tuple[str, ...] | None


def served_folder(path: str) -> Path | None:
    """Returns the SavedModel to run at `path`, or None.

    None if there is no SavedModel, or it is read as a checkpoint: it has no signature to run, but variables.
    """
    path = here(path)
    folder = find_saved_model(path)
    if folder is None or recognise(path) not in {None, "saved-model"}:
        return None
    has_variables = (folder / "variables" / "variables.index").is_file()
    return None if has_variables and not has_signatures(folder) else folder


def keras_model_among(models: Mapping[str, str | None]) -> str | None:
    """Returns the path of a model that needs Keras, or None.

    That is the first model that Keras runs, else the first SavedModel with a Keras model to read facts from.

    Args:
        models: `--model` by path.
    """
    folders = {path: served_folder(path) for path in models}
    asked = (path for path, folder in folders.items() if folder is not None and has_keras_model(folder, models[path]))
    return next((path for path, folder in folders.items() if folder is None), None) or next(asked, None)


def select_for(path: str | None, backend: str | None, device: str | None, reporter: Reporter) -> None:
    """Selects the backend for a model; does nothing for None.

    Args:
        path: of the model; a run trains and predicts with the backend that it records.
        backend: `"tensorflow"` or `"jax"`; None for the run's, else the default.
        device: `"auto"`, `"cpu"`, `"gpu"` or `"tpu"`.
        reporter: told that the frameworks are imported.
    """
    if path is not None:
        with loading(reporter):
            select_backend(path, backend, device)


def read_model(subject: Subject, reporter: Reporter, classes: Sequence[str] = ()) -> Loaded | Served:
    """Opens a model. The backend must already be selected.

    Args:
        subject: the model, with facts that it does not record.
        reporter: shows progress.
        classes: names of classes in the order to assume if nothing names the outputs of a checkpoint.

    Raises:
        KresumeError: it cannot be read, or a fact is missing; the message names the option to give.
    """
    folder = served_folder(subject.checkpoint)
    if folder is not None:
        sealed.check(folder)
        return Served(subject, folder, subject.choose("classes", labels_of(folder)))
    with reporter.waiting(f"reading {subject.checkpoint}"):
        loaded = load(subject, fallback_classes=classes)
    return with_statistics(loaded, reporter)
