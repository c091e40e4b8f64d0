"""Tests the report as a page: in a browser, its size, hostile names, and what a run without pictures shows."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from kresume.cli import cli
from kresume.errors import KresumeError
from kresume.evaluation.against import Predicted
from kresume.evaluation.evaluation import Evaluation
from kresume.evaluation.measure import by_generation, measure
from kresume.reporter import Reporter
from kresume.reports.page import galleries
from kresume.reports.page.write import write_evaluation, write_report
from kresume.spelling import in_bytes
from kresume.tasks.single_label import SINGLE_LABEL
from kresume.values.decode_spec import DecodeSpec
from tests.helpers import browser as browsers
from tests.helpers.page_runs import SIDE, made_answers, write_images, write_run

pytestmark = pytest.mark.one_backend

HOSTILE = (
    "</script><script>document.title='broken'</script>",
    "a\"b'&<i>",
    "猫 " * 40,
    "class " + "x" * 300,
    "e\u2028f",
)
CLASSES = (*HOSTILE, *"abcdefghijk")
NAMES = ("a.png", "</style><img src=x onerror=alert(1)>.png", "quote\"'&.png", "ünï\u202e.png")
WIDTHS, SCHEMES = (390, 1200), ("light", "dark")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run of sixteen classes, some with hostile names, that forgot."""
    folder = tmp_path_factory.mktemp("page")
    manifest = write_images(folder, CLASSES, old=192, new=96, names=NAMES)
    before, after = made_answers(manifest, 0.9, 0.3, 1), made_answers(manifest, 0.6, 0.9, 2)
    return write_run(folder / "2-run", manifest, before, after, new_classes=("a",), notes=("a <b>note</b>",))


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """The page of an evaluation of such models, and the images that both answered."""
    folder = tmp_path_factory.mktemp("evaluated")
    manifest = write_images(folder, CLASSES, old=96, new=64, names=NAMES)
    labels, rng = manifest.labels, np.random.default_rng(0)
    found = []
    for share in (0.5, 0.9):
        right = rng.random(len(labels)) < share
        odds = rng.random((len(labels), len(CLASSES))) + 3 * np.eye(len(CLASSES))[np.where(right, labels, labels - 1)]
        given = Predicted(SINGLE_LABEL, odds / odds.sum(axis=1, keepdims=True))
        measured = measure(given, manifest, 1, (), Reporter(quiet=True))
        facts = {"generation": 1, "manifest": manifest, "spec": DecodeSpec(SIDE, SIDE), "cache": str(folder / "cache")}
        rows = by_generation(measured.answers, np.arange(len(labels)) % 3 > 0)
        other = found[-1] if found else None
        name = f"runs/{len(found)}-<b>run</b>"
        found.append(
            Evaluation(
                name, ("in",), measured.scores, 1, "a <b>note</b>", other, measured.answers, generations=rows,
                failed=("all.accuracy",), **facts,
            )
        )  # fmt: skip
    return write_evaluation(found[-1], folder / "eval.html"), manifest


@pytest.fixture(scope="module")
def page(made):
    return write_report(str(made.path))


@pytest.fixture(scope="module")
def opened(page, tmp_path_factory):
    """The page in a browser; one session for all tests of this file."""
    with browsers.chromium(tmp_path_factory.mktemp("profile")) as browser:
        browser.get(page.path.resolve().as_uri())
        yield browser


def test_it_looks_right_at_two_widths_in_both_schemes(opened, tmp_path):
    """Nothing is wider than the window, the schemes differ, no error is logged, and no request leaves the file."""
    colours = {}
    for width in WIDTHS:
        for scheme in SCHEMES:
            browsers.show_as(opened, width, scheme)
            assert opened.execute_script("return document.documentElement.scrollWidth") <= width
            (tmp_path / "page.png").write_bytes(browsers.screenshot(opened, width, 2000))
            pixels = np.asarray(Image.open(tmp_path / "page.png").convert("L"))
            assert pixels.shape == (2000, width)
            assert pixels.std() > 5
            colours[width, scheme] = np.median(pixels)
    assert min(colours[width, "light"] for width in WIDTHS) > 200
    assert max(colours[width, "dark"] for width in WIDTHS) < 60
    assert opened.title == "2-run: kresume report"
    assert [line for line in opened.get_log("browser") if line["level"] != "INFO"] == []
    assert {url.partition(":")[0] for url in browsers.requests(opened)} <= {"file", "chrome", "chrome-untrusted"}


@pytest.fixture
def tab(opened, evaluated):
    """The page of the evaluation in a tab of its own."""
    first = opened.current_window_handle
    opened.switch_to.new_window("tab")
    opened.get(evaluated[0].as_uri())
    yield opened
    opened.close()
    opened.switch_to.window(first)


def test_an_evaluation_has_a_page(tab, evaluated):
    """Nothing leaves it, names stay text, and a click on a cell of the confusion shows its pictures, all of them."""
    assert tab.title == "runs/1-<b>run</b> against runs/0-<b>run</b>: kresume report"
    for width in WIDTHS:
        browsers.show_as(tab, width, "light")
        assert tab.execute_script("return document.documentElement.scrollWidth") <= width
    labels = evaluated[1].labels
    cell = tab.find_element("css selector", "[data-matrix=after] [data-cell='2,2']")
    tab.execute_script("arguments[0].click()", cell)
    pictures = tab.find_elements("css selector", "#cell .card img")
    assert int(cell.text) == len(pictures) > (labels == 2).sum() / 2
    assert all("url(" in each.value_of_css_property("background-image") for each in pictures)
    assert "1 gate failed" in tab.find_element("css selector", "header").text
    assert "not in the run" in tab.find_element("id", "numbers").text
    assert [line for line in tab.get_log("browser") if line["level"] != "INFO"] == []
    assert {url.partition(":")[0] for url in browsers.requests(tab)} <= {"file", "chrome", "chrome-untrusted"}


def test_axe_finds_nothing(opened, tmp_path, evaluated):
    """No violation of axe-core's rules, contrast included, wide and light or narrow and dark, with a cell opened."""
    axe = browsers.axe_source(tmp_path)
    opened.execute_script("document.querySelector('[data-matrix=after] [data-cell]').click()")
    found = {}
    for width, scheme in ((1200, "light"), (390, "dark")):
        browsers.show_as(opened, width, scheme)
        found[width, scheme] = browsers.violations(opened, axe)
    assert found == {(1200, "light"): [], (390, "dark"): []}
    report = opened.current_url
    opened.get(evaluated[0].as_uri())
    assert browsers.violations(opened, axe) == []
    opened.get(report)


def test_a_click_on_a_cell_shows_its_pictures(opened, page):
    """As many as the cell counts, up to the limit, each with a text and a picture; a click on one shows its path."""
    browsers.show_as(opened, 1200, "light")
    for which in ("before", "after"):
        cells = page.facts.chosen.cells[which]
        key, rows = max(cells.items(), key=lambda item: len(item[1]))
        opened.execute_script(
            f"document.querySelector('[data-matrix={which}] [data-cell=\"{key[0]},{key[1]}\"]').click()"
        )
        pictures = opened.find_elements("css selector", "#cell .card img")
        assert len(pictures) == len(rows) == min(galleries.MOST_IN_CELL, page.facts.confusion.__dict__[which][key])
        assert all(each.get_attribute("alt") for each in pictures)
        assert all("url(" in each.value_of_css_property("background-image") for each in pictures)
    opened.execute_script("document.querySelector('#cell .card button').click()")
    zoom = opened.find_element("id", "zoom")
    assert zoom.get_attribute("open") is not None
    assert page.facts.shown[rows[0]].path in zoom.get_property("textContent")
    opened.execute_script("document.getElementById('zoom').close()")
    opened.execute_script("document.querySelector('[data-matrix=difference] [data-cell]').click()")
    assert "left it" in opened.find_element("id", "cell").text
    opened.execute_script("document.querySelector('[data-pair]').click()")
    assert opened.find_elements("css selector", "#pair .card")


def test_tables_sort_galleries_filter_and_charts_answer(opened, page):
    """The script does what the page offers."""
    sort = "document.querySelector('#classes thead th:nth-child(4) button').click()"
    read = (
        "return [...document.querySelectorAll('#classes tbody tr')].map(row => parseFloat(row.children[3].dataset.v))"
    )
    opened.execute_script(sort)
    assert opened.execute_script(read) == sorted((each.after for each in page.facts.classes), reverse=True)
    opened.execute_script(sort)
    assert opened.execute_script(read) == sorted(each.after for each in page.facts.classes)
    opened.execute_script(
        "const s = document.getElementById('by-origin'); s.value = 'old'; s.dispatchEvent(new Event('change'))"
    )
    shown = "return [...document.querySelectorAll('[data-gallery=gained] .card')].filter(c => !c.hidden).length"
    new = page.facts.source.is_new(page.facts.source.after.answers.origins)
    assert opened.execute_script(shown) == sum(not new[row] for row in page.facts.chosen.galleries[0].rows)
    opened.find_element("css selector", "[data-filter=classes]").send_keys("SCRIPT")
    rows = "return [...document.querySelectorAll('#classes tbody tr')].filter(row => !row.hidden).length"
    assert opened.execute_script(rows) == 1
    tip = opened.execute_script(
        """const box = document.querySelector('[data-chart=accuracy]'), at = box.getBoundingClientRect();
        box.dispatchEvent(new PointerEvent('pointermove', {clientX: at.left + at.width / 2, clientY: at.top + 50}));
        return box.querySelector('.tip').textContent"""
    )
    assert re.match(r"epoch 1train 60 %", tip)


def test_every_picture_has_a_text_and_names_stay_text(page):
    """No tag of a name becomes a tag of the page; each picture is in the file once."""
    text = page.path.read_text(encoding="utf-8")
    assert text.count("<script") == 2
    assert "<i>" not in text.replace("<i></i>", "")
    assert "onerror=alert(1)>" not in text
    assert "a &lt;b&gt;note&lt;/b&gt;" in text
    assert [tag for tag in re.findall(r"<img [^>]*>", text) if not re.search(r'alt="[^"]+"', tag)] == []
    uris = re.findall(r"url\((data:image/[^)]+)\)", text)
    assert len(uris) == len(set(uris)) == len(page.facts.shown)
    assert not re.search(r"""(?:src|href)=["'](?:https?:)?//""", text)


@pytest.mark.parametrize(("classes", "images"), [(2, 400), (10, 3000), (100, 3000), (1000, 3000)])
def test_it_stays_small(tmp_path, classes, images):
    """Below 3 MB, with pictures of noise, which compress worst; 1,000 classes have long tables."""
    names = tuple(f"class {index}" for index in range(classes))
    manifest = write_images(tmp_path, names, old=images * 3 // 4, new=images // 4, stored=classes < 1000)
    run = write_run(
        tmp_path / "run", manifest, made_answers(manifest, 0.6, 0.4, 1), made_answers(manifest, 0.5, 0.7, 2)
    )
    written = write_report(str(run.path))
    assert written.bytes < 3_000_000
    if classes < 1000:
        assert sum(bool(shown.picture.uri) for shown in written.facts.shown.values()) > 100


def test_pictures_that_are_gone_are_placeholders(tmp_path):
    """The page is written, and says of each why it is not there."""
    manifest = write_images(tmp_path, ("a", "b"), stored=False)
    run = write_run(tmp_path / "run", manifest, None, made_answers(manifest, 0.5, 0.5, 2))
    text = write_report(str(run.path)).path.read_text(encoding="utf-8")
    assert 'class="hole"' in text
    assert "can no longer be read" in text
    assert "data:image/webp" not in text


def test_a_run_before_its_first_epoch_and_one_that_was_interrupted(tmp_path):
    """The page says so, and shows what there is."""
    manifest = write_images(tmp_path, ("a", "b"), stored=False)
    run = write_run(tmp_path / "run", manifest, None, made_answers(manifest, 0.5, 0.5, 2))
    run.update(status="interrupted", result=None, finished="")
    written = write_report(str(run.path))
    assert written.facts.source.step == 20
    assert written.facts.verdict.startswith("Right on ")
    assert "kept for the result, and not for step 20" in " ".join(written.facts.source.missing)
    run.metrics.unlink()
    assert write_report(str(run.path)).facts.verdict == "Nothing was scored yet: no epoch is done."


def test_a_damaged_table_of_images_leaves_the_rest(tmp_path):
    """Scores and curves are shown, and the page names what it could not read."""
    manifest = write_images(tmp_path, ("a", "b"), stored=False)
    run = write_run(tmp_path / "run", manifest, None, made_answers(manifest, 0.5, 0.5, 2))
    run.manifest.write_bytes(b"damaged")
    written = write_report(str(run.path))
    assert "cannot be read" in " ".join(written.facts.source.missing)
    assert "Curves" in written.path.read_text(encoding="utf-8")


def test_which_run_it_is_about(made, tmp_path):
    """A folder means its newest accepted run, `@` an epoch; two runs have a page of their own; errors say what exists."""
    folder = made.path.parent
    assert write_report(str(folder)).path == made.path / "report.html"
    at = write_report(f"{made.path}@10")
    assert at.path.name == "report-step-10.html"
    assert at.facts.source.step == 10
    both = write_report(str(made.path), str(made.path), str(tmp_path / "x" / "both.html"))
    assert both.path == tmp_path / "x" / "both.html"
    assert (
        both.facts.verdict
        == "Unchanged on new (right on the same images), unchanged on old (right on the same images)."
    )
    with pytest.raises(KresumeError, match="the steps with scores are 10, 20"):
        write_report(f"{made.path}@11")
    with pytest.raises(KresumeError, match=r"no best epoch, because it trained without --monitor: use .*@last"):
        write_report(f"{made.path}@best")
    with pytest.raises(KresumeError, match="no run at"):
        write_report(str(tmp_path))
    (tmp_path / "file").write_text("")
    with pytest.raises(KresumeError, match="--out"):
        write_report(str(made.path), None, str(tmp_path / "file" / "x.html"))


def test_the_command_prints_where_it_is_and_what_it_says(made):
    """Text for people; the numbers of the page as JSON."""
    told = CliRunner().invoke(cli, ["report", str(made.path)], catch_exceptions=False)
    assert told.exit_code == 0
    page = made.path / "report.html"
    assert told.output.startswith(f"{page}: {in_bytes(page.stat().st_size)}\n")
    assert "Better on new (+" in told.output
    numbers = json.loads(CliRunner().invoke(cli, ["report", str(made.path), "--json"], catch_exceptions=False).output)
    assert numbers["report"] == str(made.path / "report.html")
    assert sum(map(sum, numbers["confusion"]["after"])) == numbers["changes"]["all"]["images"]


def test_it_imports_no_framework(made):
    """Where the cache has the pictures, TensorFlow, Keras and JAX stay out: the command takes about a second."""
    script = (
        "import sys; from kresume.reports.page.write import write_report; write_report(sys.argv[1]);"
        "print(sorted({'keras', 'tensorflow', 'jax'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script, str(made.path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
