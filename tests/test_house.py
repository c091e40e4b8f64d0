"""The house: layers hold, docs are true, the package is typed and light to import."""

import importlib.util
import re
import subprocess
import sys

import pytest


@pytest.fixture
def make_docs(request):
    """The script that writes the docs."""
    spec = importlib.util.spec_from_file_location("make_docs", request.config.rootpath / "scripts" / "make_docs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_docs_are_what_the_commands_say(make_docs):
    """docs/cli.md is generated; a changed option without it fails here."""
    assert make_docs.PATH.read_text(encoding="utf-8") == make_docs.render(), "run python scripts/make_docs.py"


def test_the_table_of_formats_is_what_is_tested(make_docs):
    """The rows are the goldens; one that came or went without the table fails here."""
    page = make_docs.FORMATS.read_text(encoding="utf-8")
    assert page == make_docs.render_formats(page), "run python scripts/make_docs.py"
    assert page.count("\n| a ") > 7


def test_importing_the_package_imports_no_framework():
    """`import kresume` is free; names arrive when they are used."""
    script = "import sys, kresume; kresume.open_run; print(sorted({'keras', 'tensorflow', 'jax'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_is_there():
    """The facade's list is true."""
    import kresume

    assert all(getattr(kresume, name) is not None for name in kresume.__all__)
    assert set(kresume.__all__) <= set(dir(kresume))


def test_the_reading_order_names_files_that_are_there(request):
    """CONTRIBUTING sends a newcomer to them."""
    root = request.config.rootpath
    named = re.findall(r"`(kresume/[a-z_0-9/]+\.py)`", (root / "CONTRIBUTING.md").read_text())
    assert len(named) > 3
    assert [path for path in named if not (root / path).is_file()] == []
