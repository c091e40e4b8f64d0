"""Copies the signatures of a model to be replaced, so that its clients need no change.

signatures(Path("serving/flowers/3"), served)      # the same names, dtypes and shapes, or an error that says why not
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from kresume.errors import CheckpointError, ExportError
from kresume.evaluation import keras_facts
from kresume.evaluation.class_order import judge_order
from kresume.evaluation.probe import Probe, most_right, probe_feedings
from kresume.evaluation.served import predict_saved_model, score_kind
from kresume.exports.graph import Served, head_input
from kresume.exports.samples import Samples
from kresume.images import conventions
from kresume.models.load import Subject
from kresume.runtimes.signatures import LABELS, Signature, labels_of, read_raw, read_signatures
from kresume.spelling import option
from kresume.storage.model_folders import find_saved_model
from kresume.tasks.single_label import ROWS, SINGLE_LABEL
from kresume.tasks.task import Head
from kresume.values.input_layout import InputLayout

MOST_FITTING = 6
REFUSAL = "the new model cannot replace"


def folder_of(path: Path) -> Path:
    """Returns the SavedModel folder that `--like` names.

    Raises:
        CheckpointError: there is none.
    """
    folder = find_saved_model(path)
    if folder is None:
        raise CheckpointError(
            f"{option('like', str(path))}: no SavedModel there (no saved_model.pb, and no version folder that has one)"
        )
    return folder


def label_order(path: Path, classes: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the old model's class order, or the given one if it records none.

    Raises:
        ExportError: the old model has other classes.
    """
    folder = folder_of(path)
    old = labels_of(folder)
    if old is None:
        return classes
    added, gone = sorted(set(classes) - set(old)), sorted(set(old) - set(classes))
    if added or gone:
        what = [f"it adds {', '.join(added)}"] * bool(added) + [f"it lacks {', '.join(gone)}"] * bool(gone)
        raise ExportError(
            f"{REFUSAL} {folder}: {'; '.join(what)}, so its clients would get other scores; export it without "
            f"{option('like')}, under another name or as a version that clients know of"
        )
    return old


@dataclass(frozen=True)
class Old:
    """Properties of the old model that running it showed.

    Attributes:
        note: a note for the user; may be empty.
        pixels: the pixel convention of the numbers that its clients send, if it expects numbers.
        logits: True if its scores are logits rather than probabilities.
    """

    note: str = ""
    pixels: str | None = None
    logits: bool = False


def examine(path: Path, samples: Samples, pixels: str | None = None) -> Old:
    """Runs the old model to find its class order, kind of scores, and clients' pixels.

    Args:
        path: the value of `--like`.
        samples: images with their labels, or with the new model's predictions.
        pixels: `--like-pixels`, which sets the convention of the numbers.

    Raises:
        ExportError: its answers fit another class order, they show nothing, or its scores do not choose one class.
    """
    label_order(path, samples.classes)
    folder = folder_of(path)
    found = tuple(read_signatures(folder, len(samples.classes)).values())
    asked = _signature_to_ask(folder, found, samples, pixels)
    numbers = asked.input.kind == "values" and asked.answers_classes
    named = labels_of(folder)
    order = named or samples.classes
    channels = asked.input.layout(samples.pictures.shape[1:3], samples.layout).channels if numbers else 3
    candidates = _candidates(asked, pixels, channels, samples)
    answers, read = _answers(folder, asked, order, samples, candidates)
    truth = np.where(samples.labels >= 0, samples.labels, samples.answers)[read]
    logits = _are_logits(answers, folder, samples)
    probe = probe_feedings(
        lambda scores: scores, {candidate: partial(_as_is, scores) for candidate, scores in answers.items()}, truth,
        Head(SINGLE_LABEL, logits), conventions.USUAL if len(candidates) > 1 else None, conventions.TWINS,
        conventions.louder_pairs(candidates), unseen=True,
    )  # fmt: skip
    images = f"{len(truth):,} {samples.origin}"
    if named is None:
        _check_order(
            folder, {candidate: probe.predictions[candidate] for candidate in answers}, truth, samples.classes, images
        )
    of_graph = asked.input.pixels if len(candidates) > 1 else None
    winner = probe.winner if of_graph is None else _departs(probe, of_graph, truth)
    best = winner or probe.best
    for other in found:
        if other is not asked and other.output("scores") is not None:
            candidate = best if other.input.kind == "values" else other.input.kind
            if _are_logits(_answers(folder, other, order, samples, (candidate,))[0], folder, samples) != logits:
                raise ExportError(
                    f"{REFUSAL} {folder}: {asked.name} and {other.name} give different scores: logits and probabilities"
                )
    wanted = numbers and pixels is None
    _check_answers(folder, probe, winner, images, named=named is not None, wanted=wanted, candidates=len(candidates))
    said = []
    if named is None:
        said.append(
            f"the old model records no order of its classes; in the order {', '.join(order)} it is right on "
            f"{100 * probe.accuracies[best]:.0f} % of {images}"
        )
    if numbers:
        shown = (
            _shown(probe, True) if of_graph is None else f"its first operations scale bytes down; {_shown(probe, True)}"
        )
        said.append(f"its clients send pixels {best} ({option('like-pixels', pixels) if pixels else shown})")
    if logits:
        said.append("its scores are logits, and so are the new ones: softmax converts them to probabilities")
    unasked = pixels if any(each.input.kind == "values" for each in found) else None
    return Old("; ".join(said), best if numbers else unasked, logits)


def _signature_to_ask(folder: Path, found: Sequence[Signature], samples: Samples, pixels: str | None) -> Signature:
    """Chooses the signature that shows most: one that takes numbers and gives classes, else the first.

    Raises:
        ExportError: nothing can show which numbers a signature takes, or it takes pictures of another size.
    """
    takes_numbers = [each for each in found if each.input.kind == "values"]
    asked = next((each for each in takes_numbers if each.answers_classes), None)
    if asked is None:
        if takes_numbers and pixels is None:
            raise ExportError(
                f"{REFUSAL} {folder}: one of its signatures expects pixel values as numbers and gives no classes, so nothing "
                f"shows which numbers: give {option('like-pixels')}, one of {', '.join(conventions.NAMES)}"
            )
        return found[0]
    if problem := _size_problem(asked, samples.pictures.shape[1:3], samples.layout):
        raise ExportError(f"{REFUSAL} {folder}: its signature {asked.name} {problem}")
    return asked


def _check_order(
    folder: Path, predictions: Mapping[str, np.ndarray], truth: np.ndarray, classes: Sequence[str], images: str
) -> None:
    """Raises ExportError if another class order fits the old model's answers."""
    better = judge_order(predictions, truth, classes)
    if better.order is not None:
        raise ExportError(
            f"{REFUSAL} {folder}: it records no order of its classes. On {images} it is right for "
            f"{100 * better.assumed:.0f} % in "
            f"the order {', '.join(classes)}, and for {100 * better.explained:.0f} % in the order {', '.join(better.order)}. "
            f"If that is its order, write it to {folder / 'assets' / LABELS}, one name per line"
        )


def _departs(probe: Probe, shown: str, truth: np.ndarray) -> str:
    """Returns the convention that the graph shows, or another one that is clearly more right.

    A graph that scales bytes down does not show the order of their channels, nor whether they are inverted.
    """
    errors = {name: (predicted != truth).astype(float) for name, predicted in probe.predictions.items()}
    if shown in most_right(list(errors), errors):
        return shown
    return min(errors, key=lambda name: float(errors[name].mean()))


def _check_answers(
    folder: Path, probe: Probe, winner: str | None, images: str, *, named: bool, wanted: bool, candidates: int
) -> None:
    """Checks that the old model's answers show its class order and the numbers that its clients send.

    Args:
        folder: the old model.
        probe: the scores of its answers.
        winner: the convention that they show; None if they show none.
        images: describes the images.
        named: True if the model names its classes.
        wanted: True if the answers have to show the numbers.
        candidates: the number of conventions that were tried.

    Raises:
        ExportError: they do not.
    """
    if not probe.above_chance and (not named or wanted):
        raise ExportError(
            f"{REFUSAL} {folder}: its answers to {images} are no better than guessing ({_shown(probe, candidates > 1)}), so "
            "they do not show the order of its classes or the pixel values that its clients send: write the order to "
            f"{folder / 'assets' / LABELS}, one name per line, give {option('like-pixels')}, or {option('data')} with "
            "its images"
        )
    if candidates > 1 and winner is None:
        raise ExportError(
            f"{REFUSAL} {folder}: it expects pixel values as numbers, and its answers do not show which "
            f"({probe.show(probe.fitting[:MOST_FITTING])}): give {option('like-pixels')}, one of {', '.join(conventions.NAMES)}"
        )


def _candidates(signature: Signature, pixels: str | None, channels: int, samples: Samples) -> tuple[str, ...]:
    if signature.input.kind != "values":
        return (signature.input.kind,)
    if pixels is not None:
        return (pixels,)
    names = conventions.names_for(channels, grey=conventions.are_grey(samples.pictures))
    return names if signature.input.pixels is None else conventions.of_bytes(names)


def _as_is(scores: np.ndarray) -> np.ndarray:
    return scores


def _answers(
    folder: Path, signature: Signature, order: Sequence[str], samples: Samples, candidates: Sequence[str]
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Returns the old model's scores for each candidate convention, in the given classes' order.

    If it returns only labels, the chosen class has the score 1.

    Returns:
        `(scores, read)`: scores by candidate, only for the readable samples, and the indices of these samples.
    """
    inputs = samples.sent(signature.input, *candidates)
    single = keras_facts.read_facts(folder, Subject(str(folder)), signature).head if signature.may_be_single else None
    prediction = predict_saved_model(folder, signature, order, samples.classes, inputs, shares=False, single=single)
    scores = prediction.scores
    if scores is None:
        chosen = np.where(prediction.indices < 0, 0, prediction.indices)  # an unknown class is wrong anyway
        scores = SINGLE_LABEL.targets(chosen, ROWS, len(samples.classes))
    count = len(scores) // len(candidates)
    read = np.array(sorted(set(range(count)) - {row % count for row in prediction.failed}), np.int64)
    if not len(read):
        raise ExportError(f"{REFUSAL} {folder}: it could not read any of {count:,} {samples.origin}")
    return {
        candidate: scores[index * count : (index + 1) * count][read] for index, candidate in enumerate(candidates)
    }, read


def _are_logits(answers: Mapping[str, np.ndarray], folder: Path, samples: Samples) -> bool:
    """Returns True if the old model's scores are logits.

    Raises:
        ExportError: it judges each class independently, and the new model does not.
    """
    kinds = {score_kind(scores) for scores in answers.values()}
    if "independent" in kinds and "logits" not in kinds and score_kind(samples.outputs) != "independent":
        raise ExportError(
            f"{REFUSAL} {folder}: its scores do not add up to 1: it judges each class independently, but the new model chooses "
            "one class"
        )
    return "logits" in kinds


def _shown(probe: Probe, candidates: bool) -> str:
    if candidates:
        return probe.table
    return f"right for {100 * probe.accuracies[probe.best]:.0f} %"


def signatures(path: Path, served: Served) -> dict[str, Signature]:
    """Returns every signature of the old model, for the new model to serve.

    Raises:
        ExportError: a signature cannot be kept; the message says which and why.
    """
    folder = folder_of(path)
    found = read_signatures(folder, len(served.order))
    raw = read_raw(folder)
    lost = sorted(set(raw) - set(found))
    if lost:
        raise ExportError(
            f"{REFUSAL} {folder}: its signature {lost[0]} {raw[lost[0]]} is not that of an image classifier"
        )
    for name, signature in found.items():
        if problem := _problem(signature, served):
            raise ExportError(f"{REFUSAL} {folder}: its signature {name} {problem}")
    return found


def _size_problem(signature: Signature, size: tuple[int, int], likely: InputLayout) -> str:
    layout = signature.input.layout(size, likely)
    wanted = layout.shape(size)
    if all(given in {None, length} for given, length in zip(signature.input.shape[1:], wanted, strict=True)):
        return ""
    given = signature.input.size(layout) or signature.input.shape[1:3]
    return (
        f"expects pictures of {given[0]}x{given[1]}, the new model's are {size[0]}x{size[1]}: train it with that "
        f"{option('image-size')}"
    )


def _problem(signature: Signature, served: Served) -> str:
    kinds = [output.kind for output in signature.outputs]
    twice = sorted({kind for kind in kinds if kinds.count(kind) > 1 and kind in {"scores", "embedding"}})
    if twice:
        return f"has {twice[0]} twice, so their meaning is unknown"
    if others := [output.name for output in signature.outputs if output.kind == "other"]:
        return f"has further rows of numbers whose meaning is unknown ({', '.join(others)})"
    given = signature.input
    if given.kind == "values" and (problem := _size_problem(signature, served.card.image_size, served.card.input)):
        return problem
    for output in signature.outputs:
        width = output.shape[1] if len(output.shape) == 2 else 1
        if output.kind == "embedding" and width is not None and width != int(head_input(served.model).shape[-1]):
            return (
                f"gives {width} features, the new model has {int(head_input(served.model).shape[-1])} before its head"
            )
        if output.kind in {"labels", "class_indices", "top_scores"} and (width or 0) > len(served.order):
            return f"gives {width} {output.name} per image, the new model has {len(served.order)} classes"
        if output.kind == "error" and (given.kind != "bytes" or served.on_bad_image != "flag"):
            return f"has an output `error`: give {option('on-bad-image', 'flag')}"
    return ""
