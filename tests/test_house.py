"""Tests the package: docs are true, it is light to import, its words and lengths stay within limits."""

import argparse
import ast
import importlib.util
import re
import subprocess
import sys

import pytest

from tests.helpers.paths import ROOT

pytestmark = pytest.mark.one_backend


@pytest.fixture
def make_docs(request):
    """Loads the script that writes the docs."""
    spec = importlib.util.spec_from_file_location("make_docs", request.config.rootpath / "scripts" / "make_docs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_docs_are_what_the_commands_say(make_docs):
    """docs/cli.md equals the output of its generator."""
    assert make_docs.PATH.read_text(encoding="utf-8") == make_docs.render(), "run python scripts/make_docs.py"


def test_the_table_of_formats_is_what_is_tested(make_docs):
    """The table of formats in the docs lists the goldens."""
    page = make_docs.FORMATS.read_text(encoding="utf-8")
    assert page == make_docs.render_formats(page), "run python scripts/make_docs.py"
    assert page.count("\n| a ") > 7


def test_importing_the_package_imports_no_framework():
    """`import kresume` imports no framework; public names are loaded on use."""
    script = "import sys, kresume; kresume.open_run; print(sorted({'keras', 'tensorflow', 'jax'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_command_imports_a_framework_before_the_backend_is_selected():
    """The modules behind the commands import Keras, TensorFlow and JAX only inside functions: a run may name its backend."""
    behind = "evaluation.evaluate evaluation.predictions exports.export training.resume training.plan.decide reports.page.write"
    script = (
        f"import sys, importlib; [importlib.import_module('kresume.' + name) for name in {behind!r}.split()]; "
        "print(sorted({'keras', 'tensorflow', 'jax'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_is_there():
    """Every name in `kresume.__all__` exists."""
    import kresume

    assert all(getattr(kresume, name) is not None for name in kresume.__all__)
    assert set(kresume.__all__) <= set(dir(kresume))


def test_the_reading_order_names_files_that_are_there(request):
    """CONTRIBUTING's reading order names existing files."""
    root = request.config.rootpath
    named = re.findall(r"`(kresume/[a-z_0-9/]+\.py)`", (root / "CONTRIBUTING.md").read_text())
    assert len(named) > 3
    assert [path for path in named if not (root / path).is_file()] == []


LONGEST_FILE, LONGEST_BODY, LONGEST_FIRST_LINE = 400, 60, 100
LONGER: dict[str, str] = {}
"""Files, and functions as `file.py:function`, that are longer, each with the reason."""
NO_VERB = ("What", "Whether", "Whoever")


def first_lines(source):
    """Returns the first line of every docstring, by the name of what it documents; the module's name is empty."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = [(node, ast.get_docstring(node)) for node in ast.walk(ast.parse(source)) if isinstance(node, documented)]
    return [(getattr(node, "name", ""), text.splitlines()[0]) for node, text in found if text]


def body_lengths(source):
    """Returns the number of lines of every function's body, without its docstring, blank lines and comments."""
    lines, found = source.splitlines(), {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[ast.get_docstring(node) is not None :]
            start = min(
                (inner.lineno for each in body[:1] for inner in ast.walk(each) if hasattr(inner, "lineno")), default=0
            )
            code = [line.strip() for line in lines[start - 1 : node.end_lineno]] if body else []
            found[node.name] = max(found.get(node.name, 0), sum(bool(line) and line[0] != "#" for line in code))
    return found


def too_long(name, source):
    """Returns the file and its functions that exceed the limits, as `LONGER` names them."""
    files = [name] if len(source.splitlines()) > LONGEST_FILE else []
    return files + [f"{name}:{each}" for each, length in body_lengths(source).items() if length > LONGEST_BODY]


def unclear(source):
    """Returns the first lines of docstrings that do not begin with a verb or are too long."""
    return [
        (name, line)
        for name, line in first_lines(source)
        if line.split()[0] in NO_VERB or len(line) > LONGEST_FIRST_LINE
    ]


@pytest.fixture(scope="module")
def sources(request):
    """Returns the package's source files by their path below the repository."""
    root = request.config.rootpath
    return {str(path.relative_to(root)): path.read_text() for path in sorted((root / "kresume").rglob("*.py"))}


def test_every_docstring_begins_with_a_verb_in_one_short_line(sources):
    """No docstring begins with "What", "Whether" or "Whoever"; first lines have at most 100 characters."""
    assert {path: lines for path, source in sources.items() if (lines := unclear(source))} == {}


def test_no_file_and_no_function_is_long(sources):
    """No file has more than 400 lines and no function body more than 60, apart from named ones with a reason."""
    found = [each for path, source in sources.items() for each in too_long(path, source)]
    assert sorted(found) == sorted(LONGER)


def test_a_long_or_unclear_file_is_noticed():
    """The checks above can fail."""
    body = "\n".join(["    x = 1"] * 61)
    assert too_long("a.py", f'def f():\n    """Adds."""\n\n    # why\n{body}\n') == ["a.py:f"]
    assert too_long("a.py", f'def f():\n    """Adds."""\n{body[10:]}\n') == []
    assert too_long("a.py", "x = 1\n" * 401) == ["a.py"]
    begins_with_what = '"""What it is."""\n'
    begins_with_whether = 'def f():\n    """Whether it is."""\n'
    too_long_a_line = f'class A:\n    """{"a" * 101}"""\n'
    wrong = begins_with_what + begins_with_whether + too_long_a_line
    assert {name for name, _ in unclear(wrong)} == {"", "f", "A"}
    assert unclear('"""Adds numbers.\n\nWhat it adds."""\n') == []


FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]*\b")
COMMAND = re.compile(r"\b(?:kresume (?:train|inspect|predict)|tensorboard|tar) [^`,;:]*")
FLAGS = {
    "kresume/checkpoints/input_shape.py": "`kresume inspect` alone prints it",
    "kresume/checkpoints/inspect.py": "`kresume inspect` alone prints it",
    "kresume/checkpoints/skeleton.py": "`kresume inspect` alone writes it",
    "kresume/cli.py": "the command line",
    "kresume/commands/": "the command line",
    "kresume/demo.py": "runs commands",
    "kresume/exports/serving.py": "a file for those who serve, with commands",
    "kresume/options/given.py": "writes commands",
    "kresume/options/neighbours.py": "corrects flags",
    "kresume/options/of_": "help texts",
    "kresume/options/resolve.py": "`--set` and `--config` are of the command line alone",
    "kresume/reports/contact_sheet.py": "`kresume data` alone draws it",
    "kresume/reports/data.py": "`kresume data` alone prints it",
    "kresume/reports/doctor/": "`kresume doctor` alone prints it",
    "kresume/reports/generation.py": "names of changed options in JSON, the same for all who read it",
    "kresume/reports/page/": "pages name options in one way, whoever reads them",
    "kresume/spelling.py": "writes flags",
}
"""Files whose texts may hold flags, each with the reason."""
RECORDED = {
    "kresume/models/losses.py": ["--loss", "as --model compiles it", "{}, as --model compiles it"],
    "kresume/training/plan/amount.py": ["--epochs", "--steps"],
    "kresume/training/plan/feeding.py": ["--pixels"],
    "kresume/training/plan/images.py": ["--classes", "--classes, {} of them new"],
    "kresume/training/plan/rate.py": ["--lr", "--lr-scale {}", "{} that --model compiles"],
    "kresume/training/plan/torch_mapping.py": [
        "WEAK mapping: better than guessing ({} %) and no more, {}: if the training was good, something of --model is still "
        "to be filled in (strides, padding, activations, sums)"
    ],
}
"""Reasons that `run.json` records with flags; `respelled` formats them where they are shown."""


def texts(source):
    """Yields every text of a file that is no docstring, with `{}` for what a format string inserts."""
    tree = ast.parse(source)
    nodes = list(ast.walk(tree))
    bodies = [body for node in nodes if isinstance(body := getattr(node, "body", None), list)]
    skipped = {id(each.value) for body in bodies for each in body if isinstance(each, ast.Expr)}
    formats = [node for node in nodes if isinstance(node, ast.JoinedStr)]
    skipped |= {id(part) for node in formats for part in node.values}
    for node in formats:
        yield "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skipped:
            yield node.value


def flagged(source):
    """Returns the texts of a file that hold a flag of kresume, apart from commands for the shell."""
    return [text for text in texts(source) if FLAG.search(COMMAND.sub("", text))]


def test_messages_name_options_as_the_user_gives_them(sources):
    """No text names an option as a flag: `option` does where the user is at the command line."""
    found = {
        path: [text for text in flagged(source) if text not in RECORDED.get(path, [])]
        for path, source in sources.items()
        if not path.startswith(tuple(FLAGS))
    }
    assert {path: each for path, each in found.items() if each} == {}


def test_every_place_where_flags_may_stand_is_needed(sources):
    """Each listed file holds flags, and each recorded reason is there."""
    holding = {path: flagged(source) for path, source in sources.items()}
    assert [name for name in FLAGS if not any(each for path, each in holding.items() if path.startswith(name))] == []
    assert [(path, text) for path, each in RECORDED.items() for text in each if text not in holding[path]] == []


def test_a_flag_in_a_message_is_noticed():
    """The checks above can fail."""
    assert flagged('raise E(f"{x}: give " f"--lr {y}, or another")') == ["{}: give --lr {}, or another"]
    assert flagged("say(f\"{option('lr')} is given: `kresume train --from {x}`, or --add too\")") != []
    assert flagged('"""A docstring with --lr."""\nsay("kresume train --from a --lr 1", "--xla_gpu_x=1", "a--b")') == []


BENCHES = ("export", "images", "job", "near", "overhead", "readers", "restart", "snapshot")


@pytest.fixture
def pairs(request):
    """Loads the module that the benches share."""
    spec = importlib.util.spec_from_file_location("pairs", request.config.rootpath / "scripts" / "bench" / "pairs.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["pairs"] = module  # a dataclass looks up its own module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["pairs"]


def test_figures_of_the_readme_come_from_pairs_in_turns(pairs, monkeypatch, capsys):
    """Pairs alternate which runs first, and the ratio is taken inside each pair.

    Pairs that began on a busy machine are named below the table.
    """
    cores = iter([2.0, 0.0, 0.0, 1.5, 0.0, 0.0, 0.0])
    monkeypatch.setattr(pairs, "cores_in_use", lambda: next(cores))
    monkeypatch.setattr(pairs.time, "sleep", lambda seconds: None)
    order, busy = [], pairs.Busy()
    asked = argparse.Namespace(pairs=5, wait=60.0)

    def figure(name, value):
        return lambda: order.append(name) or value * len(order)

    measured = pairs.measure(asked, figure("ours", 1.0), figure("theirs", 2.0), busy)
    assert order == ["ours", "theirs", "theirs", "ours", "ours", "theirs", "theirs", "ours", "ours", "theirs"]
    assert [ours / theirs for ours, theirs in measured] == pytest.approx([1 / 4, 4 / 6, 5 / 12, 8 / 14, 9 / 20])
    assert pairs.ratio(measured) == "0.45 (0.42-0.57)"
    assert (busy.pairs, busy.noted) == (5, [])  # it waited until the machine was quiet
    monkeypatch.setattr(pairs, "cores_in_use", lambda: 1.2)
    busy.wait(0.0)
    pairs.table(["a", "b"], [["1", "2"]], busy)
    assert "| 1 | 2 |\n\nNot quiet (1 of 6 pairs): 1.2 cores in use at pair 6" in capsys.readouterr().out


def test_benches_measure_in_one_way(request):
    """Each script that produces a figure of the README uses the shared module and states its duration."""
    texts = {name: (request.config.rootpath / f"scripts/bench/{name}.py").read_text() for name in BENCHES}
    assert [name for name, text in texts.items() if "pairs.parser(__doc__" not in text] == []
    assert [name for name, text in texts.items() if not re.search(r"^Takes about .*--quick", text, re.MULTILINE)] == []


def test_every_name_that_a_script_takes_from_the_package_exists():
    """Scripts are not run by the tests, so a module that moved would break them unnoticed; code in strings counts."""
    import importlib

    missing = []
    for path in sorted((ROOT / "scripts").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        for module, names in re.findall(r"^\s*from (kresume[.\w]*) import ([\w, ]+)", text, re.M):
            found = importlib.import_module(module)
            for name in names.split(","):
                plain = name.split(" as ")[0].strip()
                if not hasattr(found, plain) and importlib.util.find_spec(f"{module}.{plain}") is None:
                    missing.append(f"{path.name}: {module}.{plain}")
        for module in re.findall(r"^\s*import (kresume[.\w]*)", text, re.M):
            if importlib.util.find_spec(module) is None:
                missing.append(f"{path.name}: {module}")
    assert missing == []
