"""Scripts that load an export by its own runtime alone: none imports kresume, each runs in a fresh process (`apart.py`)."""
