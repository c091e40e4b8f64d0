"""`python -m kresume` is `kresume`."""

from kresume.cli import main

main()
