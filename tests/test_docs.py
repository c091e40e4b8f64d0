"""The documentation is true: its commands run, its examples print what they show, its links and options exist."""

import ast
import doctest
import itertools
import re
import shlex
from pathlib import Path

import click
import pytest

import kresume
from kresume import cli
from kresume.commands import data
from tests.helpers.paths import ROOT
from tests.helpers.pictures import save_photo

PAGES = (ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NOT_RUN = ("pip install",)
"""How the other shell commands of the quick start begin."""
OTHER_FLAGS = {"benchmarks.md", "CONTRIBUTING.md", "trust.md"}
OF_TENSORBOARD = {"--logdir"}
"""Pages that name options of other programs."""
OF_SCRIPTS = {"--images", "--kills", "--lowest", "--processes", "--recipes", "--rows", "--seeds"}
"""Options of `scripts/test`, `scripts/bench/scaling.py` and `scripts/bench/images.py`, in commands that a page names."""
LONGEST_README = 100


def blocks(text: str) -> list[tuple[str, str, int]]:
    """Returns the fenced blocks of a page: language, content, and the index of the content's first line."""
    return [(found[1], found[2], text[: found.start(2)].count("\n")) for found in BLOCK.finditer(text)]


def prose(text: str) -> str:
    """Returns a page without code: no fenced, indented or inline code."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"^    .*$|`[^`\n]+`", "", text, flags=re.MULTILINE)


def anchors(text: str) -> set[str]:
    """Returns the anchors that GitHub gives the headings of a page."""
    titles = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def broken_links(text: str, folder: Path) -> list[str]:
    """Returns the relative links of a page whose file or heading does not exist."""
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(text)):
        path, _, anchor = link.partition("#")
        if "://" in link:
            continue
        target = (
            text if not path else (folder / path).read_text(encoding="utf-8") if (folder / path).is_file() else None
        )
        exists = (folder / path).exists() and (not anchor or anchor in anchors(target or ""))
        broken += [] if exists else [link]
    return broken


def missing_labels(shown: str, printed: str) -> list[str]:
    """Returns the labels that begin lines of a shown output, such as `images:`, and that were not printed."""
    labels = re.findall(r"^([\w/.-]+:)(?= )", shown, re.MULTILINE)
    return [label for label in labels if not re.search(rf"^{re.escape(label)} ", printed, re.MULTILINE)]


def doctest_problems(text: str) -> tuple[int, str]:
    """Runs the `pycon` blocks of a page in one namespace; returns the count of examples and what went wrong."""
    problems: list[str] = []
    names: dict[str, object] = {}
    runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS)
    for language, block, line in blocks(text):
        if language == "pycon":
            example = doctest.DocTestParser().get_doctest(block, names, "page", "page", line)
            runner.run(example, out=problems.append, clear_globs=False)
            names = example.globs
    return runner.tries, "".join(problems)


def known_flags() -> set[str]:
    """Returns every flag of every command."""

    def made(command: click.Command) -> click.Context:
        # click keeps the help option of the first context that asks: it must have the names that users see.
        return click.Context(command, **cli.cli.context_settings)

    commands = [cli.cli, *cli.cli.commands.values(), *data.data.commands.values()]
    options = [option for command in commands for option in command.get_params(made(command))]
    return {flag for option in options for flag in (*option.opts, *option.secondary_opts)}


@pytest.mark.one_backend(trains=True)
def test_the_quickstart_runs(tmp_path, monkeypatch, capsys):
    """Every command ends with 0, in their order, and prints each labelled line that the page shows below it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("kresume.reports.doctor.diagnose.MEASURED", {})  # half a minute; see test_doctor
    seeds = itertools.count()
    for part, count in (("old", 4), ("new", 2), ("eval", 1)):
        for label in "0123456789":
            for seed in itertools.islice(seeds, count):
                save_photo(Path("signdigits", part, label, f"{seed}.jpg"), seed, side=32)
    commands, compared, printed = 0, 0, ""
    for language, block, _ in blocks((ROOT / "docs" / "quickstart.md").read_text(encoding="utf-8")):
        if language == "text":
            assert missing_labels(block, printed) == [], printed
            compared += 1
        lines = block.splitlines() if language == "sh" else []
        for line in lines:
            if line.startswith(NOT_RUN):
                continue
            assert line.startswith("kresume "), f"the quick start has a command that nobody runs: {line}"
            with pytest.raises(SystemExit) as left:
                cli.main(shlex.split(line, comments=True)[1:])
            output = capsys.readouterr()
            printed = output.err + output.out
            assert left.value.code == 0, f"{line}\n{printed}"
            commands += 1
    assert commands >= 7
    assert compared >= 3
    assert Path("runs/2-signs/model.keras").is_file()


@pytest.mark.one_backend(trains=True)
def test_the_examples_of_the_python_page(workplace):
    """Each prints what the page shows; they run in their order, in one namespace."""
    tries, problems = doctest_problems((ROOT / "docs" / "python.md").read_text(encoding="utf-8"))
    assert problems == ""
    assert tries > 20


@pytest.mark.one_backend
def test_the_python_page_names_the_whole_facade():
    """A public name that came without its documentation fails here."""
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    assert [name for name in kresume.__all__ if not re.search(rf"`(kresume\.)?{name}\b", page)] == []


@pytest.mark.one_backend
def test_the_readme_is_short():
    """A reader sees the whole of it; the rest has pages of its own."""
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= LONGEST_README


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
@pytest.mark.one_backend
def test_every_link_leads_somewhere(page):
    """Files and headings that relative links name exist."""
    assert broken_links(page.read_text(encoding="utf-8"), page.parent) == []


@pytest.mark.one_backend
def test_every_page_is_reached_from_the_readme():
    """A page that nobody links to is never read."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [page.name for page in PAGES if page.parent.name == "docs" and f"](docs/{page.name})" not in readme] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
@pytest.mark.one_backend
def test_python_blocks_use_what_exists(page):
    """They compile, and what they take from the package is public."""
    for language, block, _ in blocks(page.read_text(encoding="utf-8")):
        if language != "python":
            continue
        nodes = ast.walk(ast.parse(block))
        used = {node.attr for node in nodes if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "kresume"}
        assert used <= set(kresume.__all__)


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in OTHER_FLAGS], ids=lambda page: page.name)
@pytest.mark.one_backend
def test_every_option_exists(page):
    """An option that a page names is one of a command."""
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", page.read_text(encoding="utf-8")))
    assert sorted(named - known_flags() - OF_TENSORBOARD - OF_SCRIPTS) == []


@pytest.mark.one_backend
def test_a_wrong_page_is_noticed(tmp_path):
    """The checks above can fail."""
    (tmp_path / "page.md").write_text("# A title, and more\n")
    assert broken_links("[a](page.md) [b](page.md#a-title-and-more) [c](https://x.org)", tmp_path) == []
    assert broken_links("[a](gone.md) [b](page.md#gone) [c](#gone)", tmp_path) == ["gone.md", "page.md#gone", "#gone"]
    assert missing_labels("images: 3\nrate:   1\n…\n", "images:   7\n") == ["rate:"]
    assert doctest_problems("```pycon\n>>> x = 1\n```\n\n```pycon\n>>> x + 1\n2\n```\n") == (2, "")
    tries, problems = doctest_problems("```pycon\n>>> 1 + 1\n3\n```\n")
    assert tries == 1
    assert "Expected:\n    3\nGot:\n    2\n" in problems
