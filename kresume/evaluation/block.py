"""Describes scores, and how two models compare, in a block of lines for a user.

lines = describe(scores, calibration, confused)
lines = describe_comparison(before, after, verdicts, class_verdicts)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kresume.evaluation.measure import SHARES
from kresume.evaluation.verdict import SIGNIFICANT, Verdict, describe_p, describe_points, in_words

MANY_CLASSES = 12
"""With more classes only the worst are listed."""
ORDER = ("all", "old", "new")
FEW = 5
"""How many of the worst classes, of confused pairs, and of classes that changed are listed."""
NAMES = {"f1": "F1", "top5": "top-5", "ece": "calibration error"}


def describe(
    scores: Mapping[str, Any],
    calibration: Sequence[Mapping[str, Any]],
    confused: Sequence[Mapping[str, Any]],
    generations: Sequence[Mapping[str, Any]] = (),
) -> list[str]:
    """Describes the scores of one model.

    Args:
        scores: with intervals, as `measure` returns them.
        calibration: the bins of confidence.
        confused: the cells of the confusion matrix, mistakes first.
        generations: the scores on the images of each generation; named where old and new do not tell them apart.
    """
    lines = [_subset(name, scores[name]) for name in ORDER if name == "all" or _is_split(scores, name)]
    if len(generations) > 2 or any(each["generation"] is None for each in generations[1:]):
        parts = [
            f"{'not in the run' if each['generation'] is None else each['generation']} {percent(each['accuracy'])} of "
            f"{each['images']:,}"
            for each in generations
        ]
        lines.append(f"by generation: {', '.join(parts)}")
    lines += _calibration(scores["all"], calibration)
    lines += _classes(scores["classes"])
    mistakes = [each for each in confused if each["label"] != each["answer"]]
    if mistakes:
        pairs = [f"{each['label']} as {each['answer'] or 'another class'} {each['images']:,}x" for each in mistakes]
        lines.append(f"most confused: {', '.join(pairs[:FEW])}{_more(len(pairs), 'pairs')}")
    return lines


def describe_comparison(
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    verdicts: Mapping[str, Verdict],
    classes: Mapping[str, Verdict],
) -> list[str]:
    """Describes how two models compare on the same images.

    Args:
        before: scores of the first model.
        after: scores of the second one.
        verdicts: on new, old and all images.
        classes: on the images of each class.
    """
    lines = []
    for name in ORDER:
        if name in verdicts and (name == "all" or _is_split(after, name)):
            verdict = verdicts[name]
            around = " to ".join(f"{100 * end:+.1f}" for end in (verdict.low, verdict.high))
            lines.append(
                f"{name:<4}{percent(verdict.before):>7} -> {percent(verdict.after):>7}  "
                f"{describe_points(verdict.difference)} ({around}), {describe_p(verdict.p)}: newly right "
                f"{verdict.gained:,}, newly wrong {verdict.lost:,}"
            )
    others = [
        f"{NAMES.get(name, name)} {_plain(before['all'][name], name)} -> {_plain(value, name)}"
        for name, value in after["all"].items()
        if isinstance(value, int | float) and name not in {"images", "accuracy"} and before["all"].get(name) is not None
    ]
    if others:
        lines.append(", ".join(others))
    lines += _moved("lost", [each for each in classes.items() if each[1].difference < 0])
    lines += _moved("gained", [each for each in classes.items() if each[1].difference > 0])
    if verdicts:
        lines.append(f"verdict: {in_words(verdicts)}")
    return lines


def left_out(broken: int, duplicates: int, conflicts: Sequence[tuple[str, str, str]]) -> list[str]:
    """Describes the files that are not scored.

    Args:
        broken: number of files that could not be read.
        duplicates: number of files whose content another one has.
        conflicts: files of images under two labels, as (path, label, other label).
    """
    lines = []
    if broken:
        lines.append(f"{_files(broken)} could not be read")
    if duplicates:
        lines.append(f"{_files(duplicates)} with the content of another one: such an image counts once")
    if conflicts:
        named = ", ".join(f"{path} ({label}, elsewhere {other})" for path, label, other in conflicts[:FEW])
        more = _more(len(conflicts), "conflicts")
        many = "" if len(conflicts) == 1 else "s"
        lines.append(f"{len(conflicts):,} label conflict{many}, whose image is left out: {named}{more}")
    return lines


def _files(count: int) -> str:
    return f"{count:,} file{'' if count == 1 else 's'}"


def _is_split(scores: Mapping[str, Any], name: str) -> bool:
    """Returns True if a subset has images and is not all of them."""
    return bool(0 < scores[name]["images"] < scores["all"]["images"])


def _subset(name: str, facts: Mapping[str, Any]) -> str:
    if not facts["images"]:
        return f"{name:<4} no images"
    parts = [f"{name:<4}{_share(facts, 'accuracy'):>7}{_around(facts, 'accuracy')} of {facts['images']:,} images"]
    parts.append(
        "no loss (labels only)" if facts["loss"] is None else f"loss {facts['loss']:.3f}{_around(facts, 'loss')}"
    )
    parts += [
        f"{NAMES.get(metric, metric)} {_plain(value, metric)}{_around(facts, metric)}"
        for metric, value in facts.items()
        if isinstance(value, int | float) and metric not in {"images", "accuracy", "loss", "ece"}
    ]
    return ", ".join(parts)


def _calibration(facts: Mapping[str, Any], bins: Sequence[Mapping[str, Any]]) -> list[str]:
    """Describes by how much the probabilities of the answers are off."""
    if not bins:
        return []
    confidence = sum(each["confidence"] * each["images"] for each in bins) / facts["images"]
    return [
        f"calibration error {percent(facts['ece'])}{_around(facts, 'ece')}: its probability of being right is "
        f"{percent(confidence)} on average, and it is right on {percent(facts['accuracy'])}"
    ]


def _classes(classes: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Makes a table of the classes, the worst first."""
    found = sorted((item for item in classes.items() if item[1]["images"]), key=lambda item: item[1]["recall"])
    if not found:
        return []
    shown = found if len(found) <= MANY_CLASSES else found[:FEW]
    rows: list[tuple[str, ...]] = [
        ("class" if shown is found else f"worst of {len(found):,} classes", "images", "recall", "precision", "F1")
    ]
    for name, facts in shown:
        around = [f"{_share(facts, metric)}{_around(facts, metric)}" for metric in ("recall", "precision")]
        rows.append((name, f"{facts['images']:,}", *around, _plain(facts["f1"], "f1")))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    return [
        "  ".join(
            cell.rjust(width) if column == 1 else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _moved(how: str, classes: Sequence[tuple[str, Verdict]]) -> list[str]:
    """Lists the classes that lost or gained most; those whose change may be noise are named together."""
    ordered = sorted(classes, key=lambda each: -abs(each[1].difference))
    sure = [each for each in ordered if each[1].p < SIGNIFICANT]
    noise = [each for each in ordered if each[1].p >= SIGNIFICANT]
    lines = []
    if sure:
        told = [
            f"{name} {describe_points(verdict.difference)} of {verdict.images:,} ({describe_p(verdict.p)})"
            for name, verdict in sure[:FEW]
        ]
        lines.append(f"classes that {how}: {'; '.join(told)}{_more(len(sure), 'classes')}")
    if noise:
        told = [f"{name} {describe_points(verdict.difference)} of {verdict.images:,}" for name, verdict in noise[:FEW]]
        lines.append(f"classes that {how} within noise: {'; '.join(told)}{_more(len(noise), 'classes')}")
    return lines


def _more(count: int, what: str) -> str:
    return f", and {count - FEW:,} more {what}" if count > FEW else ""


def percent(share: float) -> str:
    """Formats a share: `"94.7 %"`."""
    return f"{100 * share:.1f} %"


def _share(facts: Mapping[str, Any], metric: str) -> str:
    return "none" if facts[metric] is None else percent(facts[metric])


def _plain(value: float, metric: str) -> str:
    return percent(value) if metric in SHARES else f"{value:.3f}"


def _around(facts: Mapping[str, Any], metric: str) -> str:
    """Formats the interval of a metric: `" (91.5 to 96.7)"`; empty if it has none."""
    ends = facts["intervals"].get(metric)
    if ends is None:
        return ""
    low, high = (f"{100 * end:.1f}" if metric in SHARES else f"{end:.3f}" for end in ends)
    return f" ({low} to {high})"
