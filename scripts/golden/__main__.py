"""Writes goldens of foreign writers below tests/golden: small checkpoints and their next steps.

Run it to cover a new version of a writer, one writer at a time, in an environment that has that writer:

    python scripts/golden torch

A folder is named by writer and version and is never overwritten: a golden is written once. Each writer is a module
`NAME_writer.py` beside this file with `write(root) -> folder`.
"""

import importlib.util
import sys
import tempfile
from pathlib import Path

GOLDEN = Path(__file__).parents[2] / "tests" / "golden"
WRITERS = {path.stem.removesuffix("_writer"): path for path in sorted(Path(__file__).parent.glob("*_writer.py"))}
LARGEST_FILE_BYTES = 50_000


def main(names: list[str]) -> None:
    """Runs the writers named on the command line."""
    if not names or set(names) - set(WRITERS):
        sys.exit(f"usage: {sys.argv[0]} WRITER…; writers are {', '.join(WRITERS)}")
    for name in names:
        spec = importlib.util.spec_from_file_location(WRITERS[name].stem, WRITERS[name])
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        with tempfile.TemporaryDirectory(dir=GOLDEN.parent) as temporary:
            written = module.write(Path(temporary))
            for file in written.rglob("*"):
                if file.is_file() and file.stat().st_size > LARGEST_FILE_BYTES:
                    sys.exit(
                        f"{file.relative_to(temporary)} has {file.stat().st_size:,} bytes, at most {LARGEST_FILE_BYTES:,}"
                    )
            place = GOLDEN / written.name
            if place.exists():
                sys.exit(f"{place} is there already: goldens are never overwritten; remove it first if you must")
            GOLDEN.mkdir(exist_ok=True)
            written.rename(place)
        sys.stderr.write(f"wrote {place}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
