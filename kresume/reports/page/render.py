"""Renders the facts of a page as one HTML file that needs no network.

    text = render(facts)

Everything that a user or a file named is escaped: class names and paths are text to the page, whatever they contain. The
page forbids its own browser to load anything or to run another script than its own.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from kresume.evaluation.verdict import describe_p, describe_points
from kresume.reports.generation import shown
from kresume.reports.page import charts, headline
from kresume.reports.page.by_class import most_changed
from kresume.reports.page.confusion import OTHERS
from kresume.reports.page.evaluation import Told
from kresume.reports.page.facts import Comparison, Facts, Shown
from kresume.reports.page.shift import describe
from kresume.version import __version__

SPACER = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
"""A transparent pixel: the picture itself is the background, so that it is in the file once."""
SHADES = 6


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("kresume.reports.page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        percent=percent,
        points=points,
        thousands=thousands,
        shorten=charts.shorten,
        number=number,
        p=describe_p,
        shown=shown,
    )
    return environment


def percent(value: float | None, digits: int = 1) -> str:
    """Formats a share as a percentage."""
    return "–" if value is None else f"{100 * value:.{digits}f} %"


def points(value: float | None) -> str:
    """Formats a difference of two shares in points; a dash for an unknown one."""
    text = "–" if value is None else headline.minus(describe_points(value).removesuffix(" points"))
    return "0.0" if text == "+0.0" else text


def thousands(value: int | None) -> str:
    """Formats a count; a dash for an unknown one."""
    return "–" if value is None else f"{value:,}"


def number(value: float | None) -> str:
    """Formats a number with three digits."""
    return "–" if value is None else f"{value:.3f}"


def render(facts: Facts) -> str:
    """Returns the page of a run."""
    drawn = charts.charts_of(facts.curves)
    return _render(
        "page.html.j2",
        facts,
        drawn,
        source=facts.source,
        run=facts.source.run,
        record=facts.source.run.record,
        new_classes=facts.source.run.record.new_classes,
        histograms=[(measure, charts.histogram(measure)) for measure in facts.shift],
        shift_words=describe(facts.shift),
    )


def render_evaluation(facts: Comparison, told: Told) -> str:
    """Returns the page of an evaluation.

    Args:
        facts: of its models.
        told: the summary of the evaluation.
    """
    return _render("evaluation.html.j2", facts, (), source=facts.compared, new_classes=(), told=told)


def _render(template: str, facts: Comparison, drawn: tuple[charts.Chart, ...], **more: Any) -> str:
    environment = _environment()
    loader: Any = environment.loader
    script = loader.get_source(environment, "page.js")[0]
    style = loader.get_source(environment, "page.css")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    gained, lost = most_changed(facts.classes)
    text: str = environment.get_template(template).render(
        facts=facts,
        charts=drawn,
        chart=charts,
        whiskers=charts.whiskers(facts.changes),
        matrices=_matrices(facts),
        gained=gained,
        lost=lost,
        uris=[shown.picture.uri for shown in facts.shown.values()],
        spacer=SPACER,
        class_of=_picture_classes(facts),
        name_of=lambda index: class_name(facts, index),
        alt_of=lambda shown: alt(facts, shown),
        island=_island(facts, drawn),
        script=Markup(script),  # our own file: nothing of the user is in it
        style=Markup(style),
        digest=digest,
        version=__version__,
        **more,
    )
    return text


def class_name(facts: Comparison, index: int) -> str:
    """Returns the name of a class; an answer that is no class of the run is called another class."""
    return facts.compared.classes[index] if index >= 0 else "another class"


def alt(facts: Comparison, shown: Shown) -> str:
    """Returns a picture in words."""
    parts = [f"{'new' if shown.is_new else 'old'} picture, labelled {class_name(facts, shown.label)}"]
    for when, top in (("before", shown.before), ("now", shown.after)):
        if top:
            parts.append(f"{when} taken for {class_name(facts, top[0][0])}")
    return ", ".join(parts)


def _picture_classes(facts: Comparison) -> dict[int, str]:
    """Returns the style class of each picture that there is."""
    return {row: f"p{index}" for index, (row, shown) in enumerate(facts.shown.items()) if shown.picture.uri}


def _matrices(facts: Comparison) -> list[dict[str, Any]]:
    """Returns the confusion matrices with a shade for each cell."""
    confusion = facts.confusion
    if confusion is None:
        return []
    named = [("after", f"after: {facts.compared.after.name}", confusion.after)]
    if confusion.before is not None and confusion.difference is not None and facts.compared.before is not None:
        named.insert(0, ("before", f"before: {facts.compared.before.name}", confusion.before))
        named.append(("difference", "difference: after minus before", confusion.difference))
    result = []
    for key, title, matrix in named:
        rows = []
        for row, line in enumerate(matrix.tolist()):
            total = max(int(confusion.after[row].sum()), 1)
            cells = []
            for column, count in enumerate(line):
                mixed = row == column and confusion.names[row] == OTHERS  # right and wrong answers in one cell
                same = row == column
                good = same == (count > 0) if key == "difference" else same
                shade = 0 if mixed else math.ceil(SHADES * math.sqrt(min(abs(count) / total, 1.0)))
                cells.append({"count": count, "style": f"{'g' if good else 'b'}{shade}" if shade else ""})
            rows.append({"name": confusion.names[row], "cells": cells, "total": int(confusion.after[row].sum())})
        result.append({"key": key, "title": title, "rows": rows, "names": confusion.names})
    return result


def _island(facts: Comparison, drawn: tuple[charts.Chart, ...]) -> Markup:
    """Returns what the script needs, as JSON that cannot end the element it is in."""

    def answers(top: tuple[tuple[int, float], ...]) -> list[list[Any]]:
        return [[index, round(score, 4) if math.isfinite(score) else None] for index, score in top]

    places = _picture_classes(facts)

    def by_key(sides: Mapping[str, Mapping[tuple[int, int], Any]]) -> dict[str, dict[str, Any]]:
        return {name: {f"{row},{column}": each for (row, column), each in side.items()} for name, side in sides.items()}

    value = {
        "classes": list(facts.compared.classes),
        "names": list(facts.confusion.names) if facts.confusion else [],
        "condensed": facts.confusion is not None and facts.confusion.condensed,
        "pictures": {
            row: {
                "k": places.get(row, ""),
                "why": shown.picture.reason,
                "path": shown.path,
                "label": shown.label,
                "isNew": shown.is_new,
                "before": answers(shown.before),
                "after": answers(shown.after),
                "alt": alt(facts, shown),
            }
            for row, shown in facts.shown.items()
        },
        "cells": by_key(facts.chosen.cells),
        "moved": by_key(facts.chosen.moved),
        "pairs": by_key(facts.chosen.pairs),
        "charts": {
            chart.key: [{"x": hover.at, "title": hover.title, "values": hover.values} for hover in chart.hover]
            for chart in drawn
        },
    }
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)  # JSON without < > &: it is text to the HTML parser and data to the script
