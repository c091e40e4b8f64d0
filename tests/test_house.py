"""The house: layers hold, docs are true, the package is typed and light to import."""

import importlib.util
import subprocess
import sys


def test_docs_are_what_the_commands_say(request):
    """docs/cli.md is generated; a changed option without it fails here."""
    spec = importlib.util.spec_from_file_location("make_docs", request.config.rootpath / "scripts" / "make_docs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PATH.read_text(encoding="utf-8") == module.render(), "run python scripts/make_docs.py"


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


def test_tests_and_scripts_name_no_file_that_is_gone(request):
    """CONTRIBUTING's reading order exists."""
    import re

    root = request.config.rootpath
    for path in re.findall(r"`(kresume/[a-z_/]+\.py)`", (root / "CONTRIBUTING.md").read_text()):
        assert (root / path).is_file(), path
