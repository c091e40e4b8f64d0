"""Names folders of the repository, for tests in any folder."""

import os
from pathlib import Path

ROOT = Path(__file__).parents[2]
GOLDENS = ROOT / "tests" / "golden"
WRITERS = ROOT / "scripts" / "golden"
"""The scripts that wrote the goldens, with their inputs."""
BENCH = ROOT / "scripts" / "bench"
"""The scripts that measure, and those that cut the power."""
FUZZ = ROOT / "scripts" / "fuzz"
"""The scripts that damage good files and read them."""
REAL_PICTURES = Path(os.environ.get("KRESUME_TEST_DATA", ROOT.parent / "shared" / "data"))
"""Real pictures with an old and a new part. They do not belong to the repository and may be missing."""
