"""Exports trained models, with one file per format. Start reading at `export.py`."""
