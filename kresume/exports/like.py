"""The signatures of a model that is to be replaced, so that its clients notice nothing.

signatures(Path("serving/flowers/3"), served)      # the same names, dtypes and shapes, or an error that says why not
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kresume.errors import CheckpointError, ExportError
from kresume.evaluation.served import predict_saved_model
from kresume.evaluation.signatures import LABELS, Signature, find_saved_model, labels_of, read_raw, read_signatures
from kresume.exports.graph import Served, head_input
from kresume.exports.samples import Samples

REFUSAL = "the new model cannot take the place of"


def folder_of(path: Path) -> Path:
    """The SavedModel that `--like` names.

    Raises:
        CheckpointError: there is none.
    """
    folder = find_saved_model(path)
    if folder is None:
        raise CheckpointError(
            f"--like {path}: no SavedModel there (no saved_model.pb, and no version folder that has one)"
        )
    return folder


def label_order(path: Path, classes: tuple[str, ...]) -> tuple[str, ...]:
    """The order in which the old model gives the classes; ours where it does not say it.

    Raises:
        ExportError: the old model knows other classes.
    """
    folder = folder_of(path)
    old = labels_of(folder)
    if old is None:
        return classes
    added, gone = sorted(set(classes) - set(old)), sorted(set(old) - set(classes))
    if added or gone:
        what = [f"it adds {', '.join(added)}"] * bool(added) + [f"it lacks {', '.join(gone)}"] * bool(gone)
        raise ExportError(
            f"{REFUSAL} {folder}: {'; '.join(what)}, so its clients would get other scores; export it without --like, as a "
            "model of its own or as a version that clients are told of"
        )
    return old


def check_order(path: Path, samples: Samples) -> str:
    """Runs an old model that does not name its classes, and compares the order of its answers with ours.

    Args:
        path: what `--like` names.
        samples: pictures with their labels, or with the new model's own answers.

    Returns:
        What was found, in words; empty where the old model names its classes.

    Raises:
        ExportError: another order explains its answers.
    """
    from kresume.evaluation.probe import explain_labels

    folder = folder_of(path)
    if labels_of(folder) is not None:
        return ""
    classes = samples.classes
    signature = next(iter(read_signatures(folder, len(classes)).values()))
    old = predict_saved_model(folder, signature, classes, classes, samples.inputs(signature.input.kind)).indices
    truth = np.where(samples.labels >= 0, samples.labels, samples.reference.argmax(axis=-1))
    known = old >= 0
    agreement = float((old == truth)[known].mean()) if known.any() else 0.0
    other = explain_labels(old[known], truth[known], classes) if known.any() else None
    if other is not None:
        raise ExportError(
            f"{REFUSAL} {folder}: it does not name its classes, and its answers to {len(old):,} {samples.origin} are "
            f"right for {100 * agreement:.0f} % in the order {', '.join(classes)}, better read as {', '.join(other)}; if that "
            f"is its order, write it to {folder / 'assets' / LABELS}, one name a line"
        )
    return (
        f"the old model does not name its classes; read in the order {', '.join(classes)} it is right for "
        f"{100 * agreement:.0f} % of {len(old):,} {samples.origin}"
    )


def signatures(path: Path, served: Served) -> dict[str, Signature]:
    """Every signature of the old model, to be served by the new one.

    Raises:
        ExportError: one of them cannot be kept; the message says which and why.
    """
    folder = folder_of(path)
    found = read_signatures(folder, len(served.order))
    raw = read_raw(folder)
    lost = sorted(set(raw) - set(found))
    if lost:
        raise ExportError(
            f"{REFUSAL} {folder}: its signature {lost[0]} {raw[lost[0]]} is none that an image classifier has"
        )
    for name, signature in found.items():
        if problem := _problem(signature, served):
            raise ExportError(f"{REFUSAL} {folder}: its signature {name} {problem}")
    return found


def _problem(signature: Signature, served: Served) -> str:
    kinds = [output.kind for output in signature.outputs]
    twice = sorted({kind for kind in kinds if kinds.count(kind) > 1 and kind in {"scores", "embedding"}})
    if twice:
        return f"has {twice[0]} twice, and nothing says which is which"
    given = signature.input
    if given.kind == "values":
        size = tuple(served.card.image_size)
        if given.shape[1:3] != size and any(given.shape[1:3]):
            return (
                f"takes pictures of {given.shape[1]}x{given.shape[2]} as numbers, the new model's are {size[0]}x{size[1]}: "
                "train it with that --image-size"
            )
    for output in signature.outputs:
        width = output.shape[1] if len(output.shape) == 2 else 1
        if output.kind == "embedding" and width is not None and width != int(head_input(served.model).shape[-1]):
            return (
                f"gives {width} features, the new model has {int(head_input(served.model).shape[-1])} before its head"
            )
        if output.kind in {"labels", "class_indices", "top_scores"} and (width or 0) > len(served.order):
            return f"gives {width} {output.name} per image, the new model has {len(served.order)} classes"
        if output.kind == "error" and (given.kind != "bytes" or served.on_bad_image != "flag"):
            return "has an output `error`: give --on-bad-image flag"
    return ""
